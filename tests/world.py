"""A run of the domain in a test's hand: its clock, its clients, and what a crash leaves."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save

from fedpdpo.common.metrics import Metrics
from fedpdpo.common.tensorfile import Array
from fedpdpo.server.federation import Federation
from fedpdpo.server.intake import Announced, Intake
from fedpdpo.server.membership import Newcomer, join
from fedpdpo.server.operations import events_after
from fedpdpo.server.rounds import Phase
from fedpdpo.server.steps import step
from fedpdpo.server.store import Store
from fedpdpo.server.tasks import Task
from serving import BACKBONE, LAYOUT, TOKENIZER, settings, tensors

METRICS = Metrics(0.5, 0.5, 0.5, 0.0, 0.7, 0.0)


class World:
    """A federation on a state directory, with a clock in hand; it can be closed and opened."""

    def __init__(
        self, folder: Path, *, places: Mapping[str, str] | None = None, **values: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.places = places or {}
        self.folder = folder
        self.values = values
        self.now = 1000.0
        self.clock_is_off = 0.0
        self.turns = 0
        self.told: list[Phase] = []
        self.open()

    def open(self) -> None:
        self.store = Store(self.folder, **self.places)
        wanted = settings(self.folder, **self.values)
        try:
            self.federation = Federation(
                self.store,
                wanted,
                clock=lambda: self.now + self.clock_is_off,
                ticks=lambda: self.now,
                notify=lambda: self.told.append(self.federation.stage.phase),
                turned=self._turned,
            )
        except BaseException:
            self.store.close()
            raise
        self.intake = Intake(self.federation)

    def _turned(self) -> None:
        self.turns += 1

    def reopen(self) -> None:
        """What a crash and a start do: all that was in memory is gone."""
        self.store.close()
        self.open()

    def join(self, name: str, **changed: Any) -> None:
        fields: dict[str, Any] = {
            "client_id": name,
            "backbone_fingerprint": BACKBONE,
            "tokenizer_fingerprint": TOKENIZER,
            "layout": LAYOUT,
            "num_train_pairs": 10,
            "num_eval_pairs": 5,
        }
        join(self.federation, Newcomer(**(fields | changed)))

    def settle(self) -> None:
        while step(self.federation):
            pass

    def task(self, name: str) -> Task:
        return self.federation.task(name)

    def waiting_for(self) -> str:
        return self.federation.waiting_for()

    def evaluate(self, name: str, version: int) -> None:
        self.intake.evaluation(name, version=version, num_pairs=5, views={"VIEW_GLOBAL": METRICS})

    def push(self, name: str, number: int, value: float, *, num_pairs: int = 10) -> None:
        content = save(tensors(value))
        digest = hashlib.sha256(content).digest()
        delta = Announced(name, number, num_pairs, len(content), digest, {"loss": 0.5})
        receiver = self.intake.receiver(delta)
        if receiver is None:
            return
        with receiver:
            if rest := content[receiver.held :]:
                receiver.write(receiver.held, rest)
            self.intake.accept(delta, receiver)

    @property
    def phase(self) -> Phase:
        return self.federation.stage.phase

    def adapter(self, version: int) -> float:
        return float(self.tensor(version, "m.0.q.lora_B.weight")[0, 0])

    def tensor(self, version: int, name: str) -> Array:
        found: Array = load_file(self.store.adapter_path(version))[name]
        return found

    @property
    def events(self) -> list[str]:
        return [event.kind for event in events_after(self.federation, 0)]


NewWorld = Callable[..., World]


def begin(world: World, *names: str) -> None:
    for name in names:
        world.join(name)
        world.evaluate(name, 0)
    world.settle()
