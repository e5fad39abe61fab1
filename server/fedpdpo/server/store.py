"""The run where it lasts: rows of what is counted, safetensors files of what is summed.

FOLDER/run.sqlite                          run, clients, rounds, deltas, evaluations, events
FOLDER/adapters/version-00003.safetensors  the adapter that round 3 made
FOLDER/deltas/round-00004/CLIENT.safetensors  deltas of the open round
FOLDER/deltas/round-00004/.CLIENT.safetensors.DIGEST.part  one that is on its way
FOLDER/deltas/useless/                     those that are being removed

The rows may lie in PostgreSQL instead, and the files elsewhere, by `Elsewhere`; the folder then
holds copies, and what is on its way.
"""

import contextlib
import shutil
import threading
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from sqlalchemy import Engine, event, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from fedpdpo.common.errors import BadState, StorageAway
from fedpdpo.common.files import sha256_of
from fedpdpo.server.database import postgresql, sqlite
from fedpdpo.server.elsewhere import Elsewhere
from fedpdpo.server.rows import AdapterRow, DeltaRow, Row

DELTAS = "deltas"
ADAPTERS = "adapters"

#: Adapters that stay in the folder where all are kept elsewhere.
_COPIES = 4


class Store:
    """The files and the database of one run.

    `folder` is its state directory, and that of copies where `elsewhere`, an fsspec URL, is given.
    Without `database`, a URL of PostgreSQL, SQLite is used. Raises BadState where the database is
    damaged or written by another version, StorageAway while it does not answer.
    """

    def __init__(self, folder: Path, *, elsewhere: str = "", database: str = "") -> None:
        self.folder = folder
        self._elsewhere = Elsewhere(elsewhere) if elsewhere else None
        self.place = self._elsewhere.url if self._elsewhere else str(folder)
        self._useless = folder / DELTAS / "useless"
        self._oldest_round = 0
        self._fetching = threading.Lock()
        self._proven = set[Path]()
        self._rows_apart = bool(database)
        path = folder / "run.sqlite"
        if elsewhere and path.exists():
            raise BadState(f"{folder} is a state directory; give another --cache-dir")
        self._engine = postgresql(database) if database else sqlite(path)
        self.connections = 0
        event.listen(self._engine, "connect", self._count)
        try:
            self._check(str(self._engine.url) if database else str(path))
        except BaseException:
            self.close()
            raise
        for partial in folder.rglob(".*.partial"):
            partial.unlink()

    def _count(self, *_: object) -> None:
        """Another connection to the database was made: what happened before it may be news."""
        self.connections += 1

    def _check(self, where: str) -> None:
        advice = "restore it from a backup or begin anew with another --state-dir"
        try:
            Row.metadata.create_all(self._engine)
            with self.session() as session:
                for table in Row.metadata.sorted_tables:
                    session.execute(select(table).limit(1)).all()
            found = _damage(self._engine)
        except DatabaseError as error:
            raise BadState(
                f"the run's database {where} cannot be read ({error.orig}); {advice}"
            ) from error
        if found:
            raise BadState(f"the run's database {where} is damaged ({found}); {advice}")

    def session(self) -> Session:
        """A session; use it as `with store.session() as session, session.begin():` to write."""
        return Session(self._engine, expire_on_commit=False)

    def adapter_path(self, version: int) -> Path:
        """Where an adapter lies or will lie in the folder."""
        return self.folder / ADAPTERS / f"version-{version:05d}.safetensors"

    def delta_path(self, round_number: int, client_id: str) -> Path:
        """Where a delta lies or will lie in the folder; `client_id` must be checked."""
        return self.round_folder(round_number) / f"{client_id}.safetensors"

    def round_folder(self, round_number: int) -> Path:
        """Where a round's deltas lie in the folder."""
        return self.folder / DELTAS / f"round-{round_number:05d}"

    def keep(self, content: Path, path: Path, sha256: bytes) -> None:
        """Copy a file to where the state is kept, if that is elsewhere, as that of a path.

        Durable when this returns. Raises StorageAway.
        """
        if self._elsewhere is not None:
            self._elsewhere.put(content, self._name(path), sha256)

    def adapter(self, row: AdapterRow) -> Path:
        """A published adapter's file. Raises BadState where it is lost, StorageAway."""
        return self._fetched(self.adapter_path(row.version), row)

    def delta(self, row: DeltaRow) -> Path:
        """An acknowledged delta's file. Raises BadState where it is lost, StorageAway."""
        return self._fetched(self.delta_path(row.round_number, row.client_id), row)

    def _fetched(self, path: Path, row: AdapterRow | DeltaRow) -> Path:
        """The file of a row.

        Where the rows lie apart from the files, these may be another run's: each is proven by its
        digest before its first use, and fetched again if it is a copy.
        """
        if path in self._proven and path.exists():
            return path
        with self._fetching:
            same = path.exists() and not (self._rows_apart and sha256_of(path) != row.sha256)
            if not same and self._elsewhere is None:
                what = "of another run, or damaged" if path.exists() else "missing"
                raise BadState(f"{path} is {what}; give the run's own --state-dir or a backup")
            if not same and self._elsewhere is not None:
                name, size = self._name(path), row.num_bytes
                self._elsewhere.get(name, path, num_bytes=size, sha256=row.sha256)
                self._remove_copies(but=path)
            self._proven.add(path)
            return path

    def _name(self, path: Path) -> PurePosixPath:
        return PurePosixPath(path.relative_to(self.folder).as_posix())

    def holds_adapters(self) -> bool:
        """Whether there are adapters, be they of this run or not."""
        if self._elsewhere is not None:
            return self._elsewhere.holds(ADAPTERS)
        return any((self.folder / ADAPTERS).glob("*"))

    def put_aside(self, *, but: Collection[Path], from_round: int) -> None:
        """Make all deltas useless but some, and but what came of those from a round on.

        That takes no time; `remove_useless` gives their space back, which does. What a full disk
        leaves where it is, the next call puts aside. Elsewhere those before the round go.
        """
        self._oldest_round = from_round
        with contextlib.suppress(OSError):
            self._useless.mkdir(parents=True, exist_ok=True)
            for folder in self._useless.parent.glob("round-*"):
                number = _number(folder)
                for path in list(folder.iterdir()):
                    coming = number >= from_round and path.name.startswith(".")
                    if path not in but and not coming:
                        path.replace(self._useless / f"{number}{path.name}")
                if number < from_round and not any(folder.iterdir()):
                    folder.rmdir()

    def remove_useless(self) -> None:
        """Remove what was put aside, and copies of old adapters.

        What does not answer elsewhere, the next call removes.
        """
        shutil.rmtree(self._useless, ignore_errors=True)
        self._proven -= {path for path in self._proven.copy() if not path.exists()}
        if self._elsewhere is not None:
            self._remove_copies()
            with contextlib.suppress(StorageAway):
                self._elsewhere.remove_folders(
                    DELTAS, lambda name: _number(Path(name)) < self._oldest_round
                )

    def _remove_copies(self, *, but: Path | None = None) -> None:
        """Remove copies of old adapters but one. Who reads one reads on."""
        copies = sorted((self.folder / ADAPTERS).glob("version-*"), key=_number)
        for old in copies[:-_COPIES]:
            if old != but:
                old.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()


def _number(path: Path) -> int:
    """The round or version in a name."""
    return int(path.stem.partition("-")[2])


def _damage(engine: Engine) -> str:
    """What SQLite finds damaged in its file; empty where it is sound."""
    if engine.dialect.name != "sqlite":
        return ""
    with engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check").scalars().all()
    return "" if found == ["ok"] else str(found[0])
