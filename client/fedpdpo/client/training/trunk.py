"""What the frozen trunk makes of a client's pairs, computed once and mapped from the disk.

    STATE_DIR/trunk-train/states.bin    hidden states, pair after pair, in the backbone's precision
    STATE_DIR/trunk-train/index.json    which pairs, how long, and the digest of each one's states

The folder is replaced as a whole when pairs, model or budget change; states of pairs that stay are
copied, not computed. Shapes: T tokens of a pair, each once (Pack.rows), H hidden size.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.packing import num_tokens
from fedpdpo.client.training.reference import pair_digest
from fedpdpo.common.files import whole_folder
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)

Compute = Callable[[Sequence[int]], Iterable[tuple[int, Tensor]]]


class TrunkCache:
    """Trunk states of pairs by their tokens; those of other pairs must be computed."""

    def __init__(self, folder: Path, *, key: str, hidden: int, dtype: torch.dtype) -> None:
        self._folder = folder
        self._key = f"{key} {hidden} {dtype}"
        self._hidden = hidden
        self._dtype = dtype
        self._states: dict[bytes, Tensor] = self._open()

    @property
    def kept_bytes(self) -> int:
        """What the states take on the disk."""
        return sum(part.numel() * part.element_size() for part in self._states.values())

    def get(self, pair: PairTokens) -> Tensor | None:
        """A pair's states, (T, H), mapped; None where they are not kept."""
        return self._states.get(pair_digest(pair))

    def keep(self, pairs: Sequence[PairTokens], *, budget_bytes: int, compute: Compute) -> None:
        """Keep the states of the first pairs that fit into the budget, and no others.

        `compute` gives the states (T, H) of the pairs with these numbers that are not there yet.
        Raises StorageFull.
        """
        replaced = self._folder.with_name(f"{self._folder.name}.new")
        shutil.rmtree(replaced, ignore_errors=True)
        numbers, parts = self._fitting(pairs, budget_bytes)
        if list(numbers) == list(self._states):
            return
        if numbers:
            with whole_folder(replaced) as partial:
                states = self._map(
                    partial / "states.bin", max(part.stop for part in parts.values()), writable=True
                )
                for digest in numbers.keys() & self._states.keys():
                    states[parts[digest]] = self._states[digest]
                digests = {number: digest for digest, number in numbers.items()}
                new = [number for digest, number in numbers.items() if digest not in self._states]
                for number, found in compute(new):
                    states[parts[digests[number]]] = found.to("cpu", self._dtype)
                entries = [
                    {"pair": digest.hex(), "tokens": part.stop - part.start,
                     "sha256": _sha256(states[part])}
                    for digest, part in parts.items()
                ]  # fmt: skip
                index = {"key": self._key, "pairs": entries}
                (partial / "index.json").write_text(json.dumps(index), encoding="utf-8")
                del states
        self._states = {}
        shutil.rmtree(self._folder, ignore_errors=True)
        if numbers:
            replaced.replace(self._folder)
        self._states = self._open()
        log.info(fields("trunk_kept", pairs=len(self._states), of=len(pairs),
                        mib=self.kept_bytes / 2**20))  # fmt: skip

    def _fitting(
        self, pairs: Sequence[PairTokens], budget_bytes: int
    ) -> tuple[dict[bytes, int], dict[bytes, slice]]:
        """The pairs that fit, by digest: their numbers, and where their states lie."""
        width = self._hidden * torch.empty((), dtype=self._dtype).element_size()
        numbers: dict[bytes, int] = {}
        parts: dict[bytes, slice] = {}
        end = 0
        for number, pair in enumerate(pairs):
            digest, length = pair_digest(pair), num_tokens(pair)
            if digest not in numbers and (end + length) * width <= budget_bytes:
                numbers[digest] = number
                parts[digest] = slice(end, end + length)
                end += length
        return numbers, parts

    def _open(self) -> dict[bytes, Tensor]:
        """Read the index and map the states; empty where they are damaged or of another key."""
        path = self._folder / "index.json"
        if not path.exists():
            return {}
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["key"] != self._key:
                return {}
            total = sum(int(entry["tokens"]) for entry in index["pairs"])
            states = self._map(self._folder / "states.bin", total, writable=False)
            found, start = {}, 0
            for entry in index["pairs"]:
                part = states[start : start + entry["tokens"]]
                if _sha256(part) != entry["sha256"]:
                    raise ValueError(f"the states of pair {entry['pair'][:12]} have changed")
                found[bytes.fromhex(entry["pair"])] = part
                start += entry["tokens"]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            log.warning(fields("trunk_cache_unreadable", folder=self._folder, error=error))
            return {}
        return found

    def _map(self, path: Path, num_rows: int, *, writable: bool) -> Tensor:
        numel = num_rows * self._hidden
        size = numel * torch.empty((), dtype=self._dtype).element_size()
        if writable:
            with path.open("wb") as file:
                reserve = getattr(os, "posix_fallocate", lambda fd, _, end: os.ftruncate(fd, end))
                reserve(file.fileno(), 0, size)
        elif path.stat().st_size != size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, not {size}")
        flat = torch.from_file(str(path), shared=writable, size=numel, dtype=self._dtype)
        return flat.view(num_rows, self._hidden)


def _sha256(part: Tensor) -> str:
    return hashlib.sha256(part.contiguous().view(torch.uint8).numpy().data).hexdigest()
