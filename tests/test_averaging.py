"""The aggregation rule: worked numbers, windows, memory, finite values."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedpdpo.common.encoding import DeltaFormat, Encoding, encoded
from fedpdpo.common.errors import BadPayload
from fedpdpo.common.tensorfile import Array, write_tensors
from fedpdpo.server import averaging
from fedpdpo.server.averaging import SpooledDelta, initial_adapter
from serving import LAYOUT, tensors


def spooled(folder: Path, name: str, value: float, weight: float) -> SpooledDelta:
    path = folder / f"{name}.safetensors"
    save_file(tensors(value), path)
    return SpooledDelta(path, weight)


def averaged(
    adapter: Path, deltas: Sequence[SpooledDelta], *, server_lr: float
) -> dict[str, Array]:
    return whole(averaging.averaged(adapter, deltas, LAYOUT, server_lr=server_lr))


def whole(pieces: Iterable[tuple[str, Array]]) -> dict[str, Array]:
    """Tensors by name, each put together from its pieces."""
    found: dict[str, list[Array]] = {}
    for name, piece in pieces:
        found.setdefault(name, []).append(piece)
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    save_file(tensors(1.0), path)
    return path


def test_the_mean_is_weighted_by_pairs(tmp_path: Path, adapter: Path) -> None:
    deltas = [spooled(tmp_path, "a", 4.0, 1), spooled(tmp_path, "b", 8.0, 3)]
    for tensor in averaged(adapter, deltas, server_lr=1.0).values():
        assert (tensor == 1.0 + (4.0 + 3 * 8.0) / 4).all()


def test_a_delta_that_all_clients_send_is_added_as_it_is(tmp_path: Path, adapter: Path) -> None:
    deltas = [spooled(tmp_path, name, 0.1, pairs) for name, pairs in (("a", 3), ("b", 7))]
    for tensor in averaged(adapter, deltas, server_lr=1.0).values():
        assert (tensor == np.float32(1.0 + np.float64(np.float32(0.1)))).all()


def test_the_servers_step_scales_the_mean(tmp_path: Path, adapter: Path) -> None:
    deltas = [spooled(tmp_path, "a", 4.0, 5)]
    for tensor in averaged(adapter, deltas, server_lr=0.5).values():
        assert (tensor == 3.0).all()


def test_without_deltas_the_adapter_stays(adapter: Path) -> None:
    for tensor in averaged(adapter, [], server_lr=1.0).values():
        assert (tensor == 1.0).all()


#: A child's `ru_maxrss` begins with its parent's; VmHWM is its own.
MEASURE = """
import resource, sys
import subprocess
import sys
from pathlib import Path
from fedpdpo.common.layout import LoraLayout
from fedpdpo.server.averaging import SpooledDelta, averaged
folder = Path(sys.argv[1])
layout = LoraLayout((("m.0.q.lora_A.weight", (16, 16_384)),))
deltas = [SpooledDelta(path, 1) for path in folder.glob("delta-*")]
def peak():
    (line,) = (one for one in open("/proc/self/status") if one.startswith("VmHWM:"))
    return int(line.split()[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
before = peak()
for _ in averaged(folder / "adapter", deltas, layout, server_lr=1.0):
    pass
print(len(deltas), peak() - before)
"""


def test_memory_and_open_files_do_not_grow_with_the_number_of_clients(tmp_path: Path) -> None:
    content = {"m.0.q.lora_A.weight": np.ones((16, 16_384), np.float32)}
    save_file(content, tmp_path / "adapter")
    grown = {}
    for number in range(200):
        save_file(content, tmp_path / f"delta-{number}")
        if number + 1 in (4, 200):
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, str(tmp_path)],
                capture_output=True, text=True, check=True, timeout=120,
            )  # fmt: skip
            num_clients, kib = map(int, done.stdout.split())
            grown[num_clients] = kib
    assert 0 < grown[200] < grown[4] + 4096


def test_a_mean_that_is_not_finite_is_refused(tmp_path: Path, adapter: Path) -> None:
    deltas = [spooled(tmp_path, "a", 3e38, 1)]
    with pytest.raises(BadPayload, match="lower --server-lr"):
        averaged(adapter, deltas, server_lr=10.0)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_windows_of_any_size_give_the_same(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, encoding: Encoding
) -> None:
    fmt = DeltaFormat(encoding, topk_share=0.4)
    deltas = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sent = ((name, rng.normal(size=shape).astype("f4")) for name, shape in LAYOUT.shapes)
        path = tmp_path / f"delta{seed}"
        write_tensors(path, fmt.contents(LAYOUT), encoded(sent, fmt))
        deltas.append(SpooledDelta(path, 1.0 + seed))
    found = {}
    for most in (1, 7, 2**23):
        monkeypatch.setattr(averaging, "_WINDOW", most)
        found[most] = averaged(adapter, deltas, server_lr=1.0)
        assert list(found[most]) == [name for name, _ in LAYOUT.shapes]
    for name, shape in LAYOUT.shapes:
        assert found[1][name].shape == shape
        assert found[1][name].tobytes() == found[7][name].tobytes() == found[2**23][name].tobytes()


def test_the_first_adapter_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = whole(initial_adapter(LAYOUT, seed=1))
    monkeypatch.setattr(averaging, "_WINDOW", 1)
    again = whole(initial_adapter(LAYOUT, seed=1))
    assert all(first[name].tobytes() == again[name].tobytes() for name, _ in LAYOUT.shapes)


def test_the_first_adapter_adds_nothing_and_is_the_same_for_a_seed() -> None:
    first, again, other = (dict(initial_adapter(LAYOUT, seed=seed)) for seed in (1, 1, 2))
    a, b = "m.0.q.lora_A.weight", "m.0.q.lora_B.weight"
    assert not first[b].any()
    assert 0 < np.abs(first[a]).max() <= 3**-0.5
    assert np.array_equal(first[a], again[a])
    assert not np.array_equal(first[a], other[a])
