"""Lean modules: the numbers and gradients of those they stand in for, and no others replaced."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fedpdpo.client.model.lean import make_lean
from fedpdpo.client.model.lora import lora_parameters
from tiny import save_tiny_model

#: Rounding, and next to none.
PRECISIONS = {torch.float32: 1e-6, torch.float64: 1e-13}
#: What a number of 8 significant bits is rounded by at most, as a share of it.
ROUNDING = 2**-8
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
ALL = {"lora": 4 * 5, "norm": 4 * 2 + 1, "gate": 4}


def model_of(
    folder: Path,
    *,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    config: dict[str, Any] | None = None,
    **lora: Any,
) -> Any:
    """A frozen model with LoRA whose every matrix, norm and bias is random."""
    save_tiny_model(folder, family=family, initializer_range=0.15, **(config or {}))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False).eval()
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS} | lora
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for matrix in peft_model.parameters():
            matrix.add_(0.2 * torch.randn(matrix.shape).to(matrix.dtype))
    return peft_model


def replaced(model: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if "forward" in vars(part)}


def couples(folder: Path, family: str, dtype: torch.dtype) -> list[tuple[str, Any, Any]]:
    """The lean modules of a model, each with the ordinary one that it was."""
    ordinary = model_of(folder, family=family, dtype=dtype)
    lean = copy.deepcopy(ordinary)
    assert make_lean(lean) == ALL
    return [
        (name, *(alone(part) for part in (lean_part, ordinary.get_submodule(name))))
        for name, lean_part in replaced(lean).items()
    ]


class Attention(nn.Module):
    """An attention layer with the angles of five positions."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.angles = 3 * torch.randn(1, 5, inner.head_dim // 2).repeat(1, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        turns = (self.angles.cos().to(x.dtype), self.angles.sin().to(x.dtype))
        mixed: Tensor = self.inner(x, position_embeddings=turns, attention_mask=None)[0]
        return mixed


def alone(module: Any) -> Any:
    """The module as one of a single tensor."""
    torch.manual_seed(0)
    return Attention(module) if hasattr(module, "head_dim") else module


def some_input(module: Any) -> Tensor:
    weight: Tensor = next(module.parameters())
    return torch.randn(2, 5, weight.shape[-1]).to(weight.dtype).requires_grad_()


def result(module: Any, x: Tensor, by_y: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients by the input and by what the module trains."""
    trained = [part for part in (x, *module.parameters()) if part.requires_grad]
    y = module(x)
    torch.manual_seed(0)
    by_y = torch.randn(y.shape).to(y.dtype) if by_y is None else by_y
    return [y.detach(), *torch.autograd.grad(y, trained, by_y)]


def off(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps to float32 go to float64."""
    before = torch.get_default_dtype()
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("llama", ALL),
        ("qwen2", ALL),
        ("mistral", ALL),
        ("qwen3", ALL | {"norm": 4 * 4 + 1}),
        ("gemma", {"lora": ALL["lora"]}),
        ("phi3", {"lora": 4 * 2, "norm": ALL["norm"]}),
        ("nemotron", {"lora": ALL["lora"]}),
        ("cohere2", {"lora": ALL["lora"], "gate": 4}),
    ],
)
def test_of_each_family_what_is_known_is_replaced(
    tmp_path: Path, family: str, counts: dict[str, int], dtype: torch.dtype
) -> None:
    model = model_of(tmp_path, family=family, dtype=dtype)
    assert make_lean(model) == counts
    assert len(replaced(model)) == sum(counts.values())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_lean_module_has_the_output_and_the_gradients_of_the_ordinary_one(
    tmp_path: Path, family: str
) -> None:
    for name, lean, ordinary in couples(tmp_path, family, torch.float32):
        x = some_input(ordinary)
        for found, expected in zip(result(lean, x), result(ordinary, x), strict=True):
            assert off(found, expected) < PRECISIONS[torch.float32], name


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_in_float64_they_are_the_same_to_the_last_digits(tmp_path: Path, family: str) -> None:
    for name, lean, ordinary in couples(tmp_path, family, torch.float64):
        x = some_input(ordinary)
        assert x.dtype == torch.float64
        for found, expected in zip(result(lean, x), result(ordinary, x), strict=True):
            assert off(found, expected) < PRECISIONS[torch.float64], name


@pytest.mark.usefixtures("in_float64")
def test_the_gradients_are_those_of_finite_differences(tmp_path: Path) -> None:
    last = {type(part): part for _, part, _ in couples(tmp_path, "qwen2", torch.float64)}
    assert len(last) == len(ALL)
    for module in last.values():
        x = some_input(module)[:1].detach().requires_grad_()
        trained = [part for part in module.parameters() if part.requires_grad]
        assert torch.autograd.gradcheck(lambda x, *_, of=module: of(x), (x, *trained))


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_lean_modules_are_at_most_two_roundings_further_from_the_exact_numbers(
    tmp_path: Path, autocast: bool
) -> None:
    for name, lean, ordinary in couples(tmp_path, "qwen2", torch.bfloat16):
        x = some_input(ordinary)
        by_y = torch.randn(ordinary(x).shape).to(x.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, usual = result(lean, x, by_y), result(ordinary, x, by_y)
        x = x.detach().double().requires_grad_()
        exact = result(copy.deepcopy(ordinary).double(), x, by_y.double())
        for own, other, expected in zip(found, usual, exact, strict=True):
            assert own.dtype == other.dtype
            assert off(own, expected) < off(other, expected) + 2 * ROUNDING, name


def test_a_module_changes_neither_its_input_nor_the_gradient_it_is_given(tmp_path: Path) -> None:
    for name, lean, _ in couples(tmp_path, "llama", torch.float32):
        x = some_input(lean)
        y = lean(x)
        by_y = torch.randn_like(y)
        before = x.detach().clone(), by_y.clone()
        result(lean, x, by_y)
        assert torch.equal(x, before[0]), name
        assert torch.equal(by_y, before[1]), name


def test_a_norms_float32_goes_into_a_bfloat16_layer_as_autocast_has_it(tmp_path: Path) -> None:
    lean = model_of(tmp_path, dtype=torch.bfloat16)
    make_lean(lean)
    layer = next(part for name, part in replaced(lean).items() if name.endswith("q_proj"))
    x = torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.bfloat16()))


def test_a_disabled_adapter_gives_the_base_layers_output(tmp_path: Path) -> None:
    model = model_of(tmp_path, family="qwen2")
    make_lean(model)
    layers = [part for part in replaced(model).values() if hasattr(part, "base_layer")]
    for layer in layers:
        x = some_input(layer)
        with model.disable_adapter():
            assert torch.equal(layer(x), layer.base_layer(x))
        assert not torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("trained", ["lora", "input"])
def test_what_is_not_trained_has_no_gradient_and_changes_no_others(
    tmp_path: Path, trained: str
) -> None:
    for name, lean, ordinary in couples(tmp_path, "llama", torch.float32):
        if trained == "lora" and not hasattr(lean, "base_layer"):
            continue
        x = some_input(lean).requires_grad_(trained == "input")
        for module in (lean, ordinary):
            for part in lora_parameters(module):
                part.requires_grad_(trained == "lora")
        for found, expected in zip(result(lean, x), result(ordinary, x), strict=True):
            assert off(found, expected) < PRECISIONS[torch.float32], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "relu"])
def test_a_feed_forward_layer_with_another_activation_is_left_alone(
    tmp_path: Path, act: str, dtype: torch.dtype
) -> None:
    model = model_of(tmp_path, config={"hidden_act": act}, dtype=dtype)
    assert make_lean(model) == {kind: num for kind, num in ALL.items() if kind != "gate"}


class NormByOnePlusWeight(nn.Module):
    """A norm as gemma has it, under the names of llama's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(width), requires_grad=False)
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (1 + self.weight) * x * inverse


class NormAroundTheMean(NormByOnePlusWeight):
    """A norm that takes the mean away first."""

    def forward(self, x: Tensor) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        inverse = torch.rsqrt(away.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * away * inverse


@pytest.mark.parametrize("kind", [NormByOnePlusWeight, NormAroundTheMean])
def test_a_norm_that_computes_something_else_is_left_alone(kind: type[nn.Module]) -> None:
    assert make_lean(nn.Sequential(kind(32))) == {}


def test_a_norm_that_is_trained_is_left_alone(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.get_decoder().norm.weight.requires_grad_(True)
    assert make_lean(model) == ALL | {"norm": ALL["norm"] - 1}


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}], ids=str
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_lora_of_another_kind_is_left_alone(tmp_path: Path, lora: dict[str, Any]) -> None:
    assert "lora" not in make_lean(model_of(tmp_path, **lora))


def test_lora_beside_a_second_adapter_is_left_alone(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert make_lean(model)["lora"] == ALL["lora"] - 4


def test_a_whole_lean_model_has_the_logits_and_gradients_of_the_ordinary_one(
    tmp_path: Path,
) -> None:
    ordinary = model_of(tmp_path, family="qwen2")
    lean = copy.deepcopy(ordinary)
    make_lean(lean)
    ids = torch.arange(4, 24).reshape(2, 10)
    results = []
    for model in (lean, ordinary):
        loss = model(ids, labels=ids).loss
        results.append([loss.detach(), *torch.autograd.grad(loss, lora_parameters(model))])
    for found, expected in zip(*results, strict=True):
        assert off(found, expected) < 1e-5
