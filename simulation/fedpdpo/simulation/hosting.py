"""Clients that take turns in one process: each is the real client, on a backbone that all share.

What a client is lies in its folder. So few of them need be in memory; the others are opened again
when the server has something for them, as a client is that was started again.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from fedpdpo.client.entry import Process, enter
from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.link import Link
from fedpdpo.client.machine import CoreShare, Neighbours
from fedpdpo.client.model.backbone import Backbone, device_of
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.preparation import client_seed, load_policy, read_pairs
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.worker import Worker
from fedpdpo.common.log import start_logging
from fedpdpo.common.run import Run

DATA = "preferences.jsonl"

_IDLE_S = 0.05


class Host:
    """A process for clients; `settings` are what all of them are set to."""

    def __init__(self, *, threads: int, live_clients: int, settings: dict[str, Any]) -> None:
        self._most = live_clients
        self._settings = settings | {"threads": threads, "save_every_s": 1e9}
        self._live: OrderedDict[str, tuple[Worker, ExitStack]] = OrderedDict()
        self._loaded: tuple[Backbone, Policy] | None = None

    def work(
        self,
        server: str,
        folders: Sequence[Path],
        *,
        insecure: bool,
        log_level: str,
        log_format: Literal["text", "json"],
    ) -> None:
        """Let the clients of these folders, named after them, take part until the run has ended.

        Raises what a client raises.
        """
        start_logging(log_level, form=log_format)
        given = self._settings | {"server": server, "insecure": insecure}
        given["device"] = str(device_of(given.get("device", "auto")))
        clients = {
            folder.name: ClientSettings(
                data=folder / DATA, state_dir=folder / "state", client_id=folder.name, **given
            )
            for folder in folders
        }
        with ExitStack() as closing:
            closing.callback(self._close_all)
            links = {}
            for name, settings in clients.items():
                self._opened(settings)
                links[name] = Link(server, name, connect_timeout_s=math.inf,
                                   stall_s=settings.stall_timeout_s, access=settings)  # fmt: skip
                closing.callback(links[name].close)
                links[name].get_run()
            while links:
                idle = True
                for name, link in list(links.items()):
                    assignment = link.assignment(wait_s=0.0)
                    if assignment.WhichOneof("task") == "wait":
                        continue
                    idle = False
                    if not self._opened(clients[name]).do(assignment):
                        del links[name]
                        self._close(name)
                if idle:
                    time.sleep(_IDLE_S)

    def _opened(self, settings: ClientSettings) -> Worker:
        name = str(settings.client_id)
        if name not in self._live:
            while len(self._live) >= self._most:
                self._close(next(iter(self._live)))
            with ExitStack() as closing:
                threads = CoreShare(settings.threads, Neighbours())
                process = Process(settings, Crew(), threads, Interruption())
                process.cores.take()
                train, held_out = read_pairs(settings)
                worker = enter(process, train, held_out, closing, load=self._load, beats=False)
                self._live[name] = worker, closing.pop_all()
        self._live.move_to_end(name)
        return self._live[name][0]

    def _load(
        self, settings: ClientSettings, run: Run, model: str, client_id: str
    ) -> tuple[Backbone, Policy]:
        if self._loaded is None:
            self._loaded = load_policy(settings, run, model, client_id)
        backbone, policy = self._loaded
        return backbone, policy.with_private_parts(
            run.method, seed=client_seed(run.seed, client_id)
        )

    def _close(self, name: str) -> None:
        _, closing = self._live.pop(name)
        closing.close()

    def _close_all(self) -> None:
        for name in list(self._live):
            self._close(name)
