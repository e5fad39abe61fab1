"""FedPDPO and what it is compared with, each as settings of the same server and client code."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from fedpdpo.common.run import LoraSettings, MethodSettings
from fedpdpo.server.settings import ServerSettings
from report import BenchmarkError

#: What a baseline without private parts has.
BARE: dict[str, Any] = {"head": "frozen", "reward_head": False, "bottleneck": 0}

#: Strength of the proximal terms of FedProx and Ditto.
MU = 0.1

RATES = ("lora_lr", "head_lr", "bottleneck_lr", "reward_lr")

Kind = Literal["baseline", "ours", "ablation"]


#: What of the server's settings a cell may change.
_SERVER = ("averaging", "server_lr", "sample_fraction")
_LORA = "lora."


#: A part, what its setting is where it is left out, and the settings that then have no effect.
_OF_PARTS = (
    ("head", "frozen", ("head_lr", "head_rank")),
    ("bottleneck", 0, ("bottleneck_lr",)),
    ("reward_head", False, ("reward_lr", "alpha")),
)


@dataclass(frozen=True)
class Configured:
    """A method with every setting told, the product's defaults included."""

    method: MethodSettings
    lora: LoraSettings
    server: dict[str, Any]

    @property
    def digest(self) -> str:
        """Eight letters that stand for all settings with an effect, the defaults included."""
        unused = {name for part, without, names in _OF_PARTS
                  if getattr(self.method, part) == without for name in names}  # fmt: skip
        method = self.method.model_dump(mode="json", exclude=unused)
        told = [method, self.lora.model_dump(mode="json")]
        defaults = {key: ServerSettings.model_fields[key].default for key in _SERVER}
        text = json.dumps([*told, defaults | self.server], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    `method` replaces defaults of the product's settings. Without `shares` every client trains in a
    federation of its own. `twin` gives each client a second, personal LoRA, pulled to the shared
    one: Ditto. `trains` is false for the base model alone.
    """

    name: str
    title: str
    kind: Kind
    method: dict[str, Any] = field(default_factory=dict)
    shares: bool = True
    twin: bool = False
    trains: bool = True

    def configured(self, changed: dict[str, Any], *, rate: float) -> "Configured":
        """The product's settings with some changed and all learning rates times a factor.

        Names are those of the method's settings, `lora.NAME`, or some of the server's.
        """
        method, lora, server = dict(self.method), {}, {}
        for name, value in changed.items():
            if name in MethodSettings.model_fields:
                method[name] = value
            elif name in _SERVER:
                server[name] = value
            elif name.startswith(_LORA):
                lora[name.removeprefix(_LORA)] = value
            else:
                raise BenchmarkError(f"{name} is no setting")
        wanted = MethodSettings(**method)
        rates = {name: min(1.0, rate * getattr(wanted, name)) for name in RATES}
        return Configured(MethodSettings(**(method | rates)), LoraSettings(**lora), server)


#: A federation of one goes on from its own LoRA, to which its moments belong.
ALONE: dict[str, Any] = {"lora_moments": "keep"}

#: What FedPer and FedRep have. As in their papers the head learns as fast as the rest.
PRIVATE_HEAD: dict[str, Any] = {"reward_head": False, "bottleneck": 0}

METHODS = {
    one.name: one
    for one in (
        Method("base", "base model", "baseline", BARE, trains=False),
        Method("local", "local-only DPO", "baseline", BARE | ALONE, shares=False),
        Method("fedavg", "FedAvg-DPO", "baseline", BARE),
        Method("fedprox", "FedProx-DPO", "baseline", BARE | {"proximal": MU}),
        Method("ditto", "Ditto", "baseline", BARE, twin=True),
        Method("fedper", "FedPer: FedAvg-DPO, private head", "baseline", PRIVATE_HEAD),
        Method("fedrep", "FedRep: FedPer, head first", "baseline",
               PRIVATE_HEAD | {"schedule": "private_then_shared"}),
        Method("fedpdpo", "FedPDPO", "ours"),
        Method("less-head", "less private head", "ablation", {"head": "frozen"}),
        Method("less-reward", "less reward head", "ablation", {"reward_head": False}),
        Method("less-bottleneck", "less bottleneck adapter", "ablation", {"bottleneck": 0}),
        Method("less-sharing", "less sharing", "ablation", ALONE, shares=False),
        Method("reward-alone", "reward head alone, no federation", "ablation",
               BARE | ALONE | {"reward_head": True, "lora_lr": 1e-9}, shares=False),
    )
}  # fmt: skip
