"""The local optimizer: AdamW with a learning rate for each part, its private moments kept."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedpdpo.client.policy import Policy
from fedpdpo.common.run import MethodSettings

_STATE = ("step", "exp_avg", "exp_avg_sq")


def optimizer_for(policy: Policy, method: MethodSettings) -> torch.optim.AdamW:
    """AdamW without weight decay over everything that the method trains."""
    private = policy.private
    parts = [
        (policy.lora(), method.lora_lr),
        (private.head.parameters(), method.head_lr),
        (private.bottleneck.parameters() if private.bottleneck else (), method.bottleneck_lr),
        (private.reward.parameters() if private.reward else (), method.reward_lr),
    ]
    groups = [
        {"params": trained, "lr": rate}
        for parameters, rate in parts
        if (trained := [parameter for parameter in parameters if parameter.requires_grad])
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def forget_shared(optimizer: torch.optim.AdamW, policy: Policy) -> None:
    """Drop the moments of LoRA: each round begins from an average that they do not belong to."""
    for parameter in policy.lora():
        optimizer.state.pop(parameter, None)


def private_moments(optimizer: torch.optim.AdamW, policy: Policy) -> dict[str, Tensor]:
    """The moments of the private parts, by `part.parameter/moment`, on the CPU."""
    moments = {}
    for name, parameter in policy.private.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu()
    return moments


def put_private_moments(
    optimizer: torch.optim.AdamW, policy: Policy, moments: Mapping[str, Tensor]
) -> None:
    """Set what `private_moments` gave. Raises KeyError where a moment is missing."""
    for name, parameter in policy.private.named_parameters():
        if f"{name}/step" in moments:
            optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"]
                .to("cpu" if key == "step" else parameter.device)
                .clone()
                for key in _STATE
            }
