"""The run at this moment and what has been, as the page and programs read it."""

import time
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedpdpo.common.errors import NotFound
from fedpdpo.common.version import __version__
from fedpdpo.server.federation import Federation
from fedpdpo.server.rows import AdapterRow, ClientRow, EvaluationRow
from fedpdpo.server.watch.history import (
    History,
    Measured,
    Part,
    RoundSeen,
    accuracies,
    parts_of,
)


@dataclass(frozen=True)
class ClientSeen:
    """A client now. `state` is left, away, answered or here; bytes are of payloads."""

    client_id: str
    num_pairs: int
    state: str
    silent_s: float
    activity: str
    progress: float
    remarks: list[str]
    bytes_received: int
    bytes_sent: int


@dataclass(frozen=True)
class Overview:
    """All that the page shows but events."""

    software: str
    run_id: str
    model: str
    num_rounds: int
    method: dict[str, object]
    phase: str
    paused: bool
    round_number: int
    version: int
    adapter_bytes: int
    waiting_for: str
    now_s: float
    clients: list[ClientSeen]
    rounds: list[RoundSeen]
    measured: list[Measured]


@dataclass(frozen=True)
class ClientPast:
    """What one client measured: version to view to kind to accuracy."""

    client_id: str
    measured: dict[int, dict[str, dict[str, float]]]


class Observer:
    """Looks at a federation; any thread may."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._history = History()

    def overview(self) -> Overview:
        """The run now."""
        federation = self._federation
        with federation.reading() as ledger:
            session, stage, run = ledger.session, federation.stage, federation.run
            version = stage.version or 0
            adapter = session.get(AdapterRow, version)
            return Overview(
                software=f"fedpdpo {__version__}",
                run_id=run.run_id,
                model=run.model,
                num_rounds=run.num_rounds,
                method=run.method.model_dump(mode="json"),
                phase=str(stage.phase).lower(),
                paused=stage.paused,
                round_number=stage.round_number,
                version=version,
                adapter_bytes=adapter.num_bytes if adapter else 0,
                waiting_for=federation.waiting_for(),
                now_s=time.time(),
                clients=self._clients(session),
                rounds=self._history.rounds(session),
                measured=self._history.measured(session),
            )

    def parts(self, number: int) -> list[Part]:
        """The deltas of a round."""
        with self._federation.reading() as ledger:
            return parts_of(ledger.session, number)

    def past(self, client_id: str) -> ClientPast:
        """What a client measured so far. Raises NotFound."""
        with self._federation.reading() as ledger:
            if ledger.session.get(ClientRow, client_id) is None:
                raise NotFound(f"client {client_id[:64]} has never joined the run")
            found = select(EvaluationRow).where(EvaluationRow.client_id == client_id)
            rows = ledger.session.scalars(found.order_by(EvaluationRow.version))
            return ClientPast(client_id, {row.version: accuracies(row.views) for row in rows})

    def _clients(self, session: Session) -> list[ClientSeen]:
        found = session.scalars(select(ClientRow).order_by(ClientRow.client_id))
        return [self._client(row) for row in found]

    def _client(self, row: ClientRow) -> ClientSeen:
        federation, name = self._federation, row.client_id
        presence, stage = federation.presence, federation.stage
        sign = presence.sign(name)
        sent, received = federation.traffic.totals(row)
        patience_s = federation.settings.progress_deadline_s
        if row.left:
            state = "left"
        elif not presence.is_here(name):
            state = "away"
        else:
            state = "answered" if name in stage.answered else "here"
        return ClientSeen(
            name,
            row.num_train_pairs,
            state,
            presence.silent_s(name),
            sign.activity,
            sign.progress,
            [] if row.left else presence.remarks(name, patience_s=patience_s),
            bytes_received=received,
            bytes_sent=sent,
        )
