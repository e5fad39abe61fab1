"""A server for notebooks and programs: it serves from a thread of this process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedpdpo.common.errors import FedPDPOError
from fedpdpo.common.settings import made
from fedpdpo.server.daemon import serve
from fedpdpo.server.federation import Federation
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.status import evaluations, status
from fedpdpo.v1 import metrics_pb2, operator_pb2

T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """What a run looked like at a moment."""

    status: operator_pb2.GetStatusResponse
    evaluations: list[operator_pb2.ClientEvaluation]
    adapter: Path


class Server:
    """What `fedpdpo-server` is, inside a `with` block, which ends it.

    Settings are those of `fedpdpo-server`, by their names; a port that is not given is a free one.

        with Server(model="HuggingFaceTB/SmolLM2-135M-Instruct", rounds=4) as server:
            print(server.address)
            server.wait()
        print(server.accuracies())

    The run is in `state_dir` and goes on with the next server there. Raises BadSettings for
    settings that cannot be, and what `fedpdpo-server` would say, at the block's ends and in `wait`.
    `adapter`, `status` and `accuracies` raise FedPDPOError before the block.
    """

    def __init__(self, settings: ServerSettings | None = None, **named: Any) -> None:
        self.settings = settings or made(ServerSettings, {"port": 0} | named)
        self.port = 0
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._serving = threading.Event()
        self._reading = threading.Lock()
        self._federation: Federation | None = None
        self._last: Seen | None = None
        self._thread = threading.Thread(target=self._run, name="fedpdpo-server", daemon=True)

    @property
    def address(self) -> str:
        """What clients on this machine take as their --server."""
        host = self.settings.host
        return f"{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{self.port}"  # noqa: S104

    @property
    def adapter(self) -> Path:
        """The file of the newest global adapter, safetensors."""
        return self._look(_adapter, lambda seen: seen.adapter)

    def status(self) -> operator_pb2.GetStatusResponse:
        """The run now, or as it stood when the server ended."""
        return self._look(status, lambda seen: seen.status)

    def accuracies(self) -> list[dict[str, Any]]:
        """What clients measured: a row for each adapter, client and view, fit for a data frame.

        Accuracies are shares; margin and loss in nats, chosen_shift in nats a token.
        """
        return [
            {"adapter": row.adapter_version, "client": row.client_id, "pairs": row.num_pairs,
             "view": metrics_pb2.View.Name(item.view).removeprefix("VIEW_").lower()}
            | {field.name: getattr(item.metrics, field.name)
               for field in metrics_pb2.PreferenceMetrics.DESCRIPTOR.fields}
            for row in self._look(evaluations, lambda seen: seen.evaluations)
            for item in row.evaluations
        ]  # fmt: skip

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the run has ended and no client is there; gives whether it has."""
        self._thread.join(timeout_s)
        self._raise()
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End the server; the run stays in its state directory."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> "Server":
        self._thread.start()
        self._serving.wait()
        self._raise()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._serving.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await serve(self.settings, stopping=self._stopping, attend=self._attend)

    @contextmanager
    def _attend(self, port: int, federation: Federation) -> Iterator[None]:
        self.port, self._federation = port, federation
        self._serving.set()
        try:
            yield
        finally:
            with self._reading:
                self._last = Seen(status(federation), evaluations(federation), _adapter(federation))
                self._federation = None

    def _look(self, now: Callable[[Federation], T], last: Callable[[Seen], T]) -> T:
        """What of the run is asked for: now, or as it stood when the server ended."""
        with self._reading:
            if self._federation is not None:
                return now(self._federation)
        if self._last is None:
            raise FedPDPOError("the server does not run; use it in a with block")
        return last(self._last)


def _adapter(federation: Federation) -> Path:
    return federation.store.adapter_path(federation.stage.version or 0)
