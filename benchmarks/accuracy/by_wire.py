"""One row again through real processes and gRPC: the same bits as in one process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import WATCHED, Bench
from cell import Cell
from federation import Federation, Member
from fedpdpo.client.state import ClientState
from fedpdpo.common.files import sha256_of
from methods import Configured
from partitions import SETTINGS
from report import ROOT, BenchmarkError
from worlds import Pair


def same_bits(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Digests of all adapters and private parts, which both ways gave.

    Nothing is taken from the bench's cache: what other code put there may differ in its last bits.
    Raises BenchmarkError where a digest differs.
    """
    out = ROOT / "runs" / "accuracy-processes"
    shutil.rmtree(out, ignore_errors=True)
    setting = SETTINGS[cell.setting]
    clients = setting.clients(cell.seed, bench.data)
    places = bench.places(cell, setting, clients, (), cache=out / "cache")
    with bench.federation(cell, places) as together:
        folders = {client.name: client.state.folder for client in together.clients}
        expected = _digests(together.store.adapter_path(0).parent, folders, cell)
    (out / "data").mkdir(parents=True)
    members = []
    for name, pairs in clients.items():
        files = [out / "data" / f"{name}.{part}.jsonl" for part in ("train", "eval")]
        for file, some in zip(files, (pairs["train"], pairs["tune"][:WATCHED]), strict=True):
            _write(file, some)
        members.append(Member(name, files[0], files[1]))
    told = {
        "FEDPDPO_SERVER_SEED": str(cell.seed),
        "FEDPDPO_CLIENT_DTYPE": bench.dtype,
        "FEDPDPO_CLIENT_MAX_TOKENS": str(setting.max_tokens),
    }
    with _environment(cell.configured, told):
        Federation(out, model=bench.model, members=members, rounds=cell.rounds, threads=1).run()
    found = _digests(
        out / "server" / "adapters", {one.name: out / one.name for one in members}, cell
    )
    if found != expected:
        wrong = [name for name in expected if found[name] != expected[name]]
        raise BenchmarkError(f"other bits through processes: {', '.join(wrong)}")
    return {"cell": cell.told(), "digests": found}


def _digests(adapters: Path, folders: dict[str, Path], cell: Cell) -> dict[str, str]:
    found = {
        path.stem: sha256_of(path).hex() for path in sorted(adapters.glob("version-*.safetensors"))
    }
    if len(found) != cell.rounds + 1:
        raise BenchmarkError(f"{adapters} holds {len(found)} adapters, not {cell.rounds + 1}")
    for name, folder in folders.items():
        last = ClientState(folder, client_id=name).last_round()
        if last is None:
            raise BenchmarkError(f"{name} trained no round")
        found[name] = sha256_of(last[0].delta.with_name("private.safetensors")).hex()
    return found


def _write(path: Path, pairs: list[Pair]) -> None:
    path.write_text("".join(pair.record() for pair in pairs), encoding="utf-8")


@contextmanager
def _environment(wanted: Configured, more: dict[str, str]) -> Iterator[None]:
    """The settings as the commands read them from the environment."""
    method = wanted.method.model_dump(mode="json")
    told = {
        **{f"FEDPDPO_SERVER_METHOD__{key.upper()}": str(value) for key, value in method.items()},
        **{f"FEDPDPO_SERVER_{key.upper()}": str(value) for key, value in wanted.server.items()},
        **more,
    }
    before = dict(os.environ)
    os.environ |= told
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
