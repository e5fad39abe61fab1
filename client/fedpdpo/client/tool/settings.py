"""The settings of the command's parts; their first lines are what help says."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from fedpdpo.client.tool.operator import ServerAddress
from fedpdpo.common.settings import Settings


class PauseSettings(ServerAddress):
    """Let no further round open; the open one goes on to its end."""


class ResumeSettings(ServerAddress):
    """Let rounds open again after a pause."""


class StopSettings(ServerAddress):
    """End the run with its last published adapter; the open round is not averaged."""


class StatusSettings(ServerAddress):
    """Show the run, its clients, accuracies and bytes."""

    watch: bool = Field(False, description="stay and show it again and again until the run ends")
    every_s: float = Field(2.0, gt=0, description="seconds from one look to the next")


class EventSettings(ServerAddress):
    """Print what happened in the run."""

    follow: bool = Field(False, description="stay and print events as they happen")


class ExportSettings(Settings):
    """Write the personal model of a client to a folder that loads."""

    state_dir: Path = Field(
        Path("fedpdpo-client-state"), description="state directory of the client"
    )
    out: Path = Field(description="folder to write; it must not be there yet")
    form: Literal["personal", "peft", "model", "merged", "gguf", "reward"] = Field(
        "personal",
        description="personal: shared and private parts, for chat and eval. model: the whole model "
        "for transformers. reward: the explicit reward as a sequence classifier. For runs without "
        "bottleneck: merged, plain weights; gguf, a file for llama.cpp; peft, an adapter",
    )
    gguf_type: Literal["f32", "f16", "q8_0"] = Field(
        "f32",
        description="how gguf keeps matrices: f32 exactly, f16 in half the bytes, q8_0 in about a "
        "quarter",
    )
    model: str | None = Field(
        None, description="where the backbone lies, if it moved; personal needs none"
    )
    state_key_file: Path | None = Field(
        None, description="file with the key that encrypts the state directory's private parts"
    )


class ModelSettings(Settings):
    """Which personal model, on what device."""

    model_dir: Path = Field(description="folder written by fedpdpo export")
    model: str | None = Field(None, description="where the backbone lies, if it moved")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the backbone")
    quantize: Literal["none", "4bit"] = Field(
        "none", description="as the client had it; needs bitsandbytes for 4bit"
    )


class ChatSettings(ModelSettings):
    """Talk to the personal model."""

    compare: Literal["none", "base"] = Field(
        "none", description="base: show the plain backbone's answer beside"
    )
    prompt: str | None = Field(None, description="answer this and end, instead of a conversation")
    continue_text: bool = Field(
        False, description="go on from the text itself, without the chat template"
    )
    max_new_tokens: int = Field(200, ge=1, description="tokens of an answer at most")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token every time")


class ScoreSettings(ModelSettings):
    """Rank answers to a prompt by the client's taste."""

    prompt: str = Field(description="what is answered")
    answers: Path = Field(
        description="file of answers, one a line, which may begin with a space; - for standard "
        "input"
    )
    continue_text: bool = Field(
        False, description="the answers go on from the text itself, without the chat template"
    )
    max_tokens: int = Field(1024, ge=8, description="tokens of a prompt with one response")


class EvalSettings(ModelSettings):
    """Measure the personal model's preference accuracy."""

    data: Path = Field(description="file or folder of preferences to measure on")
    skip_bad_records: bool = Field(False, description="go on without records that are malformed")
    max_tokens: int = Field(1024, ge=8, description="tokens of a prompt with one response")


class ServeSettings(Settings):
    """Answer OpenAI-compatible requests with an exported model."""

    model_dir: Path = Field(description="folder written by fedpdpo export --form model")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the weights")
