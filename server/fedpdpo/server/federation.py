"""The federation: who takes part, what each client shall do now, and what happens next.

Every public method may be called from any thread and leaves the state directory consistent when
the process dies at any point in it.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from safetensors.numpy import save_file
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedpdpo.common.errors import BadPayload, BadRequest, Mismatch, NotFound
from fedpdpo.common.files import sha256_of, whole_file
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run
from fedpdpo.server.averaging import Array, SpooledDelta, averaged, initial_adapter
from fedpdpo.server.presence import Presence
from fedpdpo.server.rounds import Phase, Turnout, sample
from fedpdpo.server.runs import open_run
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.store import (
    AdapterRow,
    ClientRow,
    DeltaRow,
    EvaluationRow,
    EventRow,
    RoundRow,
    RunRow,
    Store,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wait:
    """Nothing to do for now."""

    reason: str


@dataclass(frozen=True)
class Evaluate:
    """Measure the adapter of this version."""

    version: int


@dataclass(frozen=True)
class Train:
    """Train this round from the adapter of the round before."""

    round_number: int


@dataclass(frozen=True)
class Finish:
    """The run has ended with the adapter of this version."""

    version: int
    stopped: bool


Task = Wait | Evaluate | Train | Finish


class Federation:
    """One run. `clock` gives seconds since the epoch; `notify` is called after every change."""

    def __init__(
        self,
        store: Store,
        settings: ServerSettings,
        *,
        clock: Callable[[], float],
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.notify = notify
        self.lock = threading.RLock()
        self.run = open_run(store, settings)
        self.presence = Presence(clock, timeout_s=settings.client_timeout_s)

    # --- what is asked of the run -------------------------------------------------------------

    def check_run(self, run_id: str) -> None:
        """Raise Mismatch for another run's id."""
        if run_id != self.run.run_id:
            raise Mismatch(
                f"this server drives run {self.run.run_id}, not {run_id[:64] or '(none)'}; "
                "start the client with another --state-dir for another run"
            )

    def client(self, session: Session, client_id: str) -> ClientRow:
        """A client that has joined and not left. Raises NotFound for any other."""
        row = session.get(ClientRow, client_id)
        if row is None or row.left:
            raise NotFound(f"client {client_id[:64]} has not joined the run; join first")
        return row

    @property
    def layout(self) -> LoraLayout:
        """The shared tensors. Raises NotFound before the first client has fixed them."""
        if not self.run.lora_layout:
            raise NotFound("no client has joined yet; the LoRA layout is not fixed")
        return LoraLayout(tuple((spec.name, spec.shape) for spec in self.run.lora_layout))

    def version(self, session: Session) -> int | None:
        """The newest published adapter."""
        return session.scalar(select(func.max(AdapterRow.version)))

    def open_round(self, session: Session) -> RoundRow | None:
        """The round that is not published yet."""
        return session.scalar(select(RoundRow).where(RoundRow.published_at_s.is_(None)))

    def turnout(self, session: Session, opened: RoundRow) -> Turnout:
        """Who was asked in a round, who answered, who left."""
        pushed = session.scalars(
            select(DeltaRow.client_id).where(DeltaRow.round_number == opened.number)
        )
        gone = session.scalars(select(ClientRow.client_id).where(ClientRow.left.is_(True)))
        return Turnout(frozenset(opened.sampled), frozenset(pushed), frozenset(gone))

    def active(self, session: Session) -> list[str]:
        """Clients that have joined, not left, and been heard lately; sorted."""
        here = session.scalars(select(ClientRow.client_id).where(ClientRow.left.is_(False)))
        return sorted(client_id for client_id in here if self.presence.is_here(client_id))

    def phase(self, session: Session) -> Phase:
        """Where the run is."""
        row = session.scalars(select(RunRow)).one()
        if row.stopped:
            return Phase.STOPPED
        if row.finished:
            return Phase.FINISHED
        if self.open_round(session) is not None:
            return Phase.TRAINING
        return Phase.EVALUATING if self.version(session) == self.run.num_rounds else Phase.WAITING

    def reading(self) -> AbstractContextManager[Session]:
        """A session to read with."""
        return self.store.session()

    def record(self, session: Session, kind: str, **values: object) -> None:
        """Write an event to the session's transaction and to the log."""
        line = fields(kind, **values)
        log.info(line)
        message = line.partition(" ")[2]
        session.add(EventRow(at_s=self.clock(), kind=kind, message=message))

    # --- clients ------------------------------------------------------------------------------

    def join(
        self,
        client_id: str,
        *,
        backbone_fingerprint: str,
        tokenizer_fingerprint: str,
        layout: LoraLayout,
        num_train_pairs: int,
        num_eval_pairs: int,
    ) -> Run:
        """Enter a client, or enter it again. The first one fixes fingerprints and layout.

        Raises BadRequest for a malformed count or fingerprint; Mismatch for another backbone,
        tokenizer or layout than the run's, or for a newcomer when the run has ended.
        """
        if not (1 <= num_train_pairs <= 10**9 and 1 <= num_eval_pairs <= 10**9):
            raise BadRequest(f"{num_train_pairs} training and {num_eval_pairs} held-out pairs")
        with self.lock, self.store.session() as session, session.begin():
            row = session.get(ClientRow, client_id)
            if row is None and self.phase(session) in (Phase.FINISHED, Phase.STOPPED):
                raise Mismatch(f"run {self.run.run_id} has ended; ask its operator for another")
            if not self.run.lora_layout:
                self._fix(session, client_id, backbone_fingerprint, tokenizer_fingerprint, layout)
            self._check_same(backbone_fingerprint, tokenizer_fingerprint, layout)
            kind = "client_joined" if row is None or row.left else "client_rejoined"
            if row is None:
                row = ClientRow(client_id=client_id, num_train_pairs=0, num_eval_pairs=0)
                session.add(row)
            row.left = False
            row.num_train_pairs, row.num_eval_pairs = num_train_pairs, num_eval_pairs
            self.record(session, kind, client=client_id, train_pairs=num_train_pairs)
            self.presence.heard(client_id)
        self.notify()
        return self.run

    def _fix(
        self,
        session: Session,
        client_id: str,
        backbone_fingerprint: str,
        tokenizer_fingerprint: str,
        layout: LoraLayout,
    ) -> None:
        specs = [{"name": name, "shape": shape} for name, shape in layout.shapes]
        fixed = {
            "backbone_fingerprint": backbone_fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "lora_layout": specs,
        }
        try:
            run = Run.model_validate(self.run.model_dump() | fixed)
        except ValueError as error:
            raise BadRequest("a fingerprint is not 64 hexadecimal digits") from error
        self._publish(session, 0, initial_adapter(layout, seed=run.seed))
        session.scalars(select(RunRow)).one().spec = run.model_dump(mode="json")
        self.record(session, "run_fixed", by=client_id, backbone=backbone_fingerprint[:12])
        self.run = run

    def _check_same(self, backbone: str, tokenizer: str, layout: LoraLayout) -> None:
        for what, theirs, ours in (
            ("backbone", backbone, self.run.backbone_fingerprint),
            ("tokenizer", tokenizer, self.run.tokenizer_fingerprint),
        ):
            if theirs != ours:
                raise Mismatch(
                    f"the client's {what} has fingerprint {theirs[:12]}, the run's {ours[:12]}; "
                    f"load the same weights and tokenizer as the others ({self.run.model})"
                )
        if difference := self.layout.difference(layout):
            raise Mismatch(f"the LoRA layout differs: {difference} (here the run, there you)")

    def leave(self, client_id: str) -> None:
        """Let a client go; it may join again. Raises NotFound."""
        with self.lock, self.store.session() as session, session.begin():
            self.client(session, client_id).left = True
            self.record(session, "client_left", client=client_id)
        self.notify()

    def heartbeat(self, client_id: str, *, activity: str, progress: float) -> None:
        """Note that a client lives and how far it is. Raises NotFound."""
        with self.store.session() as session:
            self.client(session, client_id)
        self.presence.heard(client_id, activity=activity[:100], progress=min(max(progress, 0), 1))

    def task(self, client_id: str) -> Task:
        """What a client shall do now. Asking changes nothing. Raises NotFound."""
        with self.lock, self.store.session() as session:
            self.client(session, client_id)
            self.presence.heard(client_id)
            phase = self.phase(session)
            version = self.version(session)
            if version is None:
                return Wait("the first adapter")
            if phase in (Phase.FINISHED, Phase.STOPPED):
                return Finish(version, stopped=phase is Phase.STOPPED)
            if session.get(EvaluationRow, (version, client_id)) is None:
                return Evaluate(version)
            opened = self.open_round(session)
            if (
                opened is not None
                and not opened.closing
                and client_id in self.turnout(session, opened).awaited
            ):
                return Train(opened.number)
            return Wait(self.waiting_for(session))

    def waiting_for(self, session: Session) -> str:
        """What the run waits for, for people; empty when it has ended."""
        phase = self.phase(session)
        if phase is Phase.TRAINING and (opened := self.open_round(session)) is not None:
            if opened.closing:
                return f"the average of round {opened.number}"
            return f"deltas of {', '.join(self.turnout(session, opened).awaited) or 'a quorum'}"
        if phase is Phase.EVALUATING:
            return f"evaluations of {', '.join(self._unmeasured(session))}"
        if phase is Phase.WAITING:
            if session.scalars(select(RunRow)).one().paused:
                return "the operator, who paused the run"
            missing = self.settings.min_clients - len(self.active(session))
            return f"{missing} more client{'s' * (missing > 1)}" if missing > 0 else "a round"
        return ""

    def _unmeasured(self, session: Session) -> list[str]:
        measured = session.scalars(
            select(EvaluationRow.client_id).where(EvaluationRow.version == self.version(session))
        )
        return sorted(set(self.active(session)) - set(measured))

    # --- what happens next --------------------------------------------------------------------

    def step(self) -> bool:
        """Do the next thing that is due: open, close or publish a round, or end the run.

        Returns whether anything was done. Raises StorageFull; the step can be tried again.
        """
        with self.lock, self.store.session() as session, session.begin():
            if self.phase(session) in (Phase.FINISHED, Phase.STOPPED):
                return False
            opened = self.open_round(session)
            if opened is None:
                done = self._open_or_end(session)
                deltas = None
            elif not opened.closing and not self._close(session, opened):
                return False
            else:
                done, deltas = True, self._deltas(session, opened.number)
        if deltas is not None and opened is not None:
            self._average(opened.number, deltas)
        if done:
            self.notify()
        return done

    def _open_or_end(self, session: Session) -> bool:
        version = self.version(session)
        if version is None:
            return False
        if version == self.run.num_rounds:
            last = session.get_one(RoundRow, version).published_at_s or 0.0
            overdue = self._age_s(last) > self.settings.evaluation_deadline_s
            if self._unmeasured(session) and not overdue:
                return False
            session.scalars(select(RunRow)).one().finished = True
            self.record(session, "run_finished", rounds=version)
            return True
        active = self.active(session)
        paused = session.scalars(select(RunRow)).one().paused
        if paused or len(active) < self.settings.min_clients:
            return False
        number = version + 1
        fraction, seed = self.settings.sample_fraction, self.run.seed
        sampled = sample(active, fraction=fraction, seed=seed, round_number=number)
        session.add(RoundRow(number=number, sampled=sampled, opened_at_s=self.clock()))
        self.record(session, "round_opened", round=number, clients=",".join(sampled))
        return True

    def _close(self, session: Session, opened: RoundRow) -> bool:
        overdue = self._age_s(opened.opened_at_s) > self.settings.round_deadline_s
        turnout = self.turnout(session, opened)
        if not turnout.may_close(quorum=self.settings.quorum, overdue=overdue):
            return False
        opened.closing = True
        late = ",".join(turnout.awaited) or "none"
        self.record(
            session, "round_closed", round=opened.number, deltas=len(turnout.pushed), late=late
        )
        return True

    def _deltas(self, session: Session, number: int) -> dict[str, SpooledDelta]:
        rows = session.scalars(select(DeltaRow).where(DeltaRow.round_number == number))
        return {
            row.client_id: SpooledDelta(self.store.delta_path(number, row.client_id), row.num_pairs)
            for row in rows
        }

    def _average(self, number: int, deltas: dict[str, SpooledDelta]) -> None:
        present = self.store.adapter_path(number - 1)
        refused = ""
        try:
            following = averaged(present, deltas, server_lr=self.settings.server_lr)
        except BadPayload as error:
            following, refused = averaged(present, deltas, server_lr=0.0), str(error)
        with self.lock, self.store.session() as session, session.begin():
            self._publish(session, number, following)
            session.get_one(RoundRow, number).published_at_s = self.clock()
            if refused:
                self.record(session, "average_refused", round=number, reason=refused)
            self.record(session, "adapter_published", version=number, clients=len(deltas))
        shutil.rmtree(self.store.round_folder(number), ignore_errors=True)

    def _publish(self, session: Session, version: int, adapter: dict[str, Array]) -> None:
        path = self.store.adapter_path(version)
        with whole_file(path) as partial:
            save_file(adapter, partial)
        size, digest = path.stat().st_size, sha256_of(path)
        session.add(AdapterRow(version=version, num_bytes=size, sha256=digest))

    def _age_s(self, since_s: float) -> float:
        """Seconds since a moment, not counting the time before this server was started."""
        return self.clock() - max(since_s, self.presence.started_at_s)
