"""What the database says of the run, within one transaction."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Stage:
    """How far a run is: its newest adapter, its open round (0: none) and whom that asked."""

    phase: Phase
    version: int | None
    paused: bool
    round_number: int = 0
    closing: bool = False
    sampled: frozenset[str] = frozenset()


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

    def answered(self, round_number: int) -> frozenset[str]:
        """Clients whose delta answers a round."""
        found = select(DeltaRow.client_id).where(DeltaRow.round_number == round_number)
        return frozenset(self.session.scalars(found))

    def sampled(self, number: int) -> frozenset[str]:
        """Clients that were asked in a round; none where there was no such round."""
        row = self.session.get(RoundRow, number)
        return frozenset(row.sampled) if row else frozenset()

    def turnout(self, stage: Stage, *, stuck: Collection[str] = ()) -> Turnout:
        """Who was asked in the open round, who answered, who left or is stuck; what came."""
        left = self.session.scalars(select(ClientRow.client_id).where(ClientRow.left.is_(True)))
        number = stage.round_number
        arrived = select(func.count()).where(DeltaRow.counts_in == number)
        return Turnout(
            sampled=stage.sampled,
            pushed=self.answered(number),
            gone=frozenset([*left, *stuck]),
            arrived=self.session.scalar(arrived) or 0,
        )

    def has_answered(self, client_id: str, number: int) -> bool:
        """Whether a client's delta of a round is here."""
        return self.session.get(DeltaRow, (number, client_id)) is not None

    def has_measured(self, client_id: str, version: int) -> bool:
        """Whether a client has measured an adapter."""
        return self.session.get(EvaluationRow, (version, client_id)) is not None

    def evaluators(self, version: int) -> set[str]:
        """Clients that have measured an adapter."""
        measured = select(EvaluationRow.client_id).where(EvaluationRow.version == version)
        return set(self.session.scalars(measured))

    def stage(self) -> Stage:
        """How far the run is."""
        run, version, opened = self.run, self._version(), self.open_round()
        phase = Phase.WAITING
        if run.stopped:
            phase = Phase.STOPPED
        elif run.finished:
            phase = Phase.FINISHED
        elif opened is not None:
            sampled = frozenset(opened.sampled)
            return Stage(
                Phase.TRAINING, version, run.paused, opened.number, opened.closing, sampled
            )
        elif version == self._num_rounds:
            phase = Phase.EVALUATING
        return Stage(phase, version, run.paused)

    def record(self, kind: str, **values: object) -> None:
        """Add an event to the transaction and to the log."""
        line = fields(kind, **values)
        log.info(line)
        message = line.partition(" ")[2]
        self.session.add(EventRow(at_s=self._clock(), kind=kind, message=message))
