"""Attention by plain products beside torch's own, and who computes float32 products."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedpdpo.client.model import products
from fedpdpo.client.model.products import prefer_onednn, small_attention


@pytest.fixture
def switch() -> Iterator[Any]:
    found: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = found.fp32_precision
    found.fp32_precision = "none"
    yield found
    found.fp32_precision = before


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_plain_products_give_what_torchs_attention_gives(
    heads: int, key_heads: int, dtype: torch.dtype, most: float
) -> None:
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype).requires_grad_()

    query, key, value = some(3, heads, 5, 8), some(3, key_heads, 7, 8), some(3, key_heads, 7, 8)
    mask = torch.rand(3, 1, 5, 7, generator=draw) < 0.6
    mask[..., 0] = True
    weight = some(3, heads, 5, 8).detach()
    found = small_attention(query, key, value, mask, 0.3)
    exact = [part.detach().double().requires_grad_() for part in (query, key, value)]
    q, k, v = exact
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    pairs = [
        (found, expected),
        *zip(
            torch.autograd.grad((found * weight).sum(), (query, key, value)),
            torch.autograd.grad((expected * weight.double()).sum(), exact),
            strict=True,
        ),
    ]
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        assert float((ours.double() - theirs).detach().norm() / theirs.detach().norm()) < most


def test_a_row_that_sees_nothing_gives_no_nan_to_the_others() -> None:
    rows = torch.randn(1, 2, 3, 4, requires_grad=True)
    mask = torch.tensor([[[[True, True], [False, False], [True, False]]]])
    keys = torch.randn(1, 2, 2, 4, requires_grad=True)
    found = small_attention(rows, keys, keys, mask, 1.0)[:, :, [0, 2]].sum()
    assert all(part.isfinite().all() for part in torch.autograd.grad(found, (rows, keys)))


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("default_dtype")
def test_products_are_float32s_own_whoever_computes_them(switch: Any) -> None:
    prefer_onednn()
    one, other = (torch.randn(*shape, dtype=torch.float32) for shape in ((64, 300), (300, 80)))
    exact = one.double() @ other.double()
    assert float((one @ other - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.usefixtures("default_dtype")
def test_the_product_that_is_tried_is_of_float32(
    switch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_EXACT", 1e-12)
    assert not prefer_onednn()


def test_rounded_products_are_set_back(switch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_EXACT", 0.0)
    assert not prefer_onednn()
    assert switch.fp32_precision == "none"


def test_a_torch_without_the_switch_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    without = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(torch.backends, "mkldnn", without)
    assert not prefer_onednn()
    without.matmul = SimpleNamespace(fp32_precision="none")
    without.is_available = lambda: False
    assert not prefer_onednn()
    assert without.matmul.fp32_precision == "none"
