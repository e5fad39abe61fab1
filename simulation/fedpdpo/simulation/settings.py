"""What may be set in a simulation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, create_model, model_validator
from pydantic_settings import SettingsConfigDict

from fedpdpo.client.settings import ClientSettings
from fedpdpo.common.run import Closed
from fedpdpo.common.settings import DaemonSettings
from fedpdpo.server.settings import ServerSettings

#: Nobody is missed who has to wait for the others' turns, and all call from one place.
PATIENT: dict[str, float] = dict.fromkeys(
    ("client_timeout_s", "round_deadline_s", "progress_deadline_s", "evaluation_deadline_s",
     "calls_per_s"), 1e9
)  # fmt: skip

_OF_SERVER = (
    "model", "rounds", "seed", "sample_fraction", "sample_clients", "averaging", "server_lr",
    "encoding", "topk_share", "norm_bound", "lora", "method", "dashboard_port",
)  # fmt: skip
_OF_CLIENT = (
    "model", "device", "dtype", "quantize", "checkpoint_activations", "head_moments", "max_tokens",
    "tokens_per_step", "trunk_cache_gib", "eval_share",
)  # fmt: skip


def _some(name: str, of: type[BaseModel], keys: tuple[str, ...], what: str) -> Any:
    """A model with some of another one's fields, their defaults and descriptions."""
    chosen: Any = {key: (of.model_fields[key].annotation, of.model_fields[key]) for key in keys}
    return create_model(name, __base__=Closed, __doc__=what, **chosen)


VirtualServer = _some("VirtualServer", ServerSettings, _OF_SERVER, "As of fedpdpo-server.")
VirtualClients = _some("VirtualClients", ClientSettings, _OF_CLIENT, "As of fedpdpo-client.")


class Partition(Closed):
    """Who has which pairs."""

    by: Literal["iid", "dirichlet", "field", "sizes", "files"] = Field(
        "iid",
        description="iid: equal shares. dirichlet: skewed shares of the values of "
        "--partition.field (label skew). field: a client for each value of it, such as an "
        "annotator or a domain. sizes: shares of skewed sizes. files: a client for each file of "
        "the folder",
    )
    field: str = Field("", description="key of the records that dirichlet and field go by")
    concentration: float = Field(
        0.3, gt=0, le=1e6, description="of the Dirichlet distribution: the smaller, the more skewed"
    )
    opposed: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the clients whose chosen and rejected answers are swapped: tastes "
        "that contradict the others'",
    )
    min_pairs: int = Field(4, ge=2, description="pairs that every client has at least")

    @model_validator(mode="after")
    def _has_field(self) -> "Partition":
        if self.by in ("dirichlet", "field") and not self.field:
            raise ValueError(f"partition by {self.by} needs --partition.field")
        return self


class Workers(Closed):
    """The processes in which clients take turns; Ray places them."""

    address: str | None = Field(
        None,
        description="of a Ray cluster, or auto for the one this machine belongs to; by default Ray "
        "is started on this machine alone",
    )
    count: int = Field(0, ge=0, description="0: as many as the resources allow")
    cpus: int = Field(1, ge=1, description="CPU cores, and threads, of a worker")
    gpus: float = Field(
        0.0, ge=0, description="GPUs of a worker; 0.25 lets four share one, 0 is a CPU"
    )
    memory_gib: float = Field(0.0, ge=0, description="memory that Ray sets aside; 0: not asked for")
    live_clients: int = Field(
        16, ge=1, description="clients that a worker keeps in memory; the others wait on disk"
    )


class SimulationSettings(DaemonSettings):
    """Run a federation of virtual clients by the code of the real server and the real clients."""

    model_config = SettingsConfigDict(env_prefix="FEDPDPO_SIMULATE_")

    data: Path = Field(description="preferences of all clients together, which are divided")
    clients: int = Field(
        0, ge=0, description="virtual clients; 0: 10, or one for each value or file there is"
    )
    out: Path = Field(
        Path("fedpdpo-simulation"),
        description="folder for the clients' data, all state and accuracies.csv; start again to go "
        "on",
    )
    partition_seed: int = Field(0, ge=0, description="which division, of all that are alike")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "WARNING", description="least severity that server and workers log"
    )
    partition: Partition = Partition()
    workers: Workers = Workers()
    if TYPE_CHECKING:
        server: BaseModel
        client: BaseModel
    else:
        server: VirtualServer = VirtualServer()
        client: VirtualClients = VirtualClients()
