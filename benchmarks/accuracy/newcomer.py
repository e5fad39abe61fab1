"""A client that joins after the run: what the shared LoRA gives it against starting alone."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import Bench, accuracies
from cell import Cell
from fedpdpo.client.model.lora import SharedState, layout_of
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.preparation import client_seed
from fedpdpo.client.training.evaluation import margins
from fedpdpo.client.training.local_round import train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.common.run import Run
from methods import ALONE
from partitions import SETTINGS, Client
from virtual import Place
from worlds import FILM, Pair, pools

NAME = "newcomer"
PAIRS = (8, 32, 128)
EPOCHS = 4
HELD_OUT = 96
SETTING = "film-10"


def newcomer_cell(seed: int, rounds: int, rate: float) -> Cell:
    """The federation that a newcomer joins."""
    return Cell(SETTING, "fedpdpo", seed, rounds, rate=rate)


def newcomer(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Accuracies by number of pairs, with the federation's last adapter and with the first one.

    The newcomer likes warm sentences where the seed is even, harsh ones where it is odd; it trains
    alone for EPOCHS epochs, all parts of the method.
    """
    setting, seed = SETTINGS[cell.setting], cell.seed
    clients = setting.clients(seed, bench.data)
    places = bench.places(cell, setting, clients, ())
    pairs = _pairs_of(clients, bench.data, seed)
    (own,) = bench.places(cell, setting, {NAME: pairs}, ("tune",))
    found: dict[str, Any] = {}
    with bench.federation(cell, places) as federation:
        policy, _ = bench.policy(cell.configured)
        layout = layout_of(policy.peft_model)
        for start, version in (("shared", cell.rounds), ("alone", 0)):
            path = federation.store.adapter_path(version)
            adapter = SharedState.read(path, layout)
            run = federation.federation.run
            found[start] = {str(num): _joined(run, policy, adapter, own, num) for num in PAIRS}
    return {"cell": cell.told(), "taste": ["warm", "harsh"][seed % 2], "accuracy": found}


def _pairs_of(clients: dict[str, Client], data: Path, seed: int) -> Client:
    """Pairs drawn by the seed that no client of the federation trains on."""
    taken = {_answers(pair) for client in clients.values() for pair in client["train"]}
    film = pools(FILM, data)
    free = [pair for pair in film["train"] if _answers(pair) not in taken]
    wanted = {}
    for split, some, num in (("train", free, max(PAIRS)), ("tune", film["tune"], HELD_OUT)):
        wanted[split] = random.Random(seed).sample(some, min(num, len(some)))
    if seed % 2:
        wanted = {split: [pair.swapped() for pair in some] for split, some in wanted.items()}
    return wanted


def _answers(pair: Pair) -> frozenset[str]:
    return frozenset((pair.chosen, pair.rejected))


def _joined(
    run: Run, policy: Policy, adapter: SharedState, place: Place, num: int
) -> dict[str, Any]:
    method = run.method.model_copy(update=ALONE)
    seed = client_seed(run.seed, NAME)
    own = policy.with_private_parts(method, seed=seed)
    adapter.put_into(own.peft_model)
    optimizer = LocalOptimizer(own, method)
    pairs = _first(place.sets["train"], num)
    for epoch in range(1, EPOCHS + 1):
        train_round(own, pairs, run.model_copy(update={"method": method}), optimizer,
                    seed=seed, round_number=epoch)  # fmt: skip
    return accuracies(margins(own, place.sets["tune"], method)[0], method, marks=False)


def _first(pairs: PairSet, num: int) -> PairSet:
    return replace(pairs, pairs=pairs.pairs[:num], reference_logps=pairs.reference_logps[:num])
