"""The command `fedpdpo`: a run seen from outside, and the personal model that comes out of it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console

from fedpdpo.client.tool import certs, operator
from fedpdpo.client.tool.operator import ServerAddress
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.settings import Settings, load_settings, nearest, run_program
from fedpdpo.common.version import __version__

PROGRAM = "fedpdpo"


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
    form: Literal["personal", "peft", "model", "reward"] = Field(
        "personal",
        description="personal: shared and private parts, for chat and eval. model: the whole model "
        "for transformers. reward: the explicit reward as a sequence classifier. peft: an adapter, "
        "for runs without bottleneck",
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


def _status(settings: StatusSettings, console: Console) -> None:
    if settings.watch:
        operator.watch_status(settings, console, every_s=settings.every_s)
    else:
        operator.show_status(settings, console)


def _chat(settings: ChatSettings, console: Console) -> None:
    from fedpdpo.client.tool import inspection

    inspection.chat(console, **settings.model_dump())


def _score(settings: ScoreSettings, console: Console) -> None:
    from fedpdpo.client.tool import inspection

    inspection.score(console, **settings.model_dump())


def _serve(settings: ServeSettings, _: Console) -> None:
    from fedpdpo.client.tool import serving

    given = settings.model_dump()
    serving.serve(given.pop("model_dir"), **given)


def _eval(settings: EvalSettings, console: Console) -> None:
    from fedpdpo.client.tool import inspection

    inspection.evaluate_data(console, **settings.model_dump())


def _export(settings: ExportSettings, console: Console) -> None:
    from fedpdpo.client.exporting.export import export_form
    from fedpdpo.client.exporting.personal import export
    from fedpdpo.client.vault import Vault

    vault = Vault.of(None, settings.state_key_file)
    if settings.form == "personal":
        export(settings.state_dir, settings.out, vault)
        console.print(f"wrote {settings.out}; try: fedpdpo chat --model-dir {settings.out}")
        return
    with console.status("loading the backbone"):
        export_form(
            settings.state_dir, settings.out, settings.form, model=settings.model, vault=vault
        )
    console.print(f"wrote {settings.out}; its README.md tells how to use it")


@dataclass(frozen=True)
class _Command:
    settings: type[Settings]
    run: Callable[[Any, Console], None]


COMMANDS = {
    "status": _Command(StatusSettings, _status),
    "events": _Command(EventSettings, lambda s, c: operator.show_events(s, c, follow=s.follow)),
    "pause": _Command(ServerAddress, lambda s, _: operator.pause(s)),
    "resume": _Command(ServerAddress, lambda s, _: operator.resume(s)),
    "stop": _Command(ServerAddress, lambda s, _: operator.stop(s)),
    "certs init": _Command(certs.InitSettings, certs.init),
    "certs server": _Command(certs.ServerCertificate, certs.server),
    "certs client": _Command(certs.HolderCertificate, certs.client),
    "certs operator": _Command(certs.HolderCertificate, certs.operator),
    "certs revoke": _Command(certs.RevokeSettings, certs.revoke),
    "token": _Command(certs.TokenSettings, certs.token),
    "export": _Command(ExportSettings, _export),
    "chat": _Command(ChatSettings, _chat),
    "eval": _Command(EvalSettings, _eval),
    "score": _Command(ScoreSettings, _score),
    "serve": _Command(ServeSettings, _serve),
}

HELP = """\
usage: fedpdpo COMMAND [options]

a run, asked from its server:
  status   the run, its clients, accuracies and bytes; --watch stays
  events   what happened; --follow stays and shows what happens
  pause    let no further round open
  resume   let rounds open again
  stop     end the run with its last published adapter

who may come in, on the operator's machine:
  certs init       make a certificate authority
  certs server     issue the server's certificate
  certs client     issue a client's certificate
  certs operator   issue an operator's certificate
  certs revoke     revoke a client's or an operator's certificates
  token            make an enrolment token, where clients have no certificates

a personal model, on the client's own machine:
  export   write it to a folder that loads; --form model for transformers and what builds on it
  chat     talk to it; --compare base shows the plain backbone beside
  eval     measure its preference accuracy on a file
  score    rank answers to a prompt
  serve    answer OpenAI-compatible requests

fedpdpo COMMAND --help shows the options. The daemons are fedpdpo-server and fedpdpo-client.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    return run_program(_run, argv, program=PROGRAM)


def _run(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return
    name, *rest = argv
    if name == "--version":
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        return
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, *rest = f"{name} {rest[0]}", *rest[1:]
    if name not in COMMANDS:
        raise BadSettings(
            f"there is no command {name}{nearest(name, COMMANDS)}; fedpdpo --help lists them"
        )
    command = COMMANDS[name]
    settings = load_settings(command.settings, rest, program=f"{PROGRAM} {name}")
    try:
        command.run(settings, Console())
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"{error.name} is not installed; install this package with its extra [client]"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
