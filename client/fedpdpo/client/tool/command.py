"""The command `fedpdpo`: a run seen from outside, and the personal model that comes out of it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedpdpo.client.tool import certs, operator
from fedpdpo.client.tool.settings import (
    ChatSettings,
    EvalSettings,
    EventSettings,
    ExportSettings,
    ModelSettings,
    PauseSettings,
    ResumeSettings,
    ScoreSettings,
    ServeSettings,
    StatusSettings,
    StopSettings,
)
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.settings import Settings, load_settings, nearest, run_program
from fedpdpo.common.version import __version__

if TYPE_CHECKING:
    from fedpdpo.client.tool.personal import PersonalPolicy

PROGRAM = "fedpdpo"


def _status(settings: StatusSettings, console: Console) -> None:
    if settings.watch:
        operator.watch_status(settings, console, every_s=settings.every_s)
    else:
        operator.show_status(settings, console)


def _loaded(settings: ModelSettings) -> "PersonalPolicy":
    from fedpdpo.client.tool.personal import PersonalPolicy

    given = settings.model_dump(include=set(ModelSettings.model_fields))
    return PersonalPolicy.load(given.pop("model_dir"), **given)


def _rest(settings: ModelSettings) -> dict[str, Any]:
    return settings.model_dump(exclude=set(ModelSettings.model_fields))


def _chat(settings: ChatSettings, console: Console) -> None:
    from fedpdpo.client.tool import inspection

    inspection.chat(console, _loaded(settings), **_rest(settings))


def _score(settings: ScoreSettings, console: Console) -> None:
    from fedpdpo.client.tool import inspection

    inspection.score(console, _loaded(settings), **_rest(settings))


def _serve(settings: ServeSettings, _: Console) -> None:
    from fedpdpo.client.tool import serving

    given = settings.model_dump()
    serving.serve(given.pop("model_dir"), **given)


def _eval(settings: EvalSettings, console: Console) -> None:
    from fedpdpo.client.tool import inspection

    inspection.evaluate_data(console, _loaded(settings), **_rest(settings))


def _export(settings: ExportSettings, console: Console) -> None:
    from fedpdpo.client.exporting.export import export_form
    from fedpdpo.client.exporting.personal import export
    from fedpdpo.client.vault import Vault

    if settings.gguf_type != "f32" and settings.form != "gguf":
        raise BadSettings("--gguf-type is of --form gguf alone; leave it out")
    vault = Vault.of(None, settings.state_key_file)
    if settings.form == "personal":
        export(settings.state_dir, settings.out, vault)
        console.print(f"wrote {settings.out}; try: fedpdpo chat --model-dir {settings.out}")
        return
    with console.status("loading the backbone"):
        export_form(
            settings.state_dir,
            settings.out,
            settings.form,
            model=settings.model,
            vault=vault,
            gguf_type=settings.gguf_type,
        )
    console.print(f"wrote {settings.out}; its README.md tells how to use it")


@dataclass(frozen=True)
class Command:
    """A command's settings and what is done with them; the example ends its help."""

    settings: type[Settings]
    run: Callable[[Any, Console], None]
    example: str = ""


COMMANDS = {
    "status": Command(StatusSettings, _status),
    "events": Command(EventSettings, lambda s, c: operator.show_events(s, c, follow=s.follow)),
    "pause": Command(PauseSettings, lambda s, _: operator.pause(s)),
    "resume": Command(ResumeSettings, lambda s, _: operator.resume(s)),
    "stop": Command(StopSettings, lambda s, _: operator.stop(s)),
    "certs init": Command(certs.InitSettings, certs.init),
    "certs server": Command(certs.ServerCertificate, certs.server,
                            "--host fed.example.org --host 10.0.0.5"),
    "certs client": Command(certs.HolderCertificate, certs.client, "--name clinic-7"),
    "certs operator": Command(certs.HolderCertificate, certs.operator, "--name root"),
    "certs revoke": Command(certs.RevokeSettings, certs.revoke, "--name clinic-7"),
    "token": Command(certs.TokenSettings, certs.token, "--name ada --out ada.token"),
    "export": Command(ExportSettings, _export,
                      "--state-dir ./fedpdpo-client-state --out ./my-model"),
    "chat": Command(ChatSettings, _chat, "--model-dir ./my-model --compare base"),
    "eval": Command(EvalSettings, _eval, "--model-dir ./my-model --data ./more-prefs.jsonl"),
    "score": Command(ScoreSettings, _score,
                     '--model-dir ./my-model --prompt "What is DPO?" --answers answers.txt'),
    "serve": Command(ServeSettings, _serve, "--model-dir ./whole-model --port 8000"),
}  # fmt: skip

#: Commands of packages that stand on this one; each entry point is a `Command`.
ELSEWHERE = "fedpdpo.commands"

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
  export   write it to a folder that loads; --form model for transformers, gguf for llama.cpp
  chat     talk to it; --compare base shows the plain backbone beside
  eval     measure its preference accuracy on a file
  score    rank answers to a prompt
  serve    answer OpenAI-compatible requests

many virtual clients on one machine or a cluster:
  simulate   divide a file of preferences among them and run a federation

fedpdpo COMMAND --help shows the options. The daemons are fedpdpo-server and fedpdpo-client.
"""


def _from_elsewhere(name: str) -> Command:
    points = {point.name: point for point in entry_points(group=ELSEWHERE)}
    if name not in points:
        close = nearest(name, [*COMMANDS, *points])
        raise BadSettings(f"there is no command {name}{close}; fedpdpo --help lists them")
    found: Command = points[name].load()
    return found


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
    parts = [known for known in COMMANDS if known.startswith(f"{name} ")]
    if parts and rest[:1] in (["-h"], ["--help"]):
        told = [line for line in HELP.splitlines() if line.startswith(f"  {name} ")]
        sys.stdout.write("\n".join([f"usage: {PROGRAM} {name} COMMAND [options]", "", *told, ""]))
        return
    if parts and f"{name} {''.join(rest[:1])}" not in parts:
        raise BadSettings(f"{name} needs one of: {', '.join(parts)}")
    if parts:
        name, *rest = f"{name} {rest[0]}", *rest[1:]
    command = COMMANDS.get(name) or _from_elsewhere(name)
    program = f"{PROGRAM} {name}"
    epilog = f"for example:\n  {program} {command.example}" if command.example else ""
    settings = load_settings(command.settings, rest, program=program, epilog=epilog)
    try:
        command.run(settings, Console())
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"{error.name} is not installed; install this package with its extra [client]"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
