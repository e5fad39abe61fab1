"""What the database says of the run, within one transaction."""

import logging
from collections.abc import Callable, Collection

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedpdpo.common.errors import NotFound
from fedpdpo.common.log import fields
from fedpdpo.server.rounds import Phase, Turnout
from fedpdpo.server.store import (
    AdapterRow,
    ClientRow,
    DeltaRow,
    EvaluationRow,
    EventRow,
    RoundRow,
    RunRow,
)

log = logging.getLogger(__name__)

ENDED = (Phase.FINISHED, Phase.STOPPED)


class Ledger:
    """The run's rows, read and written through one session."""

    def __init__(self, session: Session, *, clock: Callable[[], float], num_rounds: int) -> None:
        self.session = session
        self._clock = clock
        self._num_rounds = num_rounds

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

    def joined(self) -> list[str]:
        """Clients that have joined and not left, sorted."""
        here = select(ClientRow.client_id).where(ClientRow.left.is_(False))
        return sorted(self.session.scalars(here))

    def version(self) -> int | None:
        """The newest published adapter; None before the first."""
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

    def answered(self, round_number: int) -> frozenset[str]:
        """Clients whose delta answers a round."""
        found = select(DeltaRow.client_id).where(DeltaRow.round_number == round_number)
        return frozenset(self.session.scalars(found))

    def turnout(self, opened: RoundRow, *, stuck: Collection[str] = ()) -> Turnout:
        """Who was asked in a round, who answered, who left or is stuck; how many deltas came."""
        left = self.session.scalars(select(ClientRow.client_id).where(ClientRow.left.is_(True)))
        number = opened.number
        return Turnout(
            sampled=frozenset(opened.sampled),
            pushed=self.answered(number),
            gone=frozenset([*left, *stuck]),
            arrived=len(self.deltas(number)),
        )

    def evaluators(self, version: int) -> set[str]:
        """Clients that have measured an adapter."""
        measured = select(EvaluationRow.client_id).where(EvaluationRow.version == version)
        return set(self.session.scalars(measured))

    def phase(self) -> Phase:
        """Where the run is."""
        run = self.run
        if run.stopped:
            return Phase.STOPPED
        if run.finished:
            return Phase.FINISHED
        if self.open_round() is not None:
            return Phase.TRAINING
        return Phase.EVALUATING if self.version() == self._num_rounds else Phase.WAITING

    def record(self, kind: str, **values: object) -> None:
        """Add an event to the transaction and to the log."""
        line = fields(kind, **values)
        log.info(line)
        message = line.partition(" ")[2]
        self.session.add(EventRow(at_s=self._clock(), kind=kind, message=message))
