"""The local optimizer: AdamW without weight decay, with a learning rate for each part.

The private head's moments are the client's largest state; they may be kept in 8 bits
(bitsandbytes) or factored into rows and columns (Adafactor).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fedpdpo.client.model.policy import Policy
from fedpdpo.common.errors import BadModel
from fedpdpo.common.run import MethodSettings

Moments = Literal["float32", "8bit", "factored"]

_FUSED = ("cpu", "cuda", "mps")


class LocalOptimizer:
    """Everything that the method trains, by name: LoRA as `lora.N`, private parts as they are.

    Raises BadModel for 8-bit moments where bitsandbytes is not installed.
    """

    def __init__(
        self, policy: Policy, method: MethodSettings, *, head_moments: Moments = "float32"
    ) -> None:
        self.named: dict[str, Tensor] = {
            f"lora.{number}": matrix for number, matrix in enumerate(policy.lora())
        }
        self.named |= policy.private.trained()
        rates = {
            "lora": method.lora_lr,
            "head": method.head_lr,
            "bottleneck": method.bottleneck_lr,
            "reward": method.reward_lr,
        }
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in self.named.items():
            groups.setdefault(name.partition(".")[0], []).append(parameter)
        head = groups.pop("head", []) if head_moments != "float32" else []
        self._fused = policy.device.type in _FUSED
        self._optimizers: list[Any] = [
            torch.optim.AdamW(
                [{"params": parts, "lr": rates[part]} for part, parts in groups.items()],
                weight_decay=0.0,
                fused=self._fused,
            )
        ]
        if head:
            self._optimizers.append(_light(head, rates["head"], head_moments))
        self._rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers
        ]

    def zero(self) -> None:
        """Drop all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self, *, rate_factor: float = 1.0) -> None:
        """Move by the gradients, at the method's rates times a factor."""
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * rate_factor
            optimizer.step()

    def gradients(self) -> list[Tensor]:
        """The gradients of all that trains in this step, zero where it has none yet."""
        found = []
        for parameter in self.named.values():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                found.append(parameter.grad)
        return found

    def pull(self, centre: Sequence[Tensor], strength: float) -> None:
        """Add the gradient of strength / 2 times LoRA's squared distance from a centre (FedProx).

        FedProx is Li et al. 2020, arXiv:1812.06127; `centre` has LoRA's matrices in their order.
        """
        shared = [part for name, part in self.named.items() if name.startswith("lora.")]
        with torch.no_grad():
            for parameter, anchor in zip(shared, centre, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=strength)

    def clip(self, most: float) -> float:
        """Scale all gradients together to a norm of at most `most`; gives the norm before."""
        gradients = [part for part in self.named.values() if part.grad is not None]
        return float(torch.nn.utils.clip_grad_norm_(gradients, most))

    def forget_shared(self) -> None:
        """Drop the moments of LoRA: a round begins from an average that they do not belong to."""
        for name, parameter in self.named.items():
            if name.startswith("lora."):
                self._optimizer_of(parameter).state.pop(parameter, None)

    def moments(self, *, shared: bool) -> dict[str, Tensor]:
        """The moments by `name/moment`, on the CPU: of LoRA, or of the private parts."""
        return {
            f"{name}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
            for name, parameter in self.named.items()
            if name.startswith("lora.") == shared
            for key, value in self._optimizer_of(parameter).state.get(parameter, {}).items()
        }

    def put_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Set what `moments` gave, save moments of another kind than this optimizer keeps."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, value in moments.items():
            part, _, key = name.partition("/")
            found.setdefault(part, {})[key] = value
        for part, values in found.items():
            parameter = self.named[part]
            optimizer = self._optimizer_of(parameter)
            if isinstance(optimizer, torch.optim.AdamW) == ("exp_avg_sq" in values):
                optimizer.state[parameter] = {
                    key: self._restored(key, value, parameter) for key, value in values.items()
                }

    def _restored(self, key: str, value: Tensor, parameter: Tensor) -> Tensor | int:
        if value.dtype == torch.int64:
            return int(value)
        return value.to(parameter.device if key != "step" or self._fused else "cpu").clone()

    def _optimizer_of(self, parameter: Tensor) -> Any:
        for optimizer in self._optimizers:
            if any(other is parameter for group in optimizer.param_groups
                   for other in group["params"]):  # fmt: skip
                return optimizer
        raise KeyError("this parameter is not trained")


def _light(parameters: list[Tensor], rate: float, moments: Moments) -> Any:
    if moments == "factored":
        from transformers.optimization import Adafactor

        return Adafactor(
            parameters,
            lr=rate,
            scale_parameter=False,
            relative_step=False,
            warmup_init=False,
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise BadModel(
            "--head-moments 8bit needs bitsandbytes: install this package's extra [quantized]"
        ) from error
    return AdamW8bit(parameters, lr=rate, weight_decay=0.0)
