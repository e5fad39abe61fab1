"""What happens next in a run: rounds open, close and are averaged; the run ends."""

from safetensors.numpy import save_file

from fedpdpo.common.errors import BadPayload
from fedpdpo.common.files import sha256_of, whole_file
from fedpdpo.server.averaging import Array, SpooledDelta, averaged
from fedpdpo.server.federation import Federation
from fedpdpo.server.ledger import ENDED, Ledger
from fedpdpo.server.rounds import sample
from fedpdpo.server.store import AdapterRow, RoundRow


def step(federation: Federation) -> bool:
    """Do the next thing that is due; gives whether anything was done.

    A round that closes has its set of deltas fixed first; should the server die before their
    average is published, the next start averages the same set to the same bits. Averaging does
    not hold the run's lock. Raises StorageFull; the step can be tried again.
    """
    with federation.lock:
        with federation.reading() as ledger:
            if not _due(federation, ledger):
                return False
        with federation.writing() as ledger:
            opened = ledger.open_round()
            if opened is None:
                _open_or_end(federation, ledger)
                return True
            if not opened.closing:
                _close(ledger, opened)
            number = opened.number
            deltas = _spooled(federation, ledger, number)
    _average(federation, number, deltas)
    return True


def _due(federation: Federation, ledger: Ledger) -> bool:
    if ledger.phase() in ENDED:
        return False
    settings, opened, version = federation.settings, ledger.open_round(), ledger.version()
    if opened is not None:
        overdue = _age_s(federation, opened.opened_at_s) > settings.round_deadline_s
        turnout = ledger.turnout(opened)
        return opened.closing or turnout.may_close(quorum=settings.quorum, overdue=overdue)
    if version is None:
        return False
    if version == federation.run.num_rounds:
        published_at_s = ledger.session.get_one(RoundRow, version).published_at_s or 0.0
        overdue = _age_s(federation, published_at_s) > settings.evaluation_deadline_s
        return overdue or not federation.unmeasured(ledger)
    return not ledger.run.paused and len(federation.active(ledger)) >= settings.min_clients


def _age_s(federation: Federation, since_s: float) -> float:
    """Seconds since a moment, not counting the time before this server was started."""
    return federation.clock() - max(since_s, federation.presence.started_at_s)


def _open_or_end(federation: Federation, ledger: Ledger) -> None:
    version = ledger.version() or 0
    if version == federation.run.num_rounds:
        ledger.run.finished = True
        ledger.record("run_finished", rounds=version)
        return
    sampled = sample(
        federation.active(ledger),
        fraction=federation.settings.sample_fraction,
        seed=federation.run.seed,
        round_number=version + 1,
    )
    opened_at_s = federation.clock()
    ledger.session.add(RoundRow(number=version + 1, sampled=sampled, opened_at_s=opened_at_s))
    ledger.record("round_opened", round=version + 1, clients=",".join(sampled))


def _close(ledger: Ledger, opened: RoundRow) -> None:
    turnout = ledger.turnout(opened)
    opened.closing = True
    late = ",".join(turnout.awaited) or "none"
    ledger.record("round_closed", round=opened.number, deltas=len(turnout.pushed), late=late)


def _spooled(federation: Federation, ledger: Ledger, number: int) -> dict[str, SpooledDelta]:
    path_of = federation.store.delta_path
    return {
        row.client_id: SpooledDelta(path_of(number, row.client_id), row.num_pairs)
        for row in ledger.deltas(number)
    }


def _average(federation: Federation, number: int, deltas: dict[str, SpooledDelta]) -> None:
    present = federation.store.adapter_path(number - 1)
    refused = ""
    try:
        following = averaged(present, deltas, server_lr=federation.settings.server_lr)
    except BadPayload as error:
        following, refused = averaged(present, {}, server_lr=0.0), str(error)
    with federation.writing() as ledger:
        if ledger.phase() in ENDED:
            return
        publish(federation, ledger, number, following)
        ledger.session.get_one(RoundRow, number).published_at_s = federation.clock()
        if refused:
            ledger.record("average_refused", round=number, reason=refused)
        ledger.record("adapter_published", version=number, clients=len(deltas))
    federation.store.forget_deltas(number)


def publish(
    federation: Federation, ledger: Ledger, version: int, adapter: dict[str, Array]
) -> None:
    """Write an adapter durably and enter it into the transaction. Raises StorageFull."""
    path = federation.store.adapter_path(version)
    with whole_file(path) as partial:
        save_file(adapter, partial)
    size, digest = path.stat().st_size, sha256_of(path)
    ledger.session.add(AdapterRow(version=version, num_bytes=size, sha256=digest))
