"""Writes a round's delta as it travels, and keeps what its encoding leaves out for the next one.

FOLDER/delta.safetensors     what is sent
FOLDER/residual.safetensors  delta + earlier residual - what is sent; absent where nothing is lost
"""

from collections.abc import Iterator
from pathlib import Path

from fedpdpo.client.model.lora import SharedState
from fedpdpo.common.encoding import DeltaFormat, decoder, encoded
from fedpdpo.common.header import Contents
from fedpdpo.common.tensorfile import Array, TensorReader, write_tensors

RESIDUAL = "residual.safetensors"


def write_delta(folder: Path, delta: SharedState, fmt: DeltaFormat, *, before: Path | None) -> None:
    """Write a delta in a format, with what the round in folder `before` left out added to it."""
    left = before / RESIDUAL if before is not None else None
    residual = TensorReader(left) if left is not None and left.exists() else None

    def whole() -> Iterator[tuple[str, Array]]:
        for name, _ in delta.layout.shapes:
            tensor: Array = delta.tensors[name].numpy()
            yield name, tensor if residual is None else tensor + residual.read(name)

    sent = folder / "delta.safetensors"
    write_tensors(sent, fmt.contents(delta.layout), encoded(whole(), fmt))
    if fmt.loses:
        decode = decoder(TensorReader(sent), delta.layout)
        lost = ((name, tensor - decode(name)) for name, tensor in whole())
        write_tensors(folder / RESIDUAL, Contents.of(delta.layout), lost)
