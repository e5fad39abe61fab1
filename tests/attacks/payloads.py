"""Messages and payloads that lie."""

import json
import struct
from collections.abc import Callable

import numpy as np
import zstandard
from safetensors.numpy import save

from attacks.siege import Answer, Siege, answer
from fedpdpo.v1 import operator_pb2, payload_pb2, run_pb2
from serving import tensors


def wrong_name(siege: Siege) -> Answer:
    return siege.push({name.upper(): tensor for name, tensor in tensors(1.0).items()})


def wrong_shape(siege: Siege) -> Answer:
    return siege.push({name: tensor.T.copy() for name, tensor in tensors(1.0).items()})


def wrong_dtype(siege: Siege) -> Answer:
    return siege.push({name: tensor.view(np.int32) for name, tensor in tensors(1.0).items()})


def nan(siege: Siege) -> Answer:
    return siege.push(tensors(np.nan))


def infinity(siege: Siege) -> Answer:
    return siege.push(tensors(np.inf))


def many_pairs(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), num_pairs=2**62)


def huge_size(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), header={"num_bytes": 2**63})


def size_too_small(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), header={"num_bytes": 16})


def wrong_digest(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), header={"sha256": b"\0" * 32})


def header_of_100_mib(siege: Siege) -> Answer:
    return siege.push(struct.pack("<Q", 100 * 2**20) + b"{" * 200)


def header_that_lies(siege: Siege) -> Answer:
    content = bytearray(save(tensors(1.0)))
    content[:8] = struct.pack("<Q", int.from_bytes(content[:8], "little") - 8)
    return siege.push(bytes(content))


def _with_offsets(change: Callable[[list[int]], list[int]]) -> bytes:
    content = save(tensors(1.0))
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    last = max((name for name in header if name != "__metadata__"),
               key=lambda name: header[name]["data_offsets"][0])  # fmt: skip
    header[last]["data_offsets"] = change(header[last]["data_offsets"])
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + content[8 + length :]


def overlapping_offsets(siege: Siege) -> Answer:
    return siege.push(_with_offsets(lambda at: [at[0] - 8, at[1] - 8]))


def negative_offsets(siege: Siege) -> Answer:
    return siege.push(_with_offsets(lambda at: [at[0] - at[1], 0]))


def deep_json(siege: Siege) -> Answer:
    return siege.push(struct.pack("<Q", 500) + b"[" * 500)


def zstd_bomb(siege: Siege) -> Answer:
    payload = save(tensors(1.0))
    bomb = zstandard.compress(b"\0" * 2**26)
    chunk = payload_pb2.PayloadChunk(offset=0, data=bomb, zstd=True)
    return siege.push(payload, chunks=[chunk])


def gap_between_chunks(siege: Siege) -> Answer:
    payload = save(tensors(1.0))
    return siege.push(payload, chunks=[payload_pb2.PayloadChunk(offset=9, data=payload[9:])])


def message_of_8_mib(siege: Siege) -> Answer:
    chunk = payload_pb2.PayloadChunk(offset=0, data=b"\0" * 2**23)
    return siege.push(save(tensors(1.0)), chunks=[chunk])


def layout_of_60_000_tensors(siege: Siege) -> Answer:
    names = [f"m.{number:06d}.lora_A.weight" for number in range(60_000)]
    layout = [run_pb2.TensorSpec(name=name, shape=(1, 1)) for name in names]
    return answer(lambda: siege.eve.join(lora_layout=layout))


def huge_norm(siege: Siege) -> Answer:
    """It is taken, and scaled down when the round is averaged; gives the event that says so."""
    code, words = siege.push(tensors(1e30))
    request = operator_pb2.WatchEventsRequest(follow=True)
    for event in siege.operator.WatchEvents(request, timeout=30):
        if event.kind == "delta_clipped":
            return code, f"{event.kind} {event.message}"
    return code, words
