"""The federation: one run, its lock, and what each client shall do now.

The modules around it change the run: `membership` (join, leave), `intake` (deltas, evaluations),
`steps` (rounds), `operations` (pause, stop). Each change is one transaction, so the state
directory is consistent whenever the process dies.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedpdpo.common.errors import Mismatch
from fedpdpo.server.ledger import ENDED, Ledger
from fedpdpo.server.presence import Presence
from fedpdpo.server.rounds import Phase
from fedpdpo.server.runs import open_run
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.store import Store
from fedpdpo.server.tasks import Evaluate, Finish, Task, Train, Wait


class Federation:
    """One run. `clock` gives seconds since the epoch; `notify` is called after every change.

    Raises Mismatch where the state directory holds a run with other settings.
    """

    def __init__(
        self,
        store: Store,
        settings: ServerSettings,
        *,
        clock: Callable[[], float],
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.notify = notify
        self.run = open_run(store, settings)
        self.presence = Presence(clock, timeout_s=settings.client_timeout_s)
        self.lock = threading.RLock()
        with self.reading() as ledger:
            store.forget_deltas(ledger.version() or 0)

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """A consistent view of the run."""
        with self.lock, self.store.session() as session:
            yield Ledger(session, clock=self.clock, num_rounds=self.run.num_rounds)

    @contextmanager
    def writing(self) -> Iterator[Ledger]:
        """A transaction on the run; those who wait for a change are told when it is durable."""
        with self.lock, self.store.session() as session, session.begin():
            yield Ledger(session, clock=self.clock, num_rounds=self.run.num_rounds)
        self.notify()

    def check_run(self, run_id: str) -> None:
        """Raise Mismatch for another run's id."""
        if run_id != self.run.run_id:
            raise Mismatch(
                f"this server drives run {self.run.run_id}, not {run_id[:64] or '(none)'}; "
                "start the client with another --state-dir for another run"
            )

    def active(self, ledger: Ledger) -> list[str]:
        """Clients that have joined, not left, and been heard lately; sorted."""
        return [client_id for client_id in ledger.joined() if self.presence.is_here(client_id)]

    def unmeasured(self, ledger: Ledger) -> list[str]:
        """Active clients that have not measured the newest adapter; sorted."""
        measured = ledger.evaluators(ledger.version() or 0)
        return [client_id for client_id in self.active(ledger) if client_id not in measured]

    def task(self, client_id: str) -> Task:
        """What a client shall do now. Asking changes nothing. Raises NotFound."""
        with self.reading() as ledger:
            ledger.client(client_id)
            self.presence.heard(client_id)
            phase, version = ledger.phase(), ledger.version()
            if version is None:
                return Wait("the first adapter")
            if phase in ENDED:
                return Finish(version, stopped=phase is Phase.STOPPED)
            if client_id not in ledger.evaluators(version):
                return Evaluate(version)
            opened = ledger.open_round()
            asked = opened is not None and client_id in ledger.turnout(opened).awaited
            if opened is not None and asked and not opened.closing:
                return Train(opened.number)
            return Wait(self.waiting_for(ledger))

    def waiting_for(self, ledger: Ledger) -> str:
        """What the run waits for, for people; empty when it has ended."""
        phase, opened = ledger.phase(), ledger.open_round()
        if phase in ENDED:
            return ""
        if opened is not None and opened.closing:
            return f"the average of round {opened.number}"
        if opened is not None:
            turnout, quorum = ledger.turnout(opened), self.settings.quorum
            if not turnout.awaited:
                return f"{turnout.required(quorum)} deltas; {len(turnout.pushed)} came, others left"
            return f"deltas of {', '.join(turnout.awaited)}"
        if phase is Phase.EVALUATING:
            return f"evaluations of {', '.join(self.unmeasured(ledger)) or 'nobody'}"
        if ledger.run.paused:
            return "the operator, who paused the run"
        missing = self.settings.min_clients - len(self.active(ledger))
        return f"{missing} more client{'s' * (missing > 1)}" if missing > 0 else "the next round"
