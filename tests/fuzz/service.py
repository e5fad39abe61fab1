"""Sends a server messages that are wrong in every way, and looks whether it stays as it was.

Half of the messages are real ones with bytes changed, cut or put in; half have every field filled
at random, with the values that break things among them.
"""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fedpdpo.v1 import federation_pb2, operator_pb2, session_pb2

MODULES = (federation_pb2, operator_pb2, session_pb2)

#: Calls that end the run or hold it up; they carry no field that could be wrong.
LEFT_OUT = frozenset({"StopRun", "PauseRun"})

#: Calls that may wait for something longer than a caller does.
WAITING = frozenset({"GetAssignment", "WatchEvents"})

_NUMBERS = (0, 1, 2, 7, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_FLOATS = (0.0, 1.0, -1.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 5e-324)
_TEXTS = ("", "ada", "..", "../../etc/passwd", "a" * 65, "\x00", "é" * 9, "lora_A.weight", "b" * 64)


class Fuzzer:
    """Makes calls from a seed. `names` are values that real messages hold, by field."""

    def __init__(self, seed: int, names: dict[str, str]) -> None:
        self._random = random.Random(seed)
        self._names = names
        self.codes: Counter[str] = Counter()
        self.methods = [
            method
            for module in MODULES
            for service in module.DESCRIPTOR.services_by_name.values()
            for method in service.methods
            if method.name not in LEFT_OUT
        ]

    def call(self, channel: grpc.Channel) -> None:
        """Make one call with wrong messages, and count what the server answers."""
        method = self._random.choice(self.methods)
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            if method.client_streaming:
                streams: Any = channel.stream_stream(path)
                for _ in streams(self._stream(method.input_type._concrete_class), timeout=10):
                    pass
            elif method.server_streaming:
                stream: Any = channel.unary_stream(path)
                for _ in stream(self._raw(method), timeout=10):
                    pass
            else:
                single: Any = channel.unary_unary(path)
                single(self._raw(method), timeout=10)
            self.codes["OK"] += 1
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            waits = method.name in WAITING and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            self.codes["WAITED" if waits else error.code().name] += 1

    def _stream(self, kind: Any) -> Iterator[bytes]:
        for _ in range(self._random.randint(1, 4)):
            yield self._bytes(kind)

    def _raw(self, method: Any) -> bytes:
        return self._bytes(method.input_type._concrete_class)

    def _bytes(self, kind: Any) -> bytes:
        message = kind()
        self._fill(message, depth=0)
        if hasattr(message, "wait_s"):
            message.wait_s = 0
        if hasattr(message, "follow"):
            message.follow, message.after = False, 2**62
        raw = bytearray(message.SerializeToString())
        if self._random.random() < 0.5:
            for _ in range(self._random.randint(1, 4)):
                self._damage(raw)
        return bytes(raw)

    def _damage(self, raw: bytearray) -> None:
        at = self._random.randrange(len(raw) + 1)
        match self._random.randrange(3):
            case 0:
                raw[at : at + 1] = bytes([self._random.randrange(256)])
            case 1:
                del raw[at : at + self._random.randint(1, 8)]
            case _:
                raw[at:at] = self._random.randbytes(self._random.randint(1, 8))

    def _fill(self, message: Message, *, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.2:
                continue
            if field.is_repeated:
                for _ in range(self._random.randint(0, 3)):
                    if field.message_type:
                        self._fill(getattr(message, field.name).add(), depth=depth + 1)
                    else:
                        getattr(message, field.name).append(self._value(field))
            elif field.message_type:
                if not field.containing_oneof or self._random.random() < 0.5:
                    getattr(message, field.name).SetInParent()
                    self._fill(getattr(message, field.name), depth=depth + 1)
            else:
                setattr(message, field.name, self._value(field))

    def _value(self, field: Any) -> Any:
        pick = self._random
        if field.name in self._names and pick.random() < 0.8:
            return self._names[field.name]
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return pick.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return pick.choice(_FLOATS)
            case FieldDescriptor.CPPTYPE_ENUM:
                return pick.choice((0, 1, 2, 99))
            case FieldDescriptor.CPPTYPE_STRING:
                known = field.type == FieldDescriptor.TYPE_STRING
                return pick.choice(_TEXTS) if known else pick.randbytes(pick.choice((0, 8, 32, 33)))
            case FieldDescriptor.CPPTYPE_UINT32:
                return pick.choice([number for number in _NUMBERS if number < 2**32])
            case FieldDescriptor.CPPTYPE_UINT64:
                return pick.choice(_NUMBERS)
        raise AssertionError(field.name)
