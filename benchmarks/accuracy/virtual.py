"""A federation in one process: the real server and the real clients, without a wire between them.

The clients share one backbone; each has its own private parts, optimizer and state directory. A
client's bytes and numbers are those that a process of its own has with as many threads.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from fedpdpo.client.entry import Process, new_trainer
from fedpdpo.client.heart import Heart
from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.machine import CoreShare, Neighbours
from fedpdpo.client.model.backbone import Backbone
from fedpdpo.client.model.lora import SharedState, layout_of
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.outcome import TrainedRound
from fedpdpo.client.preparation import client_seed
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.state import ClientState
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.client.transfer import Moved
from fedpdpo.client.worker import Worker
from fedpdpo.common.encoding import DeltaFormat
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.metrics import Metrics
from fedpdpo.common.payload import CHUNK_BYTES
from fedpdpo.common.run import Run
from fedpdpo.common.tensorfile import check_file
from fedpdpo.server import membership
from fedpdpo.server.federation import Federation
from fedpdpo.server.federation_service import packed
from fedpdpo.server.intake import Announced, Intake
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.steps import step
from fedpdpo.server.store import Store
from fedpdpo.server.tasks import Wait
from fedpdpo.v1 import federation_pb2 as pb

#: Nobody is missed who has to wait for the others' turns.
PATIENT = {"client_timeout_s": 1e9, "round_deadline_s": 1e9, "progress_deadline_s": 1e9,
           "evaluation_deadline_s": 1e9}  # fmt: skip


class DirectLink:
    """What a client has in the place of a connection: calls of the server's own functions."""

    def __init__(self, federation: Federation, client_id: str) -> None:
        self._federation = federation
        self._intake = Intake(federation)
        self._client_id = client_id
        self.format = DeltaFormat()

    def note(self, _: str) -> None:
        """Nothing is ever waited for."""

    def join(self, backbone: Backbone, layout: LoraLayout, *, num_train: int, num_eval: int) -> Run:
        """Enter the run."""
        newcomer = membership.Newcomer(
            client_id=self._client_id,
            backbone_fingerprint=backbone.fingerprint,
            tokenizer_fingerprint=backbone.tokenizer_fingerprint,
            layout=layout,
            num_train_pairs=num_train,
            num_eval_pairs=num_eval,
        )
        run, _ = membership.join(self._federation, newcomer)
        return run

    def assignment(self) -> pb.GetAssignmentResponse | None:
        """What to do now; None while there is nothing."""
        task = self._federation.task(self._client_id)
        return None if isinstance(task, Wait) else packed(task)

    def pull(self, version: int, path: Path, _layout: LoraLayout, _moved: Moved) -> None:
        """Copy an adapter."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._federation.store.adapter_path(version), path)

    def push(self, trained: TrainedRound, layout: LoraLayout, _moved: Moved) -> None:
        """Hand in a delta."""
        content = trained.delta.read_bytes()
        sha256 = check_file(trained.delta, self.format.contents(layout))
        report = asdict(trained.report)
        delta = Announced(
            self._client_id, trained.number, trained.num_pairs, len(content), sha256, report
        )
        receiver = self._intake.receiver(delta)
        if receiver is not None:
            with receiver:
                for at in range(0, len(content), CHUNK_BYTES):
                    receiver.write(at, content[at : at + CHUNK_BYTES])
                self._intake.accept(delta, receiver)

    def report(self, version: int, *, num_pairs: int, views: dict[str, Metrics]) -> None:
        """Hand in held-out metrics."""
        self._intake.evaluation(self._client_id, version=version, num_pairs=num_pairs, views=views)

    def leave(self) -> None:
        """Leave."""
        membership.leave(self._federation, self._client_id)


@dataclass(frozen=True)
class Place:
    """A client of a cell: its name and its pairs, prepared."""

    name: str
    sets: dict[str, PairSet]


class VirtualClient:
    """One client: what fedpdpo-client is made of, on a backbone that others use too."""

    def __init__(
        self, place: Place, federation: Federation, policy: Policy, backbone: Backbone, folder: Path
    ) -> None:
        self.name = place.name
        self.sets = place.sets
        run = federation.run
        seed = client_seed(run.seed, self.name)
        self.policy = policy.with_private_parts(run.method, seed=seed)
        self.link = DirectLink(federation, self.name)
        self.run = self.link.join(backbone, layout_of(policy.peft_model),
                                  num_train=len(self.sets["train"]),
                                  num_eval=len(self.sets["eval"]))  # fmt: skip
        settings = ClientSettings(
            server="none:0", data=folder, state_dir=folder, save_every_s=1e9, threads=1
        )
        self.state = ClientState(folder, client_id=self.name)
        process = Process(settings, Crew(), CoreShare(1, Neighbours()), Interruption())
        self.trainer = new_trainer(
            process, self.policy, self.run, self.sets["train"], client_id=self.name
        )
        heart = Heart(self.link, every_s=1e9)  # type: ignore[arg-type]
        self.worker = Worker(
            self.policy, self.run, self.state, self.link, heart, self.trainer,  # type: ignore[arg-type]
            train=self.sets["train"], held_out=self.sets["eval"],
        )  # fmt: skip

    def after_training(self, number: int) -> None:
        """What a client of another kind does beside training a round."""

    def take_global(self, version: int) -> SharedState:
        """Put the adapter of this version, which the client holds, into the common LoRA."""
        layout = layout_of(self.policy.peft_model)
        shared = SharedState.read(self.state.adapter_path(version), layout)
        shared.put_into(self.policy.peft_model)
        return shared

    def take_last(self) -> None:
        """Stand where the run ended: the last adapter, and the private parts."""
        self.take_global(self.run.num_rounds)

    def train_once_more(self) -> None:
        """The local epoch after the last average."""
        self.trainer.train(self.run.num_rounds + 1, lambda _: None)


class VirtualFederation:
    """A server and its clients, in turns, to the end of the run."""

    def __init__(
        self,
        folder: Path,
        settings: ServerSettings,
        policy: Policy,
        backbone: Backbone,
        places: Sequence[Place],
        *,
        kind: type[VirtualClient] = VirtualClient,
    ) -> None:
        own = folder / "server"
        own.mkdir()
        self.store = Store(own)
        self.federation = Federation(self.store, settings, clock=time.time, ticks=time.monotonic)
        self.clients = []
        for place in places:
            own = folder / place.name
            own.mkdir(parents=True)
            self.clients.append(kind(place, self.federation, policy, backbone, own))

    def run(self) -> None:
        """Train all rounds."""
        with closing(self.store):
            working = list(self.clients)
            while working:
                while step(self.federation):
                    pass
                working = [client for client in working if self._turn(client)]

    def _turn(self, client: VirtualClient) -> bool:
        while (assignment := client.link.assignment()) is not None:
            more = client.worker.do(assignment)
            if assignment.HasField("train"):
                client.after_training(assignment.train.round)
            if not more:
                return False
        return True
