"""Rows in PostgreSQL, files in an object store: what lasts, what is awaited, who may write."""

import asyncio
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

import grpc
import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from fedpdpo.common.errors import (
    AlreadyPushed,
    BadSettings,
    BadState,
    HeldElsewhere,
    Mismatch,
    StorageAway,
    StorageFull,
)
from fedpdpo.common.log import start_logging
from fedpdpo.server import Server, daemon
from fedpdpo.server.daemon import serve
from fedpdpo.server.database import postgresql
from fedpdpo.server.elsewhere import Elsewhere
from fedpdpo.server.rounds import Phase
from fedpdpo.server.store import Store
from fedpdpo.server.tasks import Evaluate
from processes import until
from serving import Client, connected, running, settings, small_disk, take_part
from storage import Database, ObjectStore
from world import World, begin


class Far:
    """A bucket and a database of a test's own."""

    def __init__(self, folder: Path, objects: ObjectStore, rows: Database) -> None:
        self.objects, self.rows = objects, rows
        self.bucket, self.database = objects.bucket(), rows.new()
        self.elsewhere = f"s3://{self.bucket}/run"
        self._folder = folder
        self._worlds: list[World] = []

    def world(self, machine: str, **values: object) -> World:
        """The run as a machine sees it."""
        places = {"elsewhere": self.elsewhere, "database": self.rows.url(self.database)}
        self._worlds.append(World(self._folder / machine, places=places, **values))
        return self._worlds[-1]

    def names(self) -> list[str]:
        """All objects of the run."""
        found = self.objects.client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return [one["Key"].removeprefix("run/") for one in found]

    def close(self) -> None:
        """Close all stores."""
        for world in self._worlds:
            world.store.close()


@pytest.fixture
def far(
    tmp_path: Path,
    object_store: ObjectStore,
    database: Database,
) -> Iterator[Far]:
    made = Far(tmp_path, object_store, database)
    yield made
    made.close()


def test_another_machine_goes_on_where_the_first_was_lost(far: Far, tmp_path: Path) -> None:
    first = far.world("first")
    begin(first, "ada", "bea")
    first.push("ada", 1, 1.0)
    first.store.close()
    shutil.rmtree(tmp_path / "first")
    second = far.world("second")
    second.join("ada")
    second.join("bea")
    second.push("ada", 1, 1.0)
    second.push("bea", 1, 3.0)
    second.settle()
    assert second.adapter(1) == 2.0
    assert second.events.count("delta_received") == 2


def test_what_is_kept_is_named_by_its_digest_and_old_deltas_go(far: Far) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    (delta,) = [name for name in far.names() if name.startswith("deltas/")]
    assert delta.startswith("deltas/round-00001/ada.") and delta.endswith(".safetensors")
    world.push("bea", 1, 1.0)
    world.settle()
    assert not [name for name in far.names() if name.startswith("deltas/round-00001/")]
    assert len([name for name in far.names() if name.startswith("adapters/version-0000")]) == 2


def test_a_delta_that_counts_stays_where_later_ones_of_its_age_would_not_count(far: Far) -> None:
    world = far.world("one", rounds=4, close_after=1, late="fold", max_staleness=3)
    begin(world, "ada", "bea")
    for number in (1, 2):
        world.push("ada", number, 1.0)
        world.settle()
        world.evaluate("ada", number)
        world.settle()
    world.values |= {"close_after": 2}
    world.reopen()
    world.push("bea", 1, 1.0)
    world.store.close()
    other = far.world("two", rounds=4, close_after=2, late="drop")
    other.push("ada", 3, 1.0)
    other.settle()
    assert other.adapter(3) > 2.0


def test_what_came_whole_is_kept_where_the_object_store_does_not_answer(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")

    def away(*_: object, **__: object) -> None:
        raise StorageAway("s3://bucket does not answer")

    with monkeypatch.context() as patched, pytest.raises(StorageAway):
        patched.setattr(Elsewhere, "put", away)
        world.push("ada", 1, 1.0)
    (part,) = world.folder.rglob("*.part")
    assert part.stat().st_size > 0
    world.push("ada", 1, 1.0)
    assert world.events.count("delta_received") == 1


def test_copies_of_old_adapters_go_and_come_back(far: Far) -> None:
    world = far.world("one", rounds=6)
    begin(world, "ada", "bea")
    for number in range(1, 6):
        world.push("ada", number, 1.0)
        world.push("bea", number, 1.0)
        world.settle()
        for name in ("ada", "bea"):
            world.evaluate(name, number)
        world.settle()
    assert not world.store.adapter_path(0).exists()
    with world.federation.reading() as ledger:
        row = ledger.adapter(0)
    assert world.store.adapter(row).stat().st_size == row.num_bytes
    for version in range(6):
        with world.federation.reading() as ledger:
            assert world.store.adapter(ledger.adapter(version)).exists()
    assert len(list((world.folder / "adapters").iterdir())) <= 5


@pytest.mark.parametrize("content", [b"", b"x" * 10, None])
def test_a_damaged_or_lost_object_is_named(far: Far, tmp_path: Path, content: bytes | None) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")
    world.store.close()
    (key,) = (f"run/{name}" for name in far.names())
    if content is None:
        far.objects.client().delete_object(Bucket=far.bucket, Key=key)
    else:
        size = len(far.objects.client().get_object(Bucket=far.bucket, Key=key)["Body"].read())
        same_size = content.ljust(size, b"\0") if content else content
        far.objects.client().put_object(Bucket=far.bucket, Key=key, Body=same_size)
    with pytest.raises(BadState, match="damaged" if content is not None else "own --state-dir"):
        far.world("two")
    assert not list((tmp_path / "two").rglob("*.safetensors"))


def test_copies_of_another_run_are_not_taken_for_this_ones(far: Far, tmp_path: Path) -> None:
    other = World(tmp_path / "other", seed=5)
    begin(other, "ada", "bea")
    other.store.close()
    world = far.world("one")
    begin(world, "ada", "bea")
    expected = world.store.adapter_path(0).read_bytes()
    world.store.close()
    copies = tmp_path / "two" / "adapters"
    copies.mkdir(parents=True)
    foreign = shutil.copy(other.store.adapter_path(0), copies)
    assert Path(foreign).read_bytes() != expected
    assert far.world("two").store.adapter_path(0).read_bytes() == expected


def test_a_folder_with_another_runs_adapters_is_refused(tmp_path: Path, database: Database) -> None:
    name = database.new()
    for folder, seed in (("one", 0), ("other", 5)):
        places = {"database": database.url(name)} if folder == "one" else {}
        world = World(tmp_path / folder, places=places, seed=seed)
        begin(world, "ada", "bea")
        world.store.close()
    with pytest.raises(BadState, match="of another run, or damaged"):
        World(tmp_path / "other", places={"database": database.url(name)})


def test_a_state_directory_is_not_taken_for_copies(far: Far, tmp_path: Path) -> None:
    World(tmp_path / "one").store.close()
    with pytest.raises(BadState, match="give another --cache-dir"):
        far.world("one")


def test_a_full_disk_of_copies_is_called_that(far: Far, tmp_path: Path) -> None:
    there, content = Elsewhere(far.elsewhere), tmp_path / "content"
    content.write_bytes(b"x" * 2**18)
    sha256 = hashlib.sha256(content.read_bytes()).digest()
    name = PurePosixPath("adapters/version-00000.safetensors")
    there.put(content, name, sha256)
    with small_disk(tmp_path / "small") as small, pytest.raises(StorageFull, match="free some"):
        there.get(name, small / "copy", num_bytes=2**18, sha256=sha256)


def test_adapters_without_rows_are_not_taken_for_a_new_run(far: Far) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")
    world.store.close()
    far.database = far.rows.new()
    with pytest.raises(BadState, match="the database knows no run"):
        far.world("two")


def test_an_object_store_that_refuses_is_away_and_nothing_counts(far: Far) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")
    client = far.objects.client()
    kept = [(f"run/{name}", far.objects.client().get_object(
        Bucket=far.bucket, Key=f"run/{name}")["Body"].read()) for name in far.names()]  # fmt: skip
    for key, _ in kept:
        client.delete_object(Bucket=far.bucket, Key=key)
    client.delete_bucket(Bucket=far.bucket)
    with pytest.raises(StorageAway, match=r"s3://\S+ does not answer"):
        world.push("ada", 1, 1.0)
    assert "delta_received" not in world.events
    where = {"LocationConstraint": "eu-central-1"}
    client.create_bucket(Bucket=far.bucket, CreateBucketConfiguration=where)
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)
    world.settle()
    assert world.adapter(1) == 1.0


def test_a_database_that_restarts_is_away_meanwhile_and_the_run_goes_on(far: Far) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    far.rows.stop()
    try:
        with pytest.raises(StorageAway, match="does not answer"):
            world.push("bea", 1, 1.0)
    finally:
        far.rows.start()
    world.push("bea", 1, 1.0)
    world.settle()
    assert world.adapter(1) == 1.0
    assert world.events.count("delta_received") == 2


def test_one_server_holds_a_run_at_a_time(far: Far) -> None:
    first = far.world("first")
    with pytest.raises(StorageAway, match="another server holds the run"):
        far.world("second")
    first.store.close()
    far.world("second")


def test_a_server_whose_connection_is_gone_writes_no_more_once_another_holds_the_run(
    far: Far,
) -> None:
    first = far.world("first")
    begin(first, "ada", "bea")
    far.rows.cut_off(far.database)
    second = far.world("second")
    with pytest.raises(StorageAway, match="another server holds the run"):
        first.push("ada", 1, 9.0)
    with pytest.raises(StorageAway, match="another server holds the run"):
        first.settle()
    with pytest.raises(StorageAway, match="another server may go on"):
        first.task("ada")
    for name in ("ada", "bea"):
        second.join(name)
        second.push(name, 1, 1.0)
    second.settle()
    assert second.adapter(1) == 1.0
    second.store.close()
    first.settle()
    assert first.federation.stage.version == 1


def test_what_was_known_before_a_connection_was_lost_unnoticed_is_not_believed(far: Far) -> None:
    first = far.world("first")
    begin(first, "ada", "bea")
    far.rows.cut_off(far.database)
    second = far.world("second")
    for name in ("ada", "bea"):
        second.join(name)
        second.push(name, 1, 1.0)
    second.settle()
    second.store.close()
    with pytest.raises(StorageAway, match="is seen anew"):
        first.push("ada", 1, 9.0)
    with pytest.raises(AlreadyPushed):
        first.push("ada", 1, 9.0)
    assert first.task("ada") == Evaluate(1)


def test_a_database_that_takes_no_writes_for_a_while_is_away(far: Far) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")

    def shown() -> object:
        with far.rows.connect() as connection:
            return connection.execute("SHOW default_transaction_read_only").fetchone()

    def read_only(setting: str) -> None:
        with far.rows.connect() as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
            connection.execute("SELECT pg_reload_conf()")
        until(lambda: shown() == (setting,), setting)

    read_only("on")
    try:
        for _ in range(2):  # by the connection that was there, and by a new one
            with pytest.raises(StorageAway, match="does not answer"):
                world.push("ada", 1, 1.0)
    finally:
        read_only("off")
    for name in ("ada", "bea"):
        world.push(name, 1, 1.0)
    world.settle()
    assert world.adapter(1) == 1.0


@contextmanager
def lost_answers() -> Iterator[None]:
    """Commits are done and not told."""

    def lose_the_answer(_: Session) -> None:
        raise StorageAway("the answer to a commit was lost")

    event.listen(Session, "after_commit", lose_the_answer)
    try:
        yield
    finally:
        event.remove(Session, "after_commit", lose_the_answer)


def test_a_run_is_fixed_once_though_that_was_not_told(far: Far) -> None:
    world = far.world("one")
    with lost_answers(), pytest.raises(StorageAway):
        world.join("ada")
    with pytest.raises(Mismatch, match="backbone has fingerprint"):
        world.join("bea", backbone_fingerprint="e" * 64)
    world.join("bea")
    assert world.events.count("run_fixed") == 1


def test_a_commit_that_was_done_but_not_told_is_seen(far: Far) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    with lost_answers(), pytest.raises(StorageAway):
        world.push("bea", 1, 1.0)
    assert "bea" not in world.federation.stage.answered
    world.settle()
    assert world.adapter(1) == 1.0


def test_a_server_that_waits_for_a_run_ends_when_it_is_told_to(
    far: Far, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far.world("first")
    wanted = settings(tmp_path / "second", database=far.rows.url(far.database))

    async def main() -> None:
        stopping = asyncio.Event()
        serving = asyncio.create_task(serve(wanted, stopping=stopping))
        while "another server holds the run" not in caplog.text:
            await asyncio.sleep(0.05)
        stopping.set()
        await asyncio.wait_for(serving, 30)

    asyncio.run(main())


def test_a_server_from_which_another_has_taken_the_run_ends(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_OUSTED_S", 0.5)
    wanted = settings(tmp_path / "first", database=far.rows.url(far.database))
    with (
        pytest.raises(HeldElsewhere, match="another server holds the run"),
        ExitStack() as closing,
        Server(wanted) as server,
        connected(server.port) as (stub, _),
    ):
        Client(stub, "ada").join()
        far.rows.cut_off(far.database)
        second = World(tmp_path / "first", places={"database": far.rows.url(far.database)})
        closing.callback(second.store.close)
        with pytest.raises(grpc.RpcError):
            Client(stub, "bea").join()
        server.wait(60)


def test_two_runs_share_a_database_in_schemas_of_their_own(
    tmp_path: Path,
    database: Database,
) -> None:
    name = database.new()
    with database.connect(name) as connection:
        connection.execute("CREATE SCHEMA north; CREATE SCHEMA south")
    stores = []
    for schema in ("north", "south"):
        (tmp_path / schema).mkdir()
        url = f"{database.url(name)}?options=-csearch_path%3D{schema}"
        stores.append(Store(tmp_path / schema, database=url))
    for store in stores:
        store.close()
    with database.connect(name) as connection:
        found = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'deltas'")
        assert sorted(row[0] for row in found) == ["north", "south"]


def test_large_counts_fit(far: Far) -> None:
    world = far.world("one")
    begin(world, "ada", "bea")
    world.federation.traffic.received("ada", 2**40)
    world.push("ada", 1, 1.0)
    with world.federation.reading() as ledger:
        assert ledger.client("ada").bytes_received == 2**40


def test_a_whole_run_is_served_and_the_folder_of_copies_is_gone(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = far.rows.url(far.database)
    wanted = settings(tmp_path, state_dir=far.elsewhere, database=url, insecure=True)
    with running(wanted) as port, connected(port) as (stub, _):
        threads = [threading.Thread(target=take_part, args=(stub, name)) for name in ("ada", "bea")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [name.split(".")[0] for name in far.names()] == [
        f"adapters/version-{version:05d}" for version in range(3)
    ]
    assert not list(tmp_path.glob("fedpdpo-server-*"))
    world = far.world("later")
    assert world.phase is Phase.FINISHED


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: postgresql("nonsense"), "no SQLAlchemy URL"),
        (lambda _: postgresql("mysql://a@b/c"), "PostgreSQL alone"),
        (lambda _: Elsewhere("gopher://there/run"), "cannot be used"),
    ],
)
def test_urls_that_cannot_be_used_are_told(make: Callable[[None], object], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        make(None)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("ftp://me:opensesame@127.0.0.1:9/run", StorageAway),
        ("gopher://me:opensesame@there/run", BadSettings),
    ],
)
def test_who_may_reach_a_folder_elsewhere_is_not_told(url: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as error:
        Elsewhere(url)
    assert "opensesame" not in str(error.value)
    assert Elsewhere("memory://me:opensesame@there/run").url == "memory://there/run"


def test_a_state_dir_elsewhere_needs_a_database(tmp_path: Path) -> None:
    wanted = settings(tmp_path, state_dir="s3://bucket/run")
    with pytest.raises(BadSettings, match="needs --database"), running(wanted):
        pass


@pytest.mark.usefixtures("log")
def test_a_password_is_neither_logged_nor_told(
    tmp_path: Path,
    database: Database,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedpdpo.server.opening._PATIENCE_S", 1.5)
    start_logging("INFO")
    url = f"postgresql://fedpdpo:opensesame@127.0.0.1:{database.port}/absent"
    wanted = settings(tmp_path, database=url)
    with (
        pytest.raises(StorageAway, match='database "absent" does not exist') as error,
        running(wanted),
    ):
        pass
    told = capsys.readouterr()
    assert "waiting_for_storage" in told.err + told.out
    for text in (told.out, told.err, str(error.value), repr(wanted)):
        assert "opensesame" not in text
