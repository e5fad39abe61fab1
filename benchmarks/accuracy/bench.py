"""Trains and measures cells, and keeps what they have in common."""

import functools
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from cell import ID_CHARS, Cell
from ditto import DittoClient
from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.heart import Heart
from fedpdpo.client.model.backbone import Backbone, load_backbone
from fedpdpo.client.model.objective import accuracy
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.preparation import prepare_all, tokens_of
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.training.evaluation import Margins, margins
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.common.run import LoraSettings, MethodSettings, Run
from fedpdpo.server.settings import ServerSettings
from methods import METHODS, Configured
from partitions import SETTINGS, Client, Setting
from virtual import PATIENT, Place, VirtualClient, VirtualFederation

#: Held-out pairs that a client measures in each round, as the protocol wants it.
WATCHED = 2

#: Of the frozen backbone on a CPU: the quicker one on this processor.
DTYPE = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


class Bench:
    """Runs cells on one core or a GPU; keeps the backbone in memory and prepared pairs on disk."""

    def __init__(self, *, model: str, data: Path, cache: Path, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        self._device = torch.device(device)
        self.dtype = DTYPE if device == "cpu" else "bfloat16"
        self.model = model
        self.data = data
        self._cache = cache
        self._lora: LoraSettings | None = None
        self._loaded: tuple[Policy, Backbone] | None = None
        self._checked = False

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and measure a cell."""
        begun = time.perf_counter()
        setting = SETTINGS[cell.setting]
        splits = ("tune",) if cell.split == "tune" else ("tune", cell.split)
        places = self.places(cell, setting, setting.clients(cell.seed, self.data), splits)
        prepared = time.perf_counter()
        measured = self._trained(cell, places)
        return {
            "cell": cell.told(),
            "dtype": self.dtype,
            "device": self._device.type,
            "clients": measured,
            "prepare_s": round(prepared - begun, 1),
            "seconds": round(time.perf_counter() - prepared, 1),
        }

    def policy(self, wanted: Configured) -> tuple[Policy, Backbone]:
        """The backbone with LoRA in it, loaded anew only for another LoRA."""
        if self._lora != wanted.lora or self._loaded is None:
            dtype = getattr(torch, self.dtype)
            backbone = load_backbone(self.model, device=self._device, dtype=dtype)
            run = Run(run_id="0" * 32, model=self.model, lora=wanted.lora, method=wanted.method,
                      num_rounds=1, seed=0)  # fmt: skip
            self._loaded = Policy(backbone, run, private_seed=0), backbone
            self._lora, self._checked = wanted.lora, False
        policy, backbone = self._loaded
        return policy.with_private_parts(wanted.method, seed=0), backbone

    def places(
        self,
        cell: Cell,
        setting: Setting,
        clients: dict[str, Client],
        splits: tuple[str, ...],
        *,
        cache: Path | None = None,
    ) -> list[Place]:
        """The clients with reference and trunk of their pairs, computed once for like cells."""
        policy, backbone = self.policy(cell.configured)
        kind = f"trunk-{policy.decoder.num_trunk_layers}"
        found = []
        for name, pairs in clients.items():
            folder = (cache or self._cache) / setting.name / f"seed-{cell.seed}" / name / kind
            folder.mkdir(parents=True, exist_ok=True)
            settings = ClientSettings(
                server="none:0", data=folder, state_dir=folder, max_tokens=setting.max_tokens
            )
            parts = {"train": pairs["train"], "eval": pairs["tune"][:WATCHED]}
            parts |= {split: pairs[split] for split in splits}
            tokens = {
                part: tokens_of([Preference(one.prompt, one.chosen, one.rejected) for one in some],
                                backbone, settings)
                for part, some in parts.items()
            }  # fmt: skip
            if not self._checked:
                policy.check(max(tokens["train"], key=len))
                self._checked = True
            heart = Heart(None, every_s=1e9)  # type: ignore[arg-type]
            with FileLock(folder / "lock"):
                found.append(Place(name, prepare_all(policy, backbone, tokens, settings, heart)))
        return found

    @contextmanager
    def federation(self, cell: Cell, places: list[Place]) -> Iterator[VirtualFederation]:
        """A federation of these clients that has run to its end; its files go with the block."""
        wanted = cell.configured
        policy, backbone = self.policy(wanted)
        kind = DittoClient if METHODS[cell.method].twin else VirtualClient
        folder = Path(tempfile.mkdtemp(prefix="fedpdpo-cell-"))
        try:
            settings = ServerSettings(
                state_dir=folder, model=self.model, rounds=cell.rounds,
                min_clients=len(places), seed=cell.seed, lora=wanted.lora, method=wanted.method,
                **(PATIENT | wanted.server),
            )  # fmt: skip
            federation = VirtualFederation(folder, settings, policy, backbone, places, kind=kind)
            federation.run()
            yield federation
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _trained(self, cell: Cell, places: list[Place]) -> dict[str, Any]:
        method = METHODS[cell.method]
        if not method.trains:
            return {place.name: _by_likelihood(place.sets[cell.split]) for place in places}
        found: dict[str, Any] = {}
        for together in [places] if method.shares else [[place] for place in places]:
            with self.federation(cell, together) as federation:
                for client in federation.clients:
                    found[client.name] = _measured(client, cell)
        return found


def _measured(client: VirtualClient, cell: Cell) -> dict[str, Any]:
    """Accuracies right after the last average, and after the local epoch if one follows."""
    settings, pairs = client.run.method, client.sets[cell.split]
    measure = functools.partial(margins, client.policy, pairs, settings)
    marks = cell.split == "test"
    client.take_last()
    found = {
        "pairs": len(pairs),
        "train_pairs": len(client.sets["train"]),
        "adapter_bytes": client.state.adapter_path(client.run.num_rounds).stat().st_size,
        "after": accuracies(measure()[0], settings, marks=marks),
    } | ({"ids": ids(pairs)} if marks else {})
    if cell.local:
        client.train_once_more()
        found["local"] = accuracies(measure()[0], settings, marks=marks)
    return found


def accuracies(found: Margins, settings: MethodSettings, *, marks: bool) -> dict[str, Any]:
    """Accuracies by each reward; with `marks` a letter a pair too: 1 right, 0 wrong, h a tie."""
    combined = found.combined(settings)
    shares: dict[str, Any] = {
        "implicit": accuracy(found.implicit),
        "explicit": accuracy(found.explicit),
        "combined": accuracy(combined),
        "chosen_shift": float(found.chosen_shift.mean()),
    }
    return shares | ({"right": _marks(combined)} if marks else {})


def ids(pairs: PairSet) -> str:
    """Names of pairs, one after the other; the same whichever of its answers is preferred."""
    told = [(pair.prompt, *sorted((pair.chosen, pair.rejected))) for pair in pairs.pairs]
    return "".join(hashlib.sha256(repr(one).encode()).hexdigest()[:ID_CHARS] for one in told)


def _marks(of: Tensor) -> str:
    return "".join("1" if one > 0 else "h" if one == 0 else "0" for one in of.tolist())


def _by_likelihood(pairs: PairSet) -> dict[str, Any]:
    """How the base model's own likelihood ranks the pairs; its rewards are zero, all of them."""
    likelier = pairs.reference_margins.double()
    share = accuracy(likelier)
    found = {"implicit": share, "explicit": 0.5, "combined": share, "chosen_shift": 0.0,
             "right": _marks(likelier)}  # fmt: skip
    return {"pairs": len(pairs), "train_pairs": 0, "after": found, "local": found,
            "adapter_bytes": 0, "ids": ids(pairs)}  # fmt: skip
