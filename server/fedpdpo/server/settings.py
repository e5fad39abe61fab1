"""What the operator of a server may set."""

from pathlib import Path
from typing import Literal

from pydantic import AnyUrl, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from fedpdpo.common.encoding import Encoding
from fedpdpo.common.run import LoraSettings, MethodSettings
from fedpdpo.common.settings import DaemonSettings


class ServerSettings(DaemonSettings):
    """Serve one federated run: sample clients, average their LoRA deltas, publish the result."""

    model_config = SettingsConfigDict(env_prefix="FEDPDPO_SERVER_")

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; 0.0.0.0 lets other machines in, which needs --tls",
    )
    port: int = Field(50051, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    state_dir: AnyUrl | Path = Field(
        Path("fedpdpo-server-state"),
        union_mode="left_to_right",
        description="folder that keeps the run; start again to go on. Or an fsspec URL, such as "
        "s3://BUCKET/RUN, which needs --database",
    )
    database: SecretStr = Field(
        SecretStr(""),
        description="postgresql://USER@HOST/NAME for the run's rows, instead of SQLite in "
        "--state-dir: with both elsewhere any machine can go on with the run",
    )
    cache_dir: Path | None = Field(
        None,
        description="folder for copies of what an fsspec URL keeps; a temporary one by default",
    )
    tls: Path | None = Field(
        None,
        description="folder with ca.crt, tls.crt and tls.key; callers need a certificate of that "
        "CA, and none that its crl.pem revokes",
    )
    tokens: Path | None = Field(
        None, description="file of enrolment tokens (fedpdpo token); with it callers need a token"
    )
    session_s: float = Field(
        900.0, gt=0, description="seconds after which a caller's token is asked for again"
    )
    insecure: bool = Field(
        False, description="let other machines in without TLS: anyone may do anything"
    )
    calls_per_s: float = Field(
        50.0, gt=0, description="calls a second that one caller may make, ten times that at once"
    )
    dashboard_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of a web page of the run, and of /metrics for Prometheus; 0 picks a free "
        "one; none is served by default",
    )
    dashboard_host: str = Field(
        "127.0.0.1", description="address of that page; 0.0.0.0 lets other machines look"
    )
    dashboard_tokens: Path | None = Field(
        None,
        description="file of tokens (fedpdpo token): an operator's lets pause, resume and stop on "
        "the page; --tokens where it is given",
    )
    stay: bool = Field(
        False,
        description="serve the page, metrics and adapters after the run's end too, until told to "
        "end by SIGTERM or SIGINT",
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
    sample_clients: int = Field(
        0, ge=0, description="number of clients asked to train in a round, instead of a share"
    )
    close_after: int = Field(
        0,
        ge=0,
        description="deltas after which a round closes at once; 0 waits for all that were asked. "
        "Fewer than are asked: over-selection; with --late fold: asynchronous rounds",
    )
    late: Literal["drop", "fold"] = Field(
        "drop", description="deltas of closed rounds: drop them, or fold them into the open round"
    )
    max_staleness: int = Field(
        10, ge=1, description="versions by which a folded delta's adapter may be old"
    )
    staleness_power: float = Field(
        0.5, ge=0, description="p of the weight (1 + staleness)^-p of a folded delta"
    )
    quorum: float = Field(
        0.5, gt=0, le=1, description="share of the asked whose deltas suffice at the deadline"
    )
    round_deadline_s: float = Field(
        3600.0, gt=0, description="seconds until a round closes with a quorum"
    )
    progress_deadline_s: float = Field(
        900.0,
        gt=0,
        description="seconds without progress after which a round goes on without "
        "a client, if it has a quorum",
    )
    evaluation_deadline_s: float = Field(
        600.0, gt=0, description="seconds that the end of the run waits for evaluations"
    )
    client_timeout_s: float = Field(
        120.0, gt=0, description="seconds of silence after which a client counts as away"
    )
    stall_timeout_s: float = Field(
        60.0, gt=0, description="seconds without a byte after which a transfer is given up"
    )
    max_transfers: int = Field(
        16, ge=1, description="clients that send or fetch an adapter at a time; others wait"
    )
    encoding: Encoding = Field(
        Encoding.FLOAT32,
        description="how deltas travel: float32, bfloat16, int8 or topk; what is left out is sent "
        "with the next delta",
    )
    topk_share: float = Field(0.01, gt=0, le=1, description="share of the numbers that topk sends")
    zstd: bool = Field(False, description="compress adapters and deltas on their way")
    max_clients: int = Field(10_000, ge=1, description="clients that may join the run")
    max_pairs: int = Field(
        1_000_000, ge=1, le=10**9, description="pairs that a client may say it has; its weight"
    )
    max_adapter_mib: int = Field(
        8192, ge=1, description="size of the adapter that the first client's backbone may ask for"
    )
    norm_bound: float = Field(
        3.0,
        ge=0,
        description="how many times the round's median norm a delta may have, where there are "
        "three or more; 0: any",
    )
    over_bound: Literal["clip", "refuse"] = Field(
        "clip", description="a delta over that bound: scale it down to the bound, or leave it out"
    )
    min_bytes_per_s: float = Field(
        1024.0, ge=0, description="slowest transfer that is not given up, over --stall-timeout-s"
    )
    server_lr: float = Field(1.0, gt=0, le=10, description="step eta along the mean delta")
    averaging: Literal["factors", "products"] = Field(
        "factors",
        description="what is averaged: LoRA's A and B each, or their products, cut to the rank",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seeds sampling and the first adapter")
    lora: LoraSettings = LoraSettings()
    method: MethodSettings = MethodSettings()

    @model_validator(mode="after")
    def _coordinates(self) -> "ServerSettings":
        of_before = [
            what
            for what, given in (
                ("late deltas (--late fold)", self.late == "fold"),
                (f"what --encoding {self.encoding} left out",
                 self.encoding in (Encoding.INT8, Encoding.TOPK)),
                ("kept moments (--method.lora-moments keep)", self.method.lora_moments == "keep"),
            )
            if given
        ]  # fmt: skip
        if self.averaging == "products" and of_before:
            raise ValueError(
                "--averaging products gives LoRA new coordinates in each round, to which those of "
                f"earlier ones do not belong: {', '.join(of_before)}; take --averaging factors"
            )
        return self
