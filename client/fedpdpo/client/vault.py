"""Private tensors on disk, in plain safetensors or, with a key, encrypted.

A sealed file is a mark, 7 random bytes, and the safetensors file in pieces of 1 MiB, each by
AES-256-GCM under a nonce of those bytes, the piece's number and whether it is the last one (STREAM,
Hoang et al. 2015, doi:10.1007/978-3-662-47989-6_24). So no piece can be changed, left out, moved or
taken from another file or another kind of file.
"""

import logging
import re
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from fedpdpo.common.errors import BadSettings, BadState
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)

_MARK = b"fedpdpo sealed 1\n"
_PREFIX_BYTES = 7
_PIECE_BYTES = 2**20
_TAG_BYTES = 16
_MAX_KEY_FILE_BYTES = 1024
_KEY = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)


class Vault:
    """Writes and reads files of private tensors; `key` has 32 bytes, or there is none."""

    def __init__(self, key: bytes | None = None) -> None:
        self._cipher = AESGCM(key) if key else None

    @classmethod
    def of(cls, key: SecretStr | None, key_file: Path | None) -> "Vault":
        """A vault by the settings: 64 hexadecimal digits, told or in a file.

        Raises BadSettings where they are no such key, or both are given.
        """
        if key is not None and key_file is not None:
            raise BadSettings("give the state's key or a file that holds it, not both")
        told = key.get_secret_value() if key is not None else None
        if key_file is not None:
            try:
                if key_file.stat().st_size > _MAX_KEY_FILE_BYTES:
                    raise BadSettings(f"{key_file} is too large to be a key")
                told = key_file.read_text(encoding="ascii").strip()
            except (OSError, ValueError) as error:
                raise BadSettings(f"cannot read --state-key-file {key_file}: {error}") from error
        if told is None:
            return cls()
        if not _KEY.fullmatch(told):
            raise BadSettings(
                "the state's key needs 64 hexadecimal digits; openssl rand -hex 32 makes one"
            )
        return cls(bytes.fromhex(told))

    def save(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Write tensors."""
        if self._cipher is None:
            save_file(tensors, path)
            return
        content = memoryview(save(tensors))
        prefix = secrets.token_bytes(_PREFIX_BYTES)
        with path.open("wb") as file:
            file.write(_MARK + prefix)
            for number, begin in enumerate(range(0, len(content), _PIECE_BYTES)):
                last = begin + _PIECE_BYTES >= len(content)
                piece = content[begin : begin + _PIECE_BYTES]
                nonce = _nonce(prefix, number, last=last)
                file.write(self._cipher.encrypt(nonce, piece, path.name.encode()))

    def load(self, path: Path) -> dict[str, Tensor]:
        """Read tensors, also plain ones where there is a key.

        Raises BadState where the file is sealed with another key or changed, or there is no key.
        """
        with path.open("rb") as file:
            sealed = file.read(len(_MARK)) == _MARK
            if not sealed:
                if self._cipher is not None:
                    log.warning(fields("not_sealed_yet", path=path))
                return load_file(path)
            if self._cipher is None:
                raise BadState(f"{path} is encrypted; give --state-key-file")
            prefix, content, number = file.read(_PREFIX_BYTES), bytearray(), 0
            piece = file.read(_PIECE_BYTES + _TAG_BYTES)
            try:
                while piece:
                    following = file.read(_PIECE_BYTES + _TAG_BYTES)
                    nonce = _nonce(prefix, number, last=not following)
                    content += self._cipher.decrypt(nonce, piece, path.name.encode())
                    piece, number = following, number + 1
                return load(bytes(content))
            except (InvalidTag, SafetensorError, ValueError) as error:
                raise BadState(f"{path} was sealed with another key, or is damaged") from error


def _nonce(prefix: bytes, number: int, *, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([last])
