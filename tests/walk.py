"""A reader who types a page's commands one after another in a folder of his own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from documented import ELLIPSIS, Command
from processes import BIN, PATIENCE_S, until

OPERATORS = ("status", "events", "pause", "resume", "stop")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


#: A suite that was started in the background ignores Ctrl-C, and so would what it starts.
ENDED_BY_INTERRUPTS = ("env", "--default-signal=INT")


@dataclass
class Started:
    """A command that runs beside the others, with its output in a file."""

    text: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def output(self) -> str:
        """What it said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def says(self, pattern: str) -> None:
        """Wait for a line; it is a fault to end before."""
        until(
            lambda: re.search(pattern, self.output) or self.process.poll() is not None,
            lambda: f"{pattern!r} of {self.text}\n{self.output[-3000:]}",
        )
        assert re.search(pattern, self.output), f"{self.text}\n{self.output[-3000:]}"

    def ends(self, *codes: int) -> None:
        """Wait for the end, with one of these codes."""
        code = self.process.wait(PATIENCE_S)
        assert code in codes, f"{self.text} ended with {code}\n{self.output[-3000:]}"

    def end(self, number: signal.Signals, *codes: int) -> None:
        """Send a signal where it still runs, and wait for the end."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        self.ends(*codes)


@dataclass
class Walk:
    """Runs commands; `replaced` and `given` say what a page leaves to its reader."""

    folder: Path
    replaced: Mapping[str, str]
    given: Mapping[str, Mapping[str, str]]
    environment: dict[str, str]
    server: Started | None = None
    clients: list[Started] = field(default_factory=list)
    followers: list[Started] = field(default_factory=list)
    stopped: bool = False
    run: list[str] = field(default_factory=list)

    def takes(self, command: Command) -> None:
        """Do what a reader does who has come to this command."""
        text = self.adapted(command)
        name = (command.program or "").removeprefix("fedpdpo ")
        if text.startswith("export "):
            variable, _, value = text.removeprefix("export ").partition("=")
            self.environment[variable] = value
        elif name == "fedpdpo-server":
            self._serve(text)
        elif name == "fedpdpo-client":
            self._join(text)
        elif name in OPERATORS and re.search(r"--(watch|follow)\b", text):
            self._needs_server(text)
            self.followers.append(self._start(text))
        else:
            if name in OPERATORS:
                self._needs_server(text)
            elif name == "export":
                self.settle()
            self._to_its_end(text)
            self._hand_over(text)
            self.stopped |= name == "stop"

    def adapted(self, command: Command) -> str:
        """The command with this place's names, and with what the page leaves to its reader."""
        text = ELLIPSIS.sub("", command.text)
        for pattern, value in self.replaced.items():
            text = re.sub(pattern, value, text)
        for flag, value in self.given.get(command.program or "", {}).items():
            if not re.search(rf"{re.escape(flag)}\b", text):
                text += f" {flag} {value}"
        return text

    def settle(self) -> None:
        """Let the run come to its end, or end all once each client has trained a round."""
        for client in self.clients:
            client.says(r"pushed round=\d")
        for follower in self.followers:
            self._leave(follower)
        endless = self.server is not None and "--rounds 10000" in self.server.text
        if endless and not self.stopped:
            for client in self.clients:
                client.end(signal.SIGTERM, 0, 143)
        for client in self.clients:
            client.ends(0, 143 if endless else 0)
        if self.server is not None:
            if not self.stopped and (endless or not self.clients):
                self.server.end(signal.SIGTERM, 0)
            self.server.ends(0)
        self.clients, self.followers, self.server, self.stopped = [], [], None, False

    def _leave(self, follower: Started) -> None:
        """See that a command that stays has shown the run, as Ctrl-C or the run's end ends it."""
        if self.stopped and " events " in follower.text:
            follower.ends(0)
            assert "run_stopped" in follower.output
        else:
            follower.end(signal.SIGINT, 0, 130)
            assert " events " in follower.text or "phase" in follower.output, follower.output

    def clear(self) -> None:
        """Kill what still runs, after a fault."""
        for one in (*self.clients, *self.followers, *([self.server] if self.server else [])):
            if one.process.poll() is None:
                os.killpg(one.process.pid, signal.SIGKILL)
                one.process.wait(PATIENCE_S)

    def _serve(self, text: str) -> None:
        self.settle()
        self.server = self._start(text)
        self.server.says(r"serving address=")
        page = re.search(r"--dashboard-port (\d+)", text)
        if page:
            with urllib.request.urlopen(f"http://127.0.0.1:{page[1]}/", timeout=30) as answer:
                assert b"<html" in answer.read()

    def _join(self, text: str) -> None:
        self._needs_server(text)
        if "--state-dir" not in text:  # another reader's machine
            shutil.rmtree(self.folder / "fedpdpo-client-state", ignore_errors=True)
        self.clients.append(self._start(text))

    def _needs_server(self, text: str) -> None:
        if self.server is None or ("--tls" in text) != ("--tls" in self.server.text):
            command = Command("", "fedpdpo-server")
            self._serve(f"{self.adapted(command)} --state-dir another-run-{len(self.run)}")

    def _start(self, text: str) -> Started:
        log = self.folder / f"{len(self.run)}.log"
        self.run.append(text)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*ENDED_BY_INTERRUPTS, "bash", "-c", f"exec {text}"], cwd=self.folder,
                env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        return Started(text, log, process)

    def _to_its_end(self, text: str) -> None:
        self.run.append(text)
        done = subprocess.run(
            ["bash", "-euc", text], cwd=self.folder, env=self.environment, timeout=PATIENCE_S,
            input="Hello there.\n\n", capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"

    def _hand_over(self, text: str) -> None:
        """Put a certificate's folder where its holder's commands look for it."""
        found = re.search(r"certs (client|operator) .*--name (\S+)", text)
        if found:
            role, name = found.groups()
            issued = self.folder / "certs" / role / name
            shutil.copytree(issued, self.folder / name, dirs_exist_ok=True)
            shutil.copy(issued / "ca.crt", self.folder)


def environment(folder: Path) -> dict[str, str]:
    """What the commands find set: our programs first, nothing of another configuration."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FEDPDPO_")}
    return kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }  # fmt: skip
