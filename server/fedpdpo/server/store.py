"""The run on disk: SQLite for what is counted, safetensors files for what is summed.

STATE_DIR/run.sqlite                          run, clients, rounds, deltas, evaluations, events
STATE_DIR/adapters/version-00003.safetensors  the adapter that round 3 made
STATE_DIR/deltas/round-00004/CLIENT.safetensors  deltas of the open round
STATE_DIR/deltas/round-00004/.CLIENT.safetensors.DIGEST.part  one that is on its way
STATE_DIR/deltas/useless/                     those that are being removed
"""

import contextlib
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Engine, ForeignKey, create_engine, event, select
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from fedpdpo.common.errors import BadState, StorageFull

DELTAS = "deltas"
ADAPTERS = "adapters"


class Row(DeclarativeBase):
    """A row of the run's database."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


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


class Store:
    """The files and the database of one state directory.

    Raises BadState where the database is damaged or written by another version.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._path = state_dir / "run.sqlite"
        self._useless = state_dir / DELTAS / "useless"
        self._engine = _engine(self._path)
        try:
            Row.metadata.create_all(self._engine)
            with self.session() as session:
                for table in Row.metadata.sorted_tables:
                    session.execute(select(table).limit(1)).all()
                found = session.connection().exec_driver_sql("PRAGMA quick_check").scalars().all()
            if found != ["ok"]:
                raise BadState(
                    f"the run's database {self._path} is damaged ({found[0]}); restore it from a "
                    "backup or begin anew with another --state-dir"
                )
        except DatabaseError as error:
            raise BadState(
                f"the run's database {self._path} cannot be read ({error.orig}); "
                "restore it from a backup or begin anew with another --state-dir"
            ) from error
        for partial in state_dir.rglob(".*.partial"):
            partial.unlink()

    def session(self) -> Session:
        """A session; use it as `with store.session() as session, session.begin():` to write."""
        return Session(self._engine, expire_on_commit=False)

    def adapter_path(self, version: int) -> Path:
        """Where an adapter lies or will lie."""
        return self.state_dir / ADAPTERS / f"version-{version:05d}.safetensors"

    def delta_path(self, round_number: int, client_id: str) -> Path:
        """Where a delta lies or will lie; `client_id` must be checked."""
        return self.round_folder(round_number) / f"{client_id}.safetensors"

    def round_folder(self, round_number: int) -> Path:
        """Where a round's deltas lie."""
        return self.state_dir / DELTAS / f"round-{round_number:05d}"

    def put_aside(self, *, but: Collection[Path], from_round: int) -> None:
        """Make all deltas useless but some, and but what came of those from a round on.

        That takes no time; `remove_useless` gives their space back, which does. What a full disk
        leaves where it is, the next call puts aside.
        """
        with contextlib.suppress(OSError):
            self._useless.mkdir(parents=True, exist_ok=True)
            for folder in self._useless.parent.glob("round-*"):
                number = int(folder.name.removeprefix("round-"))
                for path in list(folder.iterdir()):
                    coming = number >= from_round and path.name.startswith(".")
                    if path not in but and not coming:
                        path.replace(self._useless / f"{number}{path.name}")
                if number < from_round and not any(folder.iterdir()):
                    folder.rmdir()

    def remove_useless(self) -> None:
        """Remove what was put aside."""
        shutil.rmtree(self._useless, ignore_errors=True)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", json_serializer=lambda v: json.dumps(v))

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "handle_error")
    def name_full_disk(context: Any) -> None:
        if isinstance(context.sqlalchemy_exception, OperationalError) and "full" in str(
            context.original_exception
        ):
            raise StorageFull(f"cannot write {path}: the disk is full; nothing was lost")

    return engine
