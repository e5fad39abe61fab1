"""Feeds the decoder of payloads bytes that a fuzzer makes, guided by which code they reach.

    python tests/fuzz/decoder.py -runs=200000 -max_len=4096 -rss_limit_mb=512 -timeout=5

Whatever comes is either taken or refused with BadPayload (or protobuf's DecodeError). What is taken
is read again from disk: it has the layout's shapes, and its numbers are finite.
"""

import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["fedpdpo"]):
    from google.protobuf.message import DecodeError

    from fedpdpo.common.encoding import DeltaFormat, Encoding, decoder, encoded
    from fedpdpo.common.errors import BadPayload
    from fedpdpo.common.frames import Chunk, packed, parser
    from fedpdpo.common.layout import LoraLayout
    from fedpdpo.common.payload import pack, unpacked
    from fedpdpo.common.tensorfile import Inspector, TensorReader, write_tensors
    from fedpdpo.v1 import federation_pb2 as pb

LAYOUT = LoraLayout((("m.lora_A.weight", (2, 3)), ("m.lora_B.weight", (4, 2))))
FORMATS = [DeltaFormat(encoding, 0.5) for encoding in Encoding]
PARSE = parser(pb.PushDeltaRequest)


def one_input(data: bytes) -> None:
    """Read bytes, by what the first one says, as a frame of the wire or a payload."""
    kind = data[0] % (len(FORMATS) + 1) if data else 0
    if kind == len(FORMATS):
        _frame(data[1:])
    else:
        _payload(FORMATS[kind], data[1:], piece=1 + len(data) // 3)


def seeds() -> list[bytes]:
    """An input of each kind that is taken."""
    payload = Path(tempfile.mkdtemp()) / "payload"
    found = [bytes([len(FORMATS)]) + packed(Chunk(0, b"abc"))]
    found.append(bytes([len(FORMATS)]) + packed(pack(0, b"abc", zstd=True)))
    for kind, fmt in enumerate(FORMATS):
        tensors = ((name, np.ones(shape, np.float32)) for name, shape in LAYOUT.shapes)
        write_tensors(payload, fmt.contents(LAYOUT), encoded(tensors, fmt))
        found.append(bytes([kind]) + payload.read_bytes())
    return found


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
            tensor = read(name)
            assert tensor.shape == shape
            assert np.isfinite(tensor).all()


if __name__ == "__main__":
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], one_input)
    atheris.Fuzz()
