"""What an operator may do to a run: pause, resume, stop, read its events."""

from sqlalchemy import select

from fedpdpo.common.errors import NotOpen
from fedpdpo.server.federation import Federation
from fedpdpo.server.rounds import Phase
from fedpdpo.server.store import EventRow, RunRow


def set_paused(federation: Federation, paused: bool) -> None:
    """Pause or resume. Raises NotOpen where the run has ended."""
    with federation.lock, federation.store.session() as session, session.begin():
        if federation.phase(session) in (Phase.FINISHED, Phase.STOPPED):
            raise NotOpen("the run has ended; there is nothing to pause or resume")
        session.scalars(select(RunRow)).one().paused = paused
        federation.record(session, "run_paused" if paused else "run_resumed")
    federation.notify()


def stop(federation: Federation) -> None:
    """End the run with its last published adapter. An ended run stays as it is."""
    with federation.lock, federation.store.session() as session, session.begin():
        if federation.phase(session) not in (Phase.FINISHED, Phase.STOPPED):
            session.scalars(select(RunRow)).one().stopped = True
            federation.record(session, "run_stopped")
    federation.notify()


def events_after(federation: Federation, number: int, *, at_most: int = 1000) -> list[EventRow]:
    """Events with a higher number, in order."""
    later = select(EventRow).where(EventRow.number > number).order_by(EventRow.number)
    with federation.reading() as session:
        return list(session.scalars(later.limit(at_most)))
