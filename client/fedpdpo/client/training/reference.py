"""The reference's log-probabilities of a client's pairs, computed once in the pairs' life.

They are kept in one safetensors file by the digest of a pair's tokens, which stands for data,
tokenizer and chat template. What they depend on beside, the model and its precision, is the file's
key: a file with another key is not read. Shape: P pairs.
"""

import hashlib
import logging
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.common.files import whole_file
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)


def pair_digest(pair: PairTokens) -> bytes:
    """SHA-256 over a pair's token ids."""
    parts = (pair.prompt, pair.chosen, pair.rejected)
    ids = [len(part) for part in parts] + [token for part in parts for token in part]
    return hashlib.sha256(struct.pack(f"<{len(ids)}q", *ids)).digest()


class ReferenceCache:
    """Reference log-probabilities of pairs, in nats, with the file that keeps them.

    `key` must name everything but the tokens that they depend on.
    """

    def __init__(self, path: Path, *, key: str) -> None:
        self._path = path
        self._key = key
        self._logps = _read(path, key)

    def known(self, pair: PairTokens) -> bool:
        """Whether a pair's log-probabilities are there."""
        return pair_digest(pair) in self._logps

    def put(self, pair: PairTokens, *, chosen: float, rejected: float) -> None:
        """Take a pair's log-probabilities; they reach the disk with `save`."""
        self._logps[pair_digest(pair)] = (chosen, rejected)

    def logps(self, pairs: Sequence[PairTokens]) -> Tensor:
        """Log pi_ref(chosen) and log pi_ref(rejected) of each pair: (P, 2), float64.

        Raises KeyError where one is not known.
        """
        found = [self._logps[pair_digest(pair)] for pair in pairs]
        return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)

    def save(self) -> None:
        """Write all that is known, whole. Raises StorageFull."""
        digests = np.frombuffer(b"".join(self._logps), dtype=np.uint8).reshape(-1, 32)
        logps = torch.tensor(list(self._logps.values()), dtype=torch.float64).reshape(-1, 2)
        tensors = {"digests": torch.from_numpy(digests.copy()), "logps": logps}
        tensors["sha256"] = _sha256(tensors)
        with whole_file(self._path) as partial:
            # One entry: safetensors writes several in any order, and the same run, the same bytes.
            save_file(tensors, partial, metadata={"key": self._key})


def _sha256(tensors: Mapping[str, Tensor]) -> Tensor:
    digest = hashlib.sha256()
    for name in ("digests", "logps"):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _read(path: Path, key: str) -> dict[bytes, tuple[float, float]]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return {}
            digests, logps, sha256 = map(file.get_tensor, ("digests", "logps", "sha256"))
    except (OSError, SafetensorError) as error:
        log.warning(fields("reference_unreadable", file=path, error=error))
        return {}
    num_pairs = len(logps) if logps.ndim else 0
    whole = (
        (logps.dtype, logps.shape) == (torch.float64, (num_pairs, 2))
        and (digests.dtype, digests.shape) == (torch.uint8, (num_pairs, 32))
        and sha256.dtype == torch.uint8
        and torch.equal(sha256, _sha256({"digests": digests, "logps": logps}))
    )
    if not whole or not bool(torch.isfinite(logps).all()):
        log.warning(fields("reference_unreadable", file=path, error="malformed"))
        return {}
    values = [(chosen, rejected) for chosen, rejected in logps.tolist()]
    return dict(zip((row.numpy().tobytes() for row in digests), values, strict=True))
