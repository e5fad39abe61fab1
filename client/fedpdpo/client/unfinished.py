"""A round that is being trained, as of the last step saved.

    STATE_DIR/unfinished/round-00003-step-0000120/
        shared.safetensors       LoRA at that step
        private.safetensors      head, bottleneck and reward head
        optimizer.safetensors    the moments of all of them
        state.json               the key, how far the round has come, threads, digests of the three

The key names pairs, seed and settings, and beside it stands the adapter that the round began from:
a round is gone on with only where it would have taken the same steps. A folder that is damaged is
left aside, and the round begins anew: nothing is lost but time.
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from fedpdpo.client.training.local_round import Point
from fedpdpo.client.vault import Vault
from fedpdpo.common.errors import BadState
from fedpdpo.common.files import sha256_of, whole_folder
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)

_PARTS = ("shared", "private", "optimizer")
_PLAIN = Vault()


@dataclass(frozen=True)
class UnfinishedRound:
    """What a round needs to be gone on with. Tensors by name, on the CPU."""

    point: Point
    shared: dict[str, Tensor]
    private: dict[str, Tensor]
    moments: dict[str, Tensor]
    threads: int


class Unfinished:
    """The folder of the round that is being trained; it holds one saved step at most."""

    def __init__(self, folder: Path, *, key: str, vault: Vault = _PLAIN) -> None:
        self._folder = folder
        self._vault = vault
        self._key = key

    def save(self, number: int, state: UnfinishedRound, *, begun_from: str) -> None:
        """Keep a step of a round, whole, in place of the one before. Raises StorageFull.

        `begun_from` names the adapter that the round began from.
        """
        before = list(self._folder.glob("round-*"))
        folder = self._folder / f"round-{number:05d}-step-{state.point.steps:07d}"
        with whole_folder(folder) as partial:
            for part, tensors in zip(
                _PARTS, (state.shared, state.private, state.moments), strict=True
            ):
                self._vault.save(tensors, partial / f"{part}.safetensors")
            written = {
                "key": self._key,
                "begun_from": begun_from,
                "round": number,
                "point": asdict(state.point),
                "threads": state.threads,
                "sha256": {part: sha256_of(partial / f"{part}.safetensors").hex()
                           for part in _PARTS},
            }  # fmt: skip
            (partial / "state.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
        for old in before:
            shutil.rmtree(old)

    def last(self, number: int, *, begun_from: str) -> UnfinishedRound | None:
        """The last step saved of a round; None where there is none to go on from."""
        found = sorted(self._folder.glob(f"round-{number:05d}-step-*"))
        if not found:
            return None
        folder = found[-1]
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            for part in _PARTS:
                if sha256_of(folder / f"{part}.safetensors").hex() != state["sha256"][part]:
                    raise ValueError(f"{part}.safetensors has changed")
            if (state["key"], state["begun_from"]) != (self._key, begun_from):
                log.warning(fields("round_begins_anew", round=number,
                                   reason="pairs, settings or adapter have changed"))  # fmt: skip
                return None
            shared, private, moments = (
                self._vault.load(folder / f"{part}.safetensors") for part in _PARTS
            )
            point = Point(**state["point"])
            return UnfinishedRound(point, shared, private, moments, int(state["threads"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, BadState) as error:
            log.warning(fields("round_begins_anew", round=number, damaged=folder, error=error))
            return None

    def clear(self) -> None:
        """Forget it: the round is complete, or another has begun."""
        shutil.rmtree(self._folder, ignore_errors=True)
