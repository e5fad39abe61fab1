"""The tables: what is counted of a run."""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Row(DeclarativeBase):
    """A row of the run's database."""

    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON,
        list[str]: JSON,
        int: BigInteger().with_variant(Integer, "sqlite"),
    }


class RunRow(Row):
    """The one run of a state directory."""

    __tablename__ = "run"
    run_id: Mapped[str] = mapped_column(primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    paused: Mapped[bool] = mapped_column(default=False)
    stopped: Mapped[bool] = mapped_column(default=False)
    finished: Mapped[bool] = mapped_column(default=False)


class ClientRow(Row):
    """A client that joined; it stays here when it leaves."""

    __tablename__ = "clients"
    client_id: Mapped[str] = mapped_column(primary_key=True)
    num_train_pairs: Mapped[int]
    num_eval_pairs: Mapped[int]
    left: Mapped[bool] = mapped_column(default=False)
    bytes_received: Mapped[int] = mapped_column(default=0)
    bytes_sent: Mapped[int] = mapped_column(default=0)
    encoding: Mapped[str] = mapped_column(default="float32")
    topk_share: Mapped[float] = mapped_column(default=0.0)
    zstd: Mapped[bool] = mapped_column(default=False)


class RoundRow(Row):
    """A round; `closing` once its set of deltas is fixed, `published` once they are averaged."""

    __tablename__ = "rounds"
    number: Mapped[int] = mapped_column(primary_key=True)
    sampled: Mapped[list[str]]
    opened_at_s: Mapped[float]
    closing: Mapped[bool] = mapped_column(default=False)
    published_at_s: Mapped[float | None] = mapped_column(default=None)


class AdapterRow(Row):
    """A published global adapter."""

    __tablename__ = "adapters"
    version: Mapped[int] = mapped_column(primary_key=True)
    num_bytes: Mapped[int]
    sha256: Mapped[bytes]


class DeltaRow(Row):
    """An acknowledged delta: of the round that it answers, and the round whose average it is in."""

    __tablename__ = "deltas"
    round_number: Mapped[int] = mapped_column(ForeignKey("rounds.number"), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.client_id"), primary_key=True)
    counts_in: Mapped[int] = mapped_column(index=True)
    num_pairs: Mapped[int]
    num_bytes: Mapped[int]
    sha256: Mapped[bytes]
    norm: Mapped[float]
    report: Mapped[dict[str, Any]]


class EvaluationRow(Row):
    """What a client measured on an adapter: view name to metrics."""

    __tablename__ = "evaluations"
    version: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.client_id"), primary_key=True)
    num_pairs: Mapped[int]
    views: Mapped[dict[str, Any]]


class EventRow(Row):
    """Something that happened, numbered from 1."""

    __tablename__ = "events"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at_s: Mapped[float]
    kind: Mapped[str]
    message: Mapped[str]
