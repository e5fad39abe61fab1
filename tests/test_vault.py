"""Private tensors on disk, plain and sealed."""

from pathlib import Path

import pytest
import torch
from pydantic import SecretStr

from fedpdpo.client.vault import Vault
from fedpdpo.common.errors import BadSettings, BadState

KEY = bytes(range(32))
TENSORS = {"head": torch.arange(700_000, dtype=torch.float32), "bias": torch.zeros(3)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in TENSORS.items()
    )


def test_what_is_sealed_comes_back_and_shows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "private.safetensors"
    Vault(KEY).save(TENSORS, path)
    content = path.read_bytes()
    assert len(content) > 2.5 * 2**20
    for telling in (b'"head"', b'"F32"', TENSORS["head"][1000:1004].numpy().tobytes()):
        assert telling not in content
    assert same(Vault(KEY).load(path))
    again = tmp_path / "again.safetensors"
    Vault(KEY).save(TENSORS, again)
    assert again.read_bytes() != content


def test_without_a_key_it_is_plain_safetensors_and_a_key_reads_that_too(tmp_path: Path) -> None:
    path = tmp_path / "private.safetensors"
    Vault().save(TENSORS, path)
    assert path.read_bytes()[8:9] == b"{"
    assert same(Vault().load(path))
    assert same(Vault(KEY).load(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[: 24 + 2**20 + 16],
        lambda content: content[:24],
        lambda content: content + b"\0",
        lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:],
        lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
        lambda content: (
            content[:24]
            + content[24 + 2**20 + 16 : 24 + 2 * (2**20 + 16)]
            + content[24 : 24 + 2**20 + 16]
            + content[24 + 2 * (2**20 + 16) :]
        ),
    ],
    ids=["end", "piece", "all", "more", "bit", "prefix", "order"],
)
def test_a_sealed_file_that_was_changed_is_refused(tmp_path: Path, change: object) -> None:
    path = tmp_path / "private.safetensors"
    Vault(KEY).save(TENSORS, path)
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadState, match="sealed with another key, or is damaged"):
        Vault(KEY).load(path)


def test_a_sealed_file_needs_its_own_key_and_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "private.safetensors"
    Vault(KEY).save(TENSORS, path)
    with pytest.raises(BadState, match="give --state-key-file"):
        Vault().load(path)
    with pytest.raises(BadState, match="sealed with another key"):
        Vault(KEY[::-1]).load(path)
    with pytest.raises(BadState, match="sealed with another key"):
        Vault(KEY).load(path.rename(tmp_path / "optimizer.safetensors"))


def test_a_key_is_64_hexadecimal_digits_told_or_in_a_file(tmp_path: Path) -> None:
    file, path = tmp_path / "key", tmp_path / "private.safetensors"
    file.write_text(f"{KEY.hex()}\n")
    Vault.of(None, file).save(TENSORS, path)
    assert same(Vault.of(SecretStr(KEY.hex()), None).load(path))
    with pytest.raises(BadSettings, match="64 hexadecimal digits") as caught:
        Vault.of(SecretStr("hunter2"), None)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(BadSettings, match="not both"):
        Vault.of(SecretStr(KEY.hex()), file)
    with pytest.raises(BadSettings, match="cannot read"):
        Vault.of(None, tmp_path / "absent")
