"""What the database says of the run, within one transaction."""

import logging
from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedpdpo.common.errors import NotFound
from fedpdpo.common.log import fields
from fedpdpo.server.rounds import Phase
from fedpdpo.server.rows import (
    AdapterRow,
    ClientRow,
    DeltaRow,
    EvaluationRow,
    EventRow,
    RoundRow,
    RunRow,
)
from fedpdpo.server.stage import Stage

log = logging.getLogger(__name__)


class Ledger:
    """The run's rows, read and written through one session.

    What is put into `once_durable` is done to the stage once the transaction is on the disk.
    """

    def __init__(self, session: Session, *, clock: Callable[[], float], num_rounds: int) -> None:
        self.session = session
        self._clock = clock
        self._num_rounds = num_rounds
        self.once_durable: list[Callable[[Stage], None]] = []

    @property
    def run(self) -> RunRow:
        """The row of the run."""
        return self.session.scalars(select(RunRow)).one()

    def client(self, client_id: str) -> ClientRow:
        """A client that has joined and not left. Raises NotFound for any other."""
        row = self.session.get(ClientRow, client_id)
        if row is None or row.left:
            raise NotFound(f"client {client_id[:64]} has not joined the run; join first")
        return row

    def _version(self) -> int | None:
        return self.session.scalar(select(func.max(AdapterRow.version)))

    def adapter(self, version: int) -> AdapterRow:
        """A published adapter. Raises NotFound for any other."""
        row = self.session.get(AdapterRow, version)
        if row is None:
            raise NotFound(f"adapter version {version} is not published")
        return row

    def open_round(self) -> RoundRow | None:
        """The round whose average is not published yet."""
        return self.session.scalar(select(RoundRow).where(RoundRow.published_at_s.is_(None)))

    def deltas(self, round_number: int) -> list[DeltaRow]:
        """The acknowledged deltas that count in a round's average, by client and age."""
        found = select(DeltaRow).where(DeltaRow.counts_in == round_number)
        return list(self.session.scalars(found.order_by(DeltaRow.client_id, DeltaRow.round_number)))

    def deltas_from(self, round_number: int) -> list[DeltaRow]:
        """The acknowledged deltas that count in a round's average or in a later one's."""
        found = select(DeltaRow).where(DeltaRow.counts_in >= round_number)
        return list(self.session.scalars(found))

    def deltas_of(self, client_id: str, round_number: int) -> list[DeltaRow]:
        """A client's deltas that count in a round's average; one at most, once it is accepted."""
        found = select(DeltaRow).where(
            DeltaRow.counts_in == round_number, DeltaRow.client_id == client_id
        )
        return list(self.session.scalars(found))

    def sampled(self, number: int) -> frozenset[str]:
        """Clients that were asked in a round; none where there was no such round."""
        row = self.session.get(RoundRow, number)
        return frozenset(row.sampled) if row else frozenset()

    def stage(self) -> Stage:
        """How far the run is."""
        run, version, opened = self.run, self._version(), self.open_round()
        measured = select(EvaluationRow.client_id).where(EvaluationRow.version == version)
        stage = Stage(
            phase=Phase.WAITING,
            version=version,
            paused=run.paused,
            joined=self._clients(left=False),
            left=self._clients(left=True),
            measured=set(self.session.scalars(measured)),
        )
        if run.stopped:
            stage.phase = Phase.STOPPED
        elif run.finished:
            stage.phase = Phase.FINISHED
        elif opened is not None:
            stage.phase = Phase.TRAINING
            stage.round_number, stage.closing = opened.number, opened.closing
            stage.sampled = frozenset(opened.sampled)
            answers = select(DeltaRow.client_id).where(DeltaRow.round_number == opened.number)
            stage.answered = set(self.session.scalars(answers))
            stage.arrived = len(self.deltas(opened.number))
        elif version == self._num_rounds:
            stage.phase = Phase.EVALUATING
        return stage

    def _clients(self, *, left: bool) -> set[str]:
        found = select(ClientRow.client_id).where(ClientRow.left.is_(left))
        return set(self.session.scalars(found))

    def record(self, kind: str, **values: object) -> None:
        """Add an event to the transaction and to the log."""
        told = fields(kind, **values)
        log.info(told)
        self.session.add(EventRow(at_s=self._clock(), kind=kind, message=told.values_told))
