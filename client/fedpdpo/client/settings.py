"""What the owner of a client may set."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from fedpdpo.client.channel import AccessSettings
from fedpdpo.common.settings import DaemonSettings


class ClientSettings(AccessSettings, DaemonSettings):
    """Take part in a federated run: train on local preferences, send LoRA deltas only."""

    model_config = SettingsConfigDict(env_prefix="FEDPDPO_CLIENT_")

    server: str = Field(pattern=r"^\S+:\d{1,5}$", description="address of the server, as host:port")
    data: Path = Field(description="file or folder of preferences: JSONL, JSON or Parquet")
    eval_data: Path | None = Field(
        None, description="preferences to measure on; by default a share of --data is held out"
    )
    eval_share: float = Field(
        0.1, gt=0, lt=1, description="share of --data held out where there is no --eval-data"
    )
    skip_bad_records: bool = Field(False, description="go on without records that are malformed")
    state_dir: Path = Field(
        Path("fedpdpo-client-state"),
        description="folder of the private parts; start again to go on",
    )
    state_key: SecretStr | None = Field(
        None,
        description="64 hexadecimal digits that encrypt the private parts; better in the "
        "environment or a file than on the command line",
    )
    state_key_file: Path | None = Field(None, description="file that holds this key")
    client_id: str | None = Field(
        None,
        description="name in the run: the one in the certificate or token, where there is one; "
        "by default made from the host's name and kept",
    )
    model: str | None = Field(
        None,
        description="where the run's backbone lies here: a Hugging Face id, a folder, a GGUF file",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the frozen backbone and its products; auto is bfloat16 on a GPU that has "
        "it, else float32",
    )
    quantize: Literal["none", "4bit"] = Field(
        "none", description="keep the backbone in 4 bits (QLoRA's nf4); needs bitsandbytes"
    )
    checkpoint_activations: bool = Field(
        False, description="compute each layer twice and keep less memory"
    )
    head_moments: Literal["float32", "8bit", "factored"] = Field(
        "float32",
        description="how the optimizer keeps the private head's moments: 8bit needs bitsandbytes, "
        "factored is Adafactor",
    )
    threads: int = Field(
        0, ge=0, description="CPU threads; 0 divides the cores among the clients on this machine"
    )
    max_tokens: int = Field(
        1024, ge=8, description="tokens of a prompt with one response; longer ones are cut"
    )
    tokens_per_step: int = Field(
        0,
        ge=0,
        description="tokens that go through the model at once; 0 means 640 on a CPU, 4096 on a GPU",
    )
    trunk_cache_gib: float = Field(
        2.0, ge=0, description="disk for what the frozen layers make of the pairs; 0: none"
    )
    save_every_s: float = Field(
        300.0, ge=0, description="seconds between saved steps of a round; 0 saves every step"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port of metrics for Prometheus; none by default"
    )
    metrics_host: str = Field("127.0.0.1", description="address of that port")
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (), description="tools that are told losses and accuracies: tensorboard, mlflow, wandb"
    )
    heartbeat_s: float = Field(10.0, gt=0, description="seconds between signs of life")
    stall_timeout_s: float = Field(
        60.0, gt=0, description="seconds without a byte after which a transfer is tried again"
    )
    connect_timeout_s: float = Field(
        600.0,
        ge=0,
        description="seconds to wait for a server not reached yet; once joined, it waits on",
    )

    @property
    def encrypts(self) -> bool:
        """Whether private state is encrypted on disk."""
        return self.state_key is not None or self.state_key_file is not None
