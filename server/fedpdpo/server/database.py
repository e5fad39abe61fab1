"""Where the rows lie: SQLite beside the payloads, or PostgreSQL, which outlives a machine.

A server has one connection. That to PostgreSQL takes an advisory lock of the schema as it begins,
and whatever ends the connection, and be it the server's death, gives the lock back: so a server
whose connection is gone cannot write before it holds the lock anew, and two never write at a time.
"""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from fedpdpo.common.errors import BadSettings, HeldElsewhere, StorageAway, StorageFull

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('fedpdpo ' || current_schema(), 0))"

#: A connection on which nothing comes is given up after 25 seconds, here and there.
_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_CONNECTING = {"connect_timeout": 10, "tcp_user_timeout": 25_000,
               "target_session_attrs": "read-write", **_KEEPALIVES}  # fmt: skip

#: What a database says that was made a standby meanwhile: SQLSTATE of read_only_sql_transaction.
_READ_ONLY = "25006"


def sqlite(path: Path) -> Engine:
    """A file, durable with each commit. What fails for want of space raises StorageFull."""
    engine = _engine(URL.create("sqlite", database=str(path)))

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


def postgresql(url: str) -> Engine:
    """A schema of a PostgreSQL database, for this process alone.

    Raises BadSettings where the URL is none of PostgreSQL or its driver is not installed. Using the
    engine raises StorageAway while the database does not answer or another server holds it.
    """
    try:
        found = make_url(url)
    except ArgumentError:
        raise BadSettings("--database is no SQLAlchemy URL: postgresql://USER@HOST/NAME") from None
    if found.get_backend_name() != "postgresql":
        raise BadSettings(
            f"--database is of {found.get_backend_name()}; PostgreSQL alone is supported. Without "
            "--database the run's rows lie in SQLite in --state-dir"
        )
    found = found.set(drivername="postgresql+psycopg")
    try:
        engine = _engine(found, connect_args=_CONNECTING)
    except ModuleNotFoundError:
        raise BadSettings(
            "--database needs psycopg; install this package with its extra [postgres]"
        ) from None
    place = found.render_as_string(hide_password=True)

    @event.listens_for(engine, "connect")
    def hold(connection: Any, _record: object) -> None:
        for name, value in _KEEPALIVES.items():
            connection.execute(f"SET tcp_{name} = {value}")
        (alone,) = connection.execute(_LOCK).fetchone()
        connection.commit()
        if not alone:
            connection.close()
            raise HeldElsewhere(f"another server holds the run in {place}")

    @event.listens_for(engine, "handle_error")
    def name_absence(context: Any) -> None:
        error = context.sqlalchemy_exception
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if getattr(context.original_exception, "sqlstate", "") == _READ_ONLY:
            lost = context.is_disconnect = True
        if not context.is_pre_ping and (
            lost or isinstance(error, (OperationalError, InterfaceError))
        ):
            told = " ".join(str(context.original_exception).split())
            raise StorageAway(f"the database {place} does not answer: {told}")

    return engine


def _engine(url: URL, **values: Any) -> Engine:
    return create_engine(
        url,
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        json_serializer=lambda value: json.dumps(value),
        **values,
    )
