"""What happens next in a run: rounds open, close and are averaged; the run ends."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedpdpo.common.errors import BadPayload
from fedpdpo.common.files import whole_file
from fedpdpo.common.header import Contents
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.tensorfile import Array, write_tensors
from fedpdpo.common.tracing import span
from fedpdpo.server.admission import scales
from fedpdpo.server.averaging import SpooledDelta, averaged
from fedpdpo.server.federation import Federation
from fedpdpo.server.ledger import Ledger
from fedpdpo.server.product_averaging import averaged_products
from fedpdpo.server.rounds import Phase, num_asked, sample, staleness_weight
from fedpdpo.server.rows import AdapterRow, DeltaRow, RoundRow
from fedpdpo.server.store import Store

RULES = {"factors": averaged, "products": averaged_products}


def step(federation: Federation) -> bool:
    """Do the next thing that is due; gives whether anything was done.

    A round that closes has its set of deltas fixed first; should the server die before their
    average is published, the next start averages the same set to the same bits. Averaging does
    not hold the run's lock. Raises StorageFull or StorageAway; the step can be tried again.
    """
    with federation.lock:
        federation.settle_doubt()
        if not _due(federation):
            return False
        with federation.turning() as ledger:
            opened = ledger.open_round()
            if opened is None:
                return _open_or_end(federation, ledger)
            if not opened.closing:
                _close(federation, ledger, opened)
            number, present = opened.number, ledger.adapter(opened.number - 1)
            rows = ledger.deltas(number)
    phase = federation.meters.phases.labels("averaging")
    with phase.time(), span("averaging", round=number, deltas=len(rows)):
        adapter = federation.store.adapter(present)
        _average(federation, number, adapter, _spooled(federation, rows, number))
    return True


def _due(federation: Federation) -> bool:
    settings, stage = federation.settings, federation.stage
    if stage.ended or stage.version is None:
        return False
    if stage.phase is Phase.TRAINING:
        overdue = federation.age_s(f"round {stage.round_number}") > settings.round_deadline_s
        return stage.closing or federation.turnout().may_close(
            quorum=settings.quorum, close_after=settings.close_after, overdue=overdue
        )
    if stage.phase is Phase.EVALUATING:
        overdue = federation.age_s("the last adapter") > settings.evaluation_deadline_s
        return overdue or not federation.unmeasured()
    return not stage.paused and len(federation.active()) >= settings.min_clients


def _open_or_end(federation: Federation, ledger: Ledger) -> bool:
    """Open the next round or end the run; gives whether it did. Clients may have gone by now."""
    version = federation.stage.version or 0
    if version == federation.run.num_rounds:
        ledger.run.finished = True
        ledger.record("run_finished", rounds=version)
        return True
    settings, here = federation.settings, federation.active()
    if len(here) < settings.min_clients:
        return False
    num_drawn = num_asked(
        len(here), fraction=settings.sample_fraction, number=settings.sample_clients
    )
    sampled = sample(here, num_drawn=num_drawn, seed=federation.run.seed, round_number=version + 1)
    opened_at_s = federation.clock()
    ledger.session.add(RoundRow(number=version + 1, sampled=sampled, opened_at_s=opened_at_s))
    ledger.record("round_opened", round=version + 1, clients=",".join(sampled))
    return True


def _close(federation: Federation, ledger: Ledger, opened: RoundRow) -> None:
    turnout = federation.turnout()
    opened.closing = True
    federation.meters.phases.labels("training").observe(federation.age_s(f"round {opened.number}"))
    late = ",".join(sorted(turnout.sampled - turnout.pushed)) or "none"
    ledger.record("round_closed", round=opened.number, deltas=turnout.arrived, late=late)
    rows = ledger.deltas(opened.number)
    factors, most = _scales(federation, rows)
    for row, scale in zip(rows, factors, strict=True):
        if scale < 1:
            kind = "clipped" if scale else "refused"
            federation.meters.left_out.labels(kind).inc()
            ledger.record(
                f"delta_{kind}",
                round=opened.number,
                client=row.client_id,
                norm=row.norm,
                bound=most,
            )
            reason = f"a delta of norm {row.norm:.3g}, {most:.3g} is the bound"
            note = federation.presence.clipped if scale else federation.presence.refused
            note(row.client_id, reason)


def _scales(federation: Federation, rows: Sequence[DeltaRow]) -> tuple[list[float], float]:
    settings = federation.settings
    norms = [row.norm for row in rows]
    return scales(norms, bound=settings.norm_bound, over=settings.over_bound)


def _spooled(federation: Federation, rows: Sequence[DeltaRow], number: int) -> list[SpooledDelta]:
    settings = federation.settings
    factors, _ = _scales(federation, rows)
    return [
        SpooledDelta(
            federation.store.delta(row),
            row.num_pairs
            * staleness_weight(number - row.round_number, power=settings.staleness_power),
            scale,
        )
        for row, scale in zip(rows, factors, strict=True)
    ]


def _average(
    federation: Federation, number: int, present: Path, deltas: Sequence[SpooledDelta]
) -> None:
    layout = federation.run.layout
    refused = ""
    try:
        rule = RULES[federation.settings.averaging]
        following = rule(present, deltas, layout, server_lr=federation.settings.server_lr)
        row = write_adapter(federation.store, number, layout, following)
    except BadPayload as error:
        refused = str(error)
        same = averaged(present, (), layout, server_lr=0.0)
        row = write_adapter(federation.store, number, layout, same)
    with federation.turning() as ledger:
        if federation.stage.ended:
            return
        ledger.session.add(row)
        ledger.session.get_one(RoundRow, number).published_at_s = federation.clock()
        if refused:
            ledger.record("average_refused", round=number, reason=refused)
        ledger.record("adapter_published", version=number, clients=len(deltas))
    federation.forget_deltas()


def write_adapter(
    store: Store, version: int, layout: LoraLayout, tensors: Iterable[tuple[str, Array]]
) -> AdapterRow:
    """Write an adapter durably; it is published once the row is in.

    Raises StorageFull or StorageAway.
    """
    path = store.adapter_path(version)
    with whole_file(path) as partial:
        sha256 = write_tensors(partial, Contents.of(layout), tensors)
    store.keep(path, path, sha256)
    return AdapterRow(version=version, num_bytes=path.stat().st_size, sha256=sha256)
