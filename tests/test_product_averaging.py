"""The mean of LoRA's products, cut to the rank."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedpdpo.common.errors import BadPayload
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.tensorfile import Array
from fedpdpo.server.averaging import Exact, SpooledDelta
from fedpdpo.server.product_averaging import averaged_products
from world import NewWorld, begin

LAYOUT = LoraLayout(
    (
        ("m.0.q.lora_A.weight", (3, 7)),
        ("m.0.q.lora_B.weight", (5, 3)),
        ("m.0.v.lora_A.weight", (3, 2)),
        ("m.0.v.lora_B.weight", (9, 3)),
    )
)
A, B = "m.0.q.lora_A.weight", "m.0.q.lora_B.weight"


def drawn(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in LAYOUT.shapes}


def written(folder: Path, name: str, tensors: dict[str, Array]) -> Path:
    save_file(tensors, folder / name)
    return folder / name


def product(tensors: dict[str, Array]) -> Exact:
    found: Exact = tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)
    return found


@pytest.mark.parametrize("server_lr", [1.0, 0.4])
def test_the_product_is_the_nearest_of_the_rank_to_the_mean_of_products(
    tmp_path: Path, server_lr: float
) -> None:
    present = drawn(0)
    adapter = written(tmp_path, "adapter", present)
    parts = [(drawn(1), 1.0, 1.0), (drawn(2), 3.0, 1.0), (drawn(3), 4.0, 0.5), (drawn(4), 9.0, 0.0)]
    deltas = [
        SpooledDelta(written(tmp_path, f"d{number}", delta), weight, scale)
        for number, (delta, weight, scale) in enumerate(parts)
    ]
    found = dict(averaged_products(adapter, deltas, LAYOUT, server_lr=server_lr))
    assert [(name, tensor.shape) for name, tensor in found.items()] == list(LAYOUT.shapes)
    mean = (1 - server_lr) * product(present)
    for delta, weight, scale in parts[:3]:
        own = {name: present[name] + np.float32(scale) * delta[name] for name in (A, B)}
        mean += server_lr * weight / 8 * product(own)
    u, sizes, v = np.linalg.svd(mean)
    nearest = (u[:, :3] * sizes[:3]) @ v[:3]
    assert product(found) == pytest.approx(nearest, abs=1e-5)


def test_what_all_clients_agree_in_is_kept_whole(tmp_path: Path) -> None:
    present, delta = drawn(0), drawn(1)
    adapter = written(tmp_path, "adapter", present)
    same = [SpooledDelta(written(tmp_path, name, delta), 2.0) for name in ("a", "b")]
    found = dict(averaged_products(adapter, same, LAYOUT, server_lr=1.0))
    moved = {name: present[name] + delta[name] for name in (A, B)}
    assert product(found) == pytest.approx(product(moved), abs=1e-4)
    assert np.linalg.norm(found[A]) == pytest.approx(np.linalg.norm(present[A]), rel=1e-5)


def test_without_a_delta_the_adapter_stays(tmp_path: Path) -> None:
    present = drawn(0)
    adapter = written(tmp_path, "adapter", present)
    unheard = SpooledDelta(written(tmp_path, "d", drawn(1)), 1.0, 0.0)
    for deltas in ([], [unheard]):
        found = dict(averaged_products(adapter, deltas, LAYOUT, server_lr=1.0))
        assert all((found[name] == present[name]).all() for name in present)


def test_lora_that_adds_nothing_yet_can_still_learn(tmp_path: Path) -> None:
    present = drawn(0) | {B: np.zeros((5, 3), np.float32)}
    nothing = {name: np.zeros(shape, np.float32) for name, shape in LAYOUT.shapes}
    adapter = written(tmp_path, "adapter", present)
    delta = SpooledDelta(written(tmp_path, "d", nothing), 1.0)
    found = dict(averaged_products(adapter, [delta], LAYOUT, server_lr=1.0))
    assert not found[B].any()
    assert np.linalg.matrix_rank(found[A]) == 3


def test_a_mean_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    huge = {name: np.full(shape, 3e38, np.float32) for name, shape in LAYOUT.shapes}
    adapter = written(tmp_path, "adapter", huge)
    deltas = [SpooledDelta(written(tmp_path, "d", huge), 1.0)]
    with pytest.raises(BadPayload, match="infinite"):
        dict(averaged_products(adapter, deltas, LAYOUT, server_lr=1.0))


RAGGED = {
    "a matrix alone": ((A, (3, 7)),),
    "two A": ((A, (3, 7)), ("m.0.v.lora_A.weight", (3, 2))),
    "ranks that differ": ((A, (3, 7)), (B, (5, 4))),
}


@pytest.mark.parametrize("shapes", RAGGED.values(), ids=RAGGED)
def test_a_layout_that_is_not_of_layers_is_refused_before_it_can_stop_the_server(
    tmp_path: Path, new_world: NewWorld, shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> None:
    layout = LoraLayout(shapes)
    world = new_world(averaging="products")
    with pytest.raises(BadPayload, match=r"not the two matrices|no other matrix"):
        world.join("eve", layout=layout)
    world.join("ada")
    adapter = written(tmp_path, "x", {name: np.ones(shape, np.float32) for name, shape in shapes})
    with pytest.raises(BadPayload, match=r"not the two matrices|no other matrix"):
        dict(averaged_products(adapter, [], layout, server_lr=1.0))


def test_a_run_averages_what_its_setting_says(new_world: NewWorld) -> None:
    world = new_world(averaging="products", norm_bound=0)
    begin(world, "ada", "bea")
    before = world.adapter(0)
    for name in ("ada", "bea"):
        world.push(name, 1, 0.5)
    world.settle()
    content = {name: world.tensor(1, name) for name in (A, B)}
    start = {name: world.tensor(0, name) for name in (A, B)}
    expected = (start[B] + 0.5).astype(np.float64) @ (start[A] + 0.5).astype(np.float64)
    assert before == 0
    assert product(content) == pytest.approx(expected, abs=1e-5)
