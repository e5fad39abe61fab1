"""What has been so far: rounds, and accuracies with their spread over clients.

What is over does not change any more, so it is read from the database once.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedpdpo.server.rows import DeltaRow, EvaluationRow, RoundRow

KINDS = ("implicit", "explicit", "combined")

#: So many rounds and versions are told of, the last ones.
_MOST = 200

#: Up to so many clients each one's accuracies are told beside their mean.
_FEW = 30


@dataclass(frozen=True)
class Spread:
    """An accuracy over clients, as shares, and whose the least and the greatest are."""

    mean: float
    worst: float
    best: float
    worst_client: str
    best_client: str


@dataclass(frozen=True)
class Measured:
    """What clients measured on an adapter: views to kinds of accuracy to their spread.

    by_client: client to view to kind to accuracy; empty where there are many clients.
    """

    version: int
    num_clients: int
    views: dict[str, dict[str, Spread]]
    by_client: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Part:
    """A delta in a round's average: which round it answers, and how its training went."""

    client_id: str
    answers: int
    num_pairs: int
    num_bytes: int
    norm: float
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class RoundSeen:
    """A round in short. `seconds` is the slowest training; None where nothing has come yet."""

    number: int
    opened_at_s: float
    published_at_s: float | None
    num_asked: int
    num_deltas: int
    missing: list[str]
    num_bytes: int
    loss: float | None
    slowest: str
    seconds: float | None


class History:
    """Reads a run's past, in sessions of its database."""

    def __init__(self) -> None:
        self._measured: dict[int, Measured] = {}
        self._rounds: dict[int, RoundSeen] = {}

    def measured(self, session: Session) -> list[Measured]:
        """All measured versions, the oldest first."""
        counted = select(EvaluationRow.version, func.count()).group_by(EvaluationRow.version)
        counts = {row[0]: row[1] for row in session.execute(counted)}
        versions = sorted(counts)[-_MOST:]
        for version in versions:
            known = self._measured.get(version)
            if known is None or known.num_clients != counts[version]:
                self._measured[version] = _measured(session, version)
        self._measured = {version: self._measured[version] for version in versions}
        return list(self._measured.values())

    def rounds(self, session: Session) -> list[RoundSeen]:
        """All rounds, the newest first."""
        found = select(RoundRow).order_by(RoundRow.number.desc()).limit(_MOST)
        told = [self._round(session, row) for row in session.scalars(found)]
        self._rounds = {one.number: one for one in told if one.published_at_s is not None}
        return told

    def _round(self, session: Session, row: RoundRow) -> RoundSeen:
        if row.number not in self._rounds:
            told = _round(row, parts_of(session, row.number))
            if row.published_at_s is None:
                return told
            self._rounds[row.number] = told
        return self._rounds[row.number]


def parts_of(session: Session, number: int) -> list[Part]:
    """The deltas in a round's average, by client."""
    found = select(DeltaRow).where(DeltaRow.counts_in == number).order_by(DeltaRow.client_id)
    return [
        Part(
            row.client_id,
            row.round_number,
            row.num_pairs,
            row.num_bytes,
            row.norm,
            *(float(row.report.get(name, 0.0)) for name in ("loss", "accuracy", "seconds")),
        )
        for row in session.scalars(found)
    ]


def _round(row: RoundRow, parts: list[Part]) -> RoundSeen:
    slowest = max(parts, key=lambda part: part.seconds, default=None)
    came = {part.client_id for part in parts if part.answers == row.number}
    return RoundSeen(
        row.number,
        row.opened_at_s,
        row.published_at_s,
        len(row.sampled),
        len(parts),
        sorted(set(row.sampled) - came),
        sum(part.num_bytes for part in parts),
        fmean(part.loss for part in parts) if parts else None,
        slowest.client_id if slowest else "",
        slowest.seconds if slowest else None,
    )


def _measured(session: Session, version: int) -> Measured:
    found = select(EvaluationRow).where(EvaluationRow.version == version)
    by_client = {row.client_id: accuracies(row.views) for row in session.scalars(found)}
    views = sorted({view for one in by_client.values() for view in one})
    spreads = {
        view: {kind: _spread({name: one[view][kind] for name, one in by_client.items()
                              if view in one}) for kind in KINDS}
        for view in views
    }  # fmt: skip
    few = by_client if len(by_client) <= _FEW else {}
    return Measured(version, len(by_client), spreads, few)


def accuracies(views: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A client's accuracies by view and kind."""
    return {
        name.removeprefix("VIEW_").lower(): {kind: view[f"{kind}_accuracy"] for kind in KINDS}
        for name, view in views.items()
    }


def _spread(shares: dict[str, float]) -> Spread:
    worst, best = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    return Spread(fmean(shares.values()), shares[worst], shares[best], worst, best)
