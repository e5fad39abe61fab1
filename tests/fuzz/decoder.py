"""Feeds the decoder of payloads bytes that a fuzzer makes, guided by which code they reach.

    python tests/fuzz/decoder.py -runs=200000 -max_len=4096 -rss_limit_mb=512 -timeout=5

Whatever comes is either taken or refused with BadPayload (or protobuf's DecodeError). What is taken
is read again from disk and has to be the same.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedpdpo"]):
    from google.protobuf.message import DecodeError

    from fedpdpo.common.encoding import DeltaFormat, Encoding, decoder
    from fedpdpo.common.errors import BadPayload
    from fedpdpo.common.frames import Chunk, parser
    from fedpdpo.common.layout import LoraLayout
    from fedpdpo.common.payload import unpacked
    from fedpdpo.common.tensorfile import Inspector, TensorReader
    from fedpdpo.v1 import federation_pb2 as pb

LAYOUT = LoraLayout((("m.lora_A.weight", (2, 3)), ("m.lora_B.weight", (4, 2))))
FORMATS = [DeltaFormat(encoding, 0.5) for encoding in Encoding]
PARSE = parser(pb.PushDeltaRequest)


def one_input(data: bytes) -> None:
    """Read bytes as a frame of the wire, or as a payload in one of the encodings."""
    source = atheris.FuzzedDataProvider(data)
    kind = source.ConsumeIntInRange(0, len(FORMATS))
    if kind == len(FORMATS):
        _frame(source.ConsumeBytes(sys.maxsize))
        return
    if source.ConsumeBool():
        header = source.ConsumeBytes(source.ConsumeIntInRange(0, 600))
        payload = len(header).to_bytes(8, "little") + header + source.ConsumeBytes(sys.maxsize)
    else:
        payload = source.ConsumeBytes(sys.maxsize)
    _payload(FORMATS[kind], payload, piece=1 + len(payload) // 3)


def _frame(raw: bytes) -> None:
    try:
        message = PARSE(raw)
        if isinstance(message, Chunk):
            unpacked(message)
    except (DecodeError, BadPayload):
        return


def _payload(fmt: DeltaFormat, payload: bytes, *, piece: int) -> None:
    inspector = Inspector(fmt.contents(LAYOUT), num_bytes=len(payload))
    try:
        for begin in range(0, len(payload), piece):
            inspector.feed(payload[begin : begin + piece])
        inspector.finish()
    except BadPayload:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta"
        path.write_bytes(payload)
        read = decoder(TensorReader(path), LAYOUT)
        for name, shape in LAYOUT.shapes:
            assert read(name).shape == shape


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
