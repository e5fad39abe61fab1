"""What the operator of a server may set."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from fedpdpo.common.run import LoraSettings, MethodSettings
from fedpdpo.common.settings import DaemonSettings


class ServerSettings(DaemonSettings):
    """Serve one federated run: sample clients, average their LoRA deltas, publish the result."""

    model_config = SettingsConfigDict(env_prefix="FEDPDPO_SERVER_")

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; 0.0.0.0 lets other machines in, unencrypted",
    )
    port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    state_dir: Path = Field(
        Path("fedpdpo-server-state"), description="folder that keeps the run; start again to go on"
    )
    model: str = Field(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        min_length=1,
        description="the frozen backbone that clients load: a Hugging Face id or a path",
    )
    rounds: int = Field(3, ge=1, le=100_000, description="rounds of the run")
    min_clients: int = Field(2, ge=1, description="clients that must be there to open a round")
    sample_fraction: float = Field(
        1.0, gt=0, le=1, description="share of the clients asked to train in a round"
    )
    quorum: float = Field(
        0.5, gt=0, le=1, description="share of the asked whose deltas suffice at the deadline"
    )
    round_deadline_s: float = Field(
        3600.0, gt=0, description="seconds until a round closes with a quorum"
    )
    evaluation_deadline_s: float = Field(
        600.0, gt=0, description="seconds that the end of the run waits for evaluations"
    )
    client_timeout_s: float = Field(
        120.0, gt=0, description="seconds of silence after which a client counts as away"
    )
    server_lr: float = Field(1.0, gt=0, le=10, description="step eta along the mean delta")
    seed: int = Field(0, ge=0, lt=2**63, description="seeds sampling and the first adapter")
    lora: LoraSettings = LoraSettings()
    method: MethodSettings = MethodSettings()
