"""The federation: one run, its lock, and what each client shall do now.

The modules around it change the run: `membership` (join, leave), `intake` (deltas, evaluations),
`steps` (rounds), `operations` (pause, stop). Each change is one transaction, so the state
directory is consistent whenever the process dies.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy.orm import Session

from fedpdpo.common.errors import Mismatch, NotFound, StorageAway
from fedpdpo.common.run import Run
from fedpdpo.server.ledger import Ledger
from fedpdpo.server.meters import Meters
from fedpdpo.server.presence import Presence
from fedpdpo.server.rounds import Phase, Turnout
from fedpdpo.server.runs import open_run
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.store import Store
from fedpdpo.server.tasks import Evaluate, Finish, Task, Train, Wait
from fedpdpo.server.traffic import Traffic

#: Up to so many clients are named where some are waited for.
_NAMED = 20


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


class Federation:
    """One run. `clock` gives seconds since the epoch, `ticks` seconds that never jump.

    Ages and deadlines are counted in `ticks`, from when this process first saw what they are of;
    so neither a clock that is set nor the time when no server ran counts. `stage` is how far the
    run is, as the database has it. `notify` is called after every change, `turned` after one that
    may give clients that wait something to do.

    Raises Mismatch where the store holds a run with other settings, BadState where it lacks the
    newest adapter, StorageAway.
    """

    def __init__(
        self,
        store: Store,
        settings: ServerSettings,
        *,
        clock: Callable[[], float],
        ticks: Callable[[], float],
        notify: Callable[[], None] = lambda: None,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self._notify = notify
        self._turned = turned
        self.run = open_run(store, settings)
        self._ticks = ticks
        self._first_seen: dict[str, float] = {}
        self.presence = Presence(ticks, timeout_s=settings.client_timeout_s)
        self.traffic = Traffic()
        self.meters = Meters()
        self.lock = threading.RLock()
        self._in_doubt = False
        self._connection = store.connections
        with self.reading() as ledger:
            self.stage = ledger.stage()
            newest = None if self.stage.version is None else ledger.adapter(self.stage.version)
        if newest is not None:
            store.adapter(newest)
        self.forget_deltas()

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """A consistent view of the run."""
        with self.lock:
            self.settle_doubt()
            with self._session() as session:
                yield Ledger(session, clock=self.clock, num_rounds=self.run.num_rounds)

    @contextmanager
    def writing(self) -> Iterator[Ledger]:
        """A transaction on the run; those who wait for a change are told when it is durable."""
        with self._transacting() as ledger:
            yield ledger
        self._notify()

    @contextmanager
    def turning(self) -> Iterator[Ledger]:
        """A transaction that may change the stage, and so what clients that wait shall do."""
        with self.lock:
            with self._transacting() as ledger:
                yield ledger
                stage = ledger.stage()
            self.stage = stage
        self._notify()
        self._turned()

    @contextmanager
    def _transacting(self) -> Iterator[Ledger]:
        with self.lock:
            self.settle_doubt()
            with self._session() as session:
                ledger = Ledger(session, clock=self.clock, num_rounds=self.run.num_rounds)
                yield ledger
                session.commit()
            for change in ledger.once_durable:
                change(self.stage)

    @contextmanager
    def _session(self, *, settles: bool = False) -> Iterator[Session]:
        """A session on the connection by which all is known that this process believes.

        A database that went away may have done what it did not tell, and another server may have
        gone on with the run since: what is believed is in doubt then. `settles` takes the new
        connection for what is known from now on. Raises StorageAway.
        """
        try:
            with self.store.session() as session:
                session.connection()  # a lost one is replaced here
                if settles:
                    self._connection = self.store.connections
                elif self._connection != self.store.connections:
                    raise StorageAway("the database was away; how far the run is, is seen anew")
                yield session
        except StorageAway:
            self._in_doubt = True
            raise

    def settle_doubt(self) -> None:
        """See anew how far the run is, where that may not be known. Raises StorageAway."""
        with self.lock:
            if not self._in_doubt:
                return
            with self._session(settles=True) as session:
                ledger = Ledger(session, clock=self.clock, num_rounds=self.run.num_rounds)
                self.run, self.stage = Run.model_validate(ledger.run.spec), ledger.stage()
            self._in_doubt = False
        self._notify()
        self._turned()

    def forget_deltas(self) -> None:
        """Remove the deltas that no average needs any more."""
        with self.reading() as ledger:
            following = (self.stage.version or 0) + 1
            path_of = self.store.delta_path
            rows = ledger.deltas_from(following)
            oldest = min((self.oldest_round(following), *(row.round_number for row in rows)))
            wanted = {path_of(row.round_number, row.client_id) for row in rows}
            self.store.put_aside(but=wanted, from_round=oldest)
        self.store.remove_useless()

    def oldest_round(self, following: int) -> int:
        """The oldest round whose deltas may count in the average of round `following`."""
        if self.settings.late == "drop":
            return following
        return max(1, following - self.settings.max_staleness)

    def turnout(self) -> Turnout:
        """How the open round stands; clients that show no progress are not awaited."""
        since_s = self._seen_at(f"round {self.stage.round_number}")
        patience_s = self.settings.progress_deadline_s
        with self.lock:
            stuck = {
                client_id
                for client_id in self.stage.sampled
                if self.presence.still_s(client_id, since_s=since_s) > patience_s
            }
            return self.stage.turnout(stuck=stuck)

    def age_s(self, what: str) -> float:
        """Seconds since this process first asked for the age of something."""
        return self._ticks() - self._seen_at(what)

    def _seen_at(self, what: str) -> float:
        with self.lock:
            if what not in self._first_seen:
                self._first_seen = {what: self._ticks()}
            return self._first_seen[what]

    def check_run(self, run_id: str) -> None:
        """Raise Mismatch for another run's id."""
        if run_id != self.run.run_id:
            raise Mismatch(
                f"this server drives run {self.run.run_id}, not {run_id[:64] or '(none)'}; "
                "start the client with another --state-dir for another run"
            )

    def check_joined(self, client_id: str) -> None:
        """Raise NotFound for a client that has not joined, or has left."""
        if client_id not in self.stage.joined:
            raise NotFound(f"client {client_id[:64]} has not joined the run; join first")

    def active(self) -> list[str]:
        """Clients that have joined, not left, and been heard lately; sorted."""
        with self.lock:
            return sorted(filter(self.presence.is_here, self.stage.joined))

    def unmeasured(self) -> list[str]:
        """Active clients that have not measured the newest adapter; sorted."""
        measured = self.stage.measured
        return [client_id for client_id in self.active() if client_id not in measured]

    def task(self, client_id: str) -> Task:
        """What a client shall do now. Asking changes nothing. Raises NotFound, StorageAway."""
        with self.lock:
            self.check_joined(client_id)
            self.presence.heard(client_id)
            if self._in_doubt:
                raise StorageAway("how far the run is, is not known; another server may go on")
            stage = self.stage
            if stage.version is None:
                return Wait()
            if stage.ended:
                return Finish(stage.version, stopped=stage.phase is Phase.STOPPED)
            if client_id not in stage.measured:
                return Evaluate(stage.version)
            asked = client_id in stage.sampled and not stage.closing
            if asked and client_id not in stage.answered:
                return Train(stage.round_number)
            return Wait()

    def waiting_for(self) -> str:
        """What the run waits for, for people; empty when it has ended."""
        stage = self.stage
        if stage.ended:
            return ""
        if stage.closing:
            return f"the average of round {stage.round_number}"
        if stage.round_number:
            turnout, quorum = self.turnout(), self.settings.quorum
            if not turnout.awaited:
                gone = _some(sorted(turnout.sampled & turnout.gone - turnout.pushed))
                return (
                    f"{turnout.required(quorum)} deltas; {len(turnout.pushed)} came, "
                    f"gone or stuck: {gone}"
                )
            return f"deltas of {_some(turnout.awaited)}"
        if stage.phase is Phase.EVALUATING:
            return f"evaluations of {_some(self.unmeasured()) or 'nobody'}"
        if stage.paused:
            return "the operator, who paused the run"
        missing = self.settings.min_clients - len(self.active())
        return f"{missing} more client{'s' * (missing > 1)}" if missing > 0 else "the next round"
