"""What an operator may do to a run: pause, resume, stop, see its events."""

from sqlalchemy import select

from fedpdpo.common.errors import NotOpen
from fedpdpo.server.federation import Federation
from fedpdpo.server.rows import EventRow

_MAX_NUMBER = 2**63 - 1  # SQLite's largest


def set_paused(federation: Federation, paused: bool) -> None:
    """Pause or resume. Raises NotOpen where the run has ended."""
    with federation.turning() as ledger:
        if federation.stage.ended:
            raise NotOpen("the run has ended; there is nothing to pause or resume")
        ledger.run.paused = paused
        ledger.record("run_paused" if paused else "run_resumed")


def stop(federation: Federation) -> None:
    """End the run with its last published adapter. An ended run stays as it is."""
    with federation.turning() as ledger:
        if not federation.stage.ended:
            ledger.run.stopped = True
            ledger.record("run_stopped")


def events_after(federation: Federation, number: int, *, at_most: int = 1000) -> list[EventRow]:
    """Events with a higher number, in order."""
    later = (
        select(EventRow).where(EventRow.number > min(number, _MAX_NUMBER)).order_by(EventRow.number)
    )
    with federation.reading() as ledger:
        return list(ledger.session.scalars(later.limit(at_most)))
