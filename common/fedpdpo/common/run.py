"""A run: the settings that all its clients share. See docs/method.md for the equations."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedpdpo.common.errors import BadRequest
from fedpdpo.common.layout import LoraLayout

_CLIENT_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")

#: The wire carries counts as uint32.
_MOST = 2**32 - 1

Rate = Annotated[float, Field(gt=0, le=1)]
Fingerprint = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class Closed(BaseModel):
    """A frozen model that refuses keys that it does not know and values that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraSettings(Closed):
    """The shared LoRA adapter."""

    rank: int = Field(16, ge=1, le=4096, description="LoRA rank R")
    alpha: float = Field(32.0, gt=0, description="LoRA adds (alpha / rank) B A")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        min_length=1,
        description="linear layers that get LoRA",
    )
    layers: str = Field(
        "last-8",
        pattern=r"^(all|last-[1-9][0-9]{0,8})$",
        description="layers that get LoRA: all, or last-K for the last K",
    )

    @property
    def last_layers(self) -> int:
        """How many of the last layers get LoRA; 0 means all."""
        return 0 if self.layers == "all" else int(self.layers.removeprefix("last-"))


class MethodSettings(Closed):
    """The personalised DPO objective, the private parts and the local optimizer."""

    beta: float = Field(0.1, gt=0, description="strength of the implicit reward")
    alpha: float = Field(1.0, ge=0, description="weight of the explicit reward")
    objective: Literal["combined", "separate"] = Field(
        "separate",
        description="DPO and reward losses, summed; or combined: one on the sum of the rewards",
    )
    schedule: Literal["joint", "private_then_shared"] = Field(
        "joint", description="train all at once, or the private parts first and then LoRA"
    )
    head: Literal["full", "lowrank", "frozen"] = Field("lowrank", description="private LLM head")
    head_rank: int = Field(16, ge=1, le=_MOST, description="rank of a lowrank head")
    bottleneck: int = Field(
        64, ge=0, le=_MOST, description="width M of the bottleneck adapter; 0: none"
    )
    reward_head: bool = Field(True, description="private explicit reward head")
    local_epochs: int = Field(
        1, ge=1, le=_MOST, description="passes over the local pairs in a round"
    )
    batch_pairs: int = Field(8, ge=1, le=_MOST, description="pairs in an optimizer step")
    lora_lr: Rate = Field(2e-4, description="AdamW learning rate of LoRA")
    head_lr: Rate = Field(
        2e-4, description="AdamW learning rate of the LLM head; a full one wants a tenth"
    )
    bottleneck_lr: Rate = Field(1e-4, description="AdamW learning rate of the bottleneck")
    reward_lr: Rate = Field(5e-3, description="AdamW learning rate of the reward head")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm bound of a step")
    warmup_rounds: float = Field(
        0.0, ge=0, description="rounds over which the rates rise from 0; parts count: 0.5"
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="rates after that: constant, or a cosine to 0 at the run's end"
    )
    proximal: float = Field(
        0.0, ge=0, description="FedProx: pull of LoRA to the global one, half mu times its distance"
    )
    lora_moments: Literal["restart", "keep"] = Field(
        "restart", description="AdamW's moments of LoRA: new in each round, or kept from the last"
    )
    anchor: float = Field(
        0.1,
        ge=0,
        description="weight of the chosen answers' likelihood, which keeps the model's language",
    )

    @property
    def reward_weight(self) -> float:
        """The weight of the explicit reward: alpha, or 0 without a reward head."""
        return self.alpha if self.reward_head else 0.0

    @model_validator(mode="after")
    def _has_what_it_schedules(self) -> "MethodSettings":
        private = self.head != "frozen" or self.bottleneck or self.reward_head
        if self.schedule == "private_then_shared" and not private:
            raise ValueError("the schedule private_then_shared needs a private part to train")
        return self


class TensorSpec(Closed):
    """One float32 tensor of the LoRA adapter."""

    name: str
    shape: tuple[int, ...]


class Run(Closed):
    """A run as the server keeps it and as clients learn it."""

    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    model: str = Field(min_length=1)
    backbone_fingerprint: Fingerprint = ""
    tokenizer_fingerprint: Fingerprint = ""
    lora: LoraSettings
    lora_layout: tuple[TensorSpec, ...] = ()
    method: MethodSettings
    num_rounds: int = Field(ge=1, le=_MOST)
    seed: int = Field(ge=0, lt=2**63)

    @property
    def layout(self) -> LoraLayout:
        """The shared tensors. Raises BadRequest before the first client has fixed them."""
        return LoraLayout(tuple((spec.name, spec.shape) for spec in self.lora_layout))

    @model_validator(mode="after")
    def _all_or_nothing(self) -> "Run":
        fixed = {
            bool(self.backbone_fingerprint),
            bool(self.tokenizer_fingerprint),
            bool(self.lora_layout),
        }
        if len(fixed) > 1:
            raise ValueError("fingerprints and layout are fixed together")
        return self


def is_client_id(text: str) -> bool:
    """Whether a text is a well-formed client id."""
    return bool(_CLIENT_ID.fullmatch(text))


def check_client_id(client_id: str) -> str:
    """Give back a well-formed client id. Raises BadRequest for any other."""
    if not is_client_id(client_id):
        raise BadRequest(
            f"{client_id[:80]!r} is no client id: it takes 1 to 64 letters, digits, '.', '_' "
            "or '-', and does not begin with '.'"
        )
    return client_id
