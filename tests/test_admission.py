"""How much one delta may move the others: norms, bounds, and rounds with a hostile delta."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fedpdpo.common.errors import BadRequest, Busy, Forbidden, Stalled, StorageFull
from fedpdpo.common.layout import LoraLayout
from fedpdpo.server.admission import norm_of, scales
from fedpdpo.server.pace import Pace
from fedpdpo.server.progress import Progress
from serving import LAYOUT, tensors
from world import NewWorld

NORMS = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


def test_the_norm_is_over_all_numbers(tmp_path: Path) -> None:
    layout = LoraLayout((("a.lora_A.weight", (300, 1000)), ("a.lora_B.weight", (7, 300))))
    rng = np.random.default_rng(0)
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in layout.shapes}
    save_file(found, tmp_path / "delta.safetensors")
    flat = np.concatenate([tensor.reshape(-1).astype(np.float64) for tensor in found.values()])
    assert norm_of(tmp_path / "delta.safetensors", layout) == pytest.approx(
        np.linalg.norm(flat), rel=1e-12
    )


def test_a_norm_beyond_float32_is_still_told(tmp_path: Path) -> None:
    save_file(tensors(3e38), tmp_path / "delta.safetensors")
    assert math.isfinite(norm_of(tmp_path / "delta.safetensors", LAYOUT))


@given(NORMS, st.floats(1, 100))
@example([0.0, 18.5, 2.225073858507e-311], 1.0)
def test_most_deltas_count_whole_and_none_more_than_the_bound(
    norms: list[float], bound: float
) -> None:
    clipped, most = scales(norms, bound=bound, over="clip")
    refused, _ = scales(norms, bound=bound, over="refuse")
    whole = [scale == 1 for scale in clipped]
    assert sum(whole) >= len(norms) / 2
    kept = [scale * norm for scale, norm in zip(clipped, norms, strict=True)]
    smallest = sys.float_info.min  # below it a product keeps fewer digits
    assert max(kept) <= most * (1 + 1e-12) + smallest
    assert refused == [float(is_whole) for is_whole in whole]


def test_two_deltas_and_a_bound_of_0_are_left_alone() -> None:
    assert scales([1.0, 1e9], bound=3, over="refuse")[0] == [1, 1]
    assert scales([1.0, 1.0, 1e9], bound=0, over="refuse")[0] == [1, 1, 1]
    assert scales([0.0, 0.0, 1.0], bound=3, over="refuse")[0] == [1, 1, 1]


@pytest.mark.parametrize(
    ("over", "expected", "kind"),
    [("clip", 5 / 3, "delta_clipped"), ("refuse", 1.0, "delta_refused")],
)
def test_a_delta_far_over_the_others_moves_them_no_further_than_the_bound(
    new_world: NewWorld, over: str, expected: float, kind: str
) -> None:
    world = new_world(min_clients=3, norm_bound=3.0, over_bound=over)
    for name in ("ada", "bea", "eve"):
        world.join(name)
    world.settle()
    for name in ("ada", "bea", "eve"):
        world.evaluate(name, 0)
    for name, value in (("ada", 1.0), ("bea", 1.0), ("eve", 100.0)):
        world.push(name, 1, value)
    world.settle()
    assert world.adapter(1) == pytest.approx(expected)
    assert world.events.count(kind) == 1
    (remark,) = world.federation.presence.remarks("eve", patience_s=1e9)
    assert remark.startswith(f"{kind.removeprefix('delta_')}: ")
    assert "is the bound" in remark


def test_a_delta_over_the_bound_is_told_once_however_often_averaging_is_tried(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world(min_clients=3)
    for name in ("ada", "bea", "eve"):
        world.join(name)
    world.settle()
    for name, value in (("ada", 1.0), ("bea", 1.0), ("eve", 100.0)):
        world.push(name, 1, value)

    def full(*_: object) -> None:
        raise StorageFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("fedpdpo.server.steps.write_adapter", full)
        for _ in range(3):
            with pytest.raises(StorageFull):
                world.settle()
    world.settle()
    assert world.adapter(1) == pytest.approx(5 / 3)
    assert world.events.count("delta_clipped") == 1


def test_a_client_cannot_claim_more_pairs_than_the_run_takes(new_world: NewWorld) -> None:
    world = new_world(max_pairs=100, min_clients=1)
    with pytest.raises(BadRequest, match="101 training pairs; this run takes 1 to 100"):
        world.join("eve", num_train_pairs=101)
    world.join("ada", num_train_pairs=100)
    world.settle()
    with pytest.raises(BadRequest, match="101 pairs"):
        world.push("ada", 1, 1.0, num_pairs=101)


def test_a_run_has_so_many_clients_and_no_more(new_world: NewWorld) -> None:
    world = new_world(max_clients=2)
    world.join("ada")
    world.join("bea")
    with pytest.raises(Forbidden, match="has its 2 clients"):
        world.join("eve")
    world.join("ada")


def test_the_first_client_cannot_ask_for_an_adapter_of_any_size(new_world: NewWorld) -> None:
    world = new_world(max_adapter_mib=1)
    large = LoraLayout((("a.lora_A.weight", (16, 20_000)),))
    with pytest.raises(BadRequest, match="this run takes 1 MiB at most"):
        world.join("eve", layout=large)
    world.join("ada")


def test_calls_have_a_pace() -> None:
    now = [0.0]
    pace = Pace(per_s=10, at_once=5, ticks=lambda: now[0])
    for _ in range(5):
        pace.check("eve")
    with pytest.raises(Busy, match="eve calls too often") as caught:
        pace.check("eve")
    pace.check("ada")
    assert 0 < caught.value.again_in_s <= 0.1 + 1e-9
    now[0] += caught.value.again_in_s
    pace.check("eve")
    with pytest.raises(Busy):
        pace.check("eve")


def test_those_who_called_long_ago_are_forgotten() -> None:
    now = [0.0]
    pace = Pace(per_s=1000, at_once=1, ticks=lambda: now[0])
    for number in range(30_000):
        now[0] += 1.0
        pace.check(str(number))
    assert len(pace._empty_at_s) <= 10_001


async def _progress(pieces: list[int], every_s: float) -> None:
    import asyncio

    progress = Progress(patience_s=0.5, least_bytes_per_s=1000)
    for piece in pieces:
        await progress.step(asyncio.sleep(every_s))
        progress.passed(piece)


def test_a_transfer_that_drips_is_given_up() -> None:
    import asyncio

    with pytest.raises(Stalled, match="are too few"):
        asyncio.run(_progress([1] * 20, 0.05))
    with pytest.raises(Stalled, match="nothing moved"):
        asyncio.run(_progress([1], 2))
    asyncio.run(_progress([1000] * 20, 0.05))
