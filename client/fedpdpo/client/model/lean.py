"""The decoder's small operations as functions that keep less for the backward pass.

transformers writes a norm, a gate or LoRA as a chain of elementwise operations, each of which
goes over memory and keeps its input. Here each is one function with its gradient by hand. A module
is replaced only where it is of a known kind and gives the same numbers as before on random input.
Shapes: T tokens, H hidden size, I, O width of a layer's input and output, R LoRA rank.
"""

from collections.abc import Callable
from inspect import signature
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_lean(model: nn.Module) -> dict[str, int]:
    """Replace the forward methods of modules of known kinds; gives how many of each were."""
    counts: dict[str, int] = {}
    for module in model.modules():
        for kind, forward in _candidates(module):
            if _same(module, forward):
                module.forward = MethodType(forward, module)
                counts[kind] = counts.get(kind, 0) + 1
    return counts


def _candidates(module: Any) -> list[tuple[str, Callable[..., Tensor]]]:
    if _is_lora(module):
        return [("lora", _lora_forward)]
    if hasattr(module, "variance_epsilon") and _is_plain_norm(module):
        return [("norm", _norm_forward)]
    if all(hasattr(module, name) for name in ("act_fn", "gate_proj", "up_proj", "down_proj")):
        return [("gate", _gate_forward)]
    return []


def _is_plain_norm(module: Any) -> bool:
    return len(signature(module.forward).parameters) == 1 and not module.weight.requires_grad


def _is_lora(module: Any) -> bool:
    from peft.tuners.lora import Linear

    return (
        type(module) is Linear
        and type(module.base_layer) is nn.Linear
        and not module.base_layer.weight.requires_grad
        and not module.fan_in_fan_out
        and not module.lora_variant
        and list(module.lora_A) == ["default"]
        and isinstance(module.lora_dropout["default"], nn.Identity)
        and module.lora_A["default"].bias is None
        and module.lora_B["default"].bias is None
    )


def _same(module: Any, forward: Callable[..., Tensor]) -> bool:
    weight = next(module.parameters())
    width = weight.shape[-1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, width, generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        try:
            expected, found = module(x), forward(module, x)
        except (RuntimeError, AttributeError, TypeError):
            return False
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    return bool((found - expected).norm() <= tolerance * expected.norm())


# --- LoRA -------------------------------------------------------------------------------------


def _lora_forward(module: Any, x: Tensor) -> Tensor:
    """Y = x W' + bias + (alpha / R) x A' B'. Shapes: (..., I) -> (..., O)."""
    base = module.base_layer
    x = x.to(base.weight.dtype)  # a norm may give float32 under autocast
    if module.disable_adapters:
        return F.linear(x, base.weight, base.bias)
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    y = _lora(x.flatten(0, -2), base.weight, base.bias, a, b, module.scaling["default"])
    return y.view(*x.shape[:-1], -1)


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        low = x @ a.to(x.dtype).T
        y = F.linear(x, weight, bias)
        y.addmm_(low, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        (by_y,) = gradients
        by_low = (by_y @ b.to(by_y.dtype)).mul_(ctx.scale)
        by_x = by_a = by_b = None
        if ctx.needs_input_grad[3]:
            by_a = (by_low.T @ x).to(a.dtype)
            by_b = (by_y.T @ low).mul_(ctx.scale).to(b.dtype)
        if ctx.needs_input_grad[0]:
            by_x = (by_y @ weight).addmm_(by_low, a.to(by_y.dtype))
        return by_x, None, None, by_a, by_b, None


# --- norm -------------------------------------------------------------------------------------


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    """W x / sqrt(mean(x^2) + eps), in float32 like transformers'. Shapes: (..., H) -> (..., H)."""
    return _norm(x, module.weight, module.variance_epsilon)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        y: Tensor = (wide * inverse).to(x.dtype).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide = x.float()
        by_normed = (gradients[0] * weight).float()
        along = (by_normed * wide).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])
        return by_normed.mul_(inverse).addcmul_(wide, along, value=-1).to(x.dtype), None, None


# --- gated feed-forward -----------------------------------------------------------------------


def _gate_forward(module: Any, x: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)). Shapes: (..., H) -> (..., H)."""
    y: Tensor = module.down_proj(_gate(module.gate_proj(x), module.up_proj(x)))
    return y


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        gate, up = ctx.saved_tensors
        by_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return by_gate, F.silu(gate).mul_(gradient)


_lora: Callable[..., Tensor] = _Lora.apply
_norm: Callable[..., Tensor] = _Norm.apply
_gate: Callable[..., Tensor] = _Gate.apply
