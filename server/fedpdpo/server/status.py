"""The run at this moment, packed for people: what `fedpdpo status` and the live table show."""

from sqlalchemy import select

from fedpdpo.common.wire import run_to_message
from fedpdpo.server.federation import Federation
from fedpdpo.server.rows import ClientRow, EvaluationRow
from fedpdpo.v1 import metrics_pb2, operator_pb2

_SHOWN_VERSIONS = 10

#: What a message of 4 MiB, gRPC's limit, holds of evaluations beside 10,000 clients.
_SHOWN_EVALUATIONS = 10_000


def status(federation: Federation) -> operator_pb2.GetStatusResponse:
    """A snapshot of a federation; of many clients the newest accuracies alone."""
    with federation.reading() as ledger:
        stage = federation.stage
        turnout = federation.turnout() if stage.round_number else None
        clients = select(ClientRow).order_by(ClientRow.client_id)
        version = stage.version or 0
        most = _SHOWN_EVALUATIONS // max(1, len(stage.joined | stage.left))
        shown = EvaluationRow.version > version - max(1, min(_SHOWN_VERSIONS, most - 1))
        if most > 1:
            shown |= EvaluationRow.version == 0
        found = (
            select(EvaluationRow)
            .where(shown)
            .order_by(EvaluationRow.version, EvaluationRow.client_id)
        )
        return operator_pb2.GetStatusResponse(
            run=run_to_message(federation.run),
            phase=operator_pb2.Phase.Value(f"PHASE_{stage.phase}"),
            paused=stage.paused,
            round=stage.round_number,
            adapter_version=version,
            sampled=sorted(turnout.sampled) if turnout else (),
            pushed=sorted(turnout.pushed) if turnout else (),
            waiting_for=federation.waiting_for(),
            clients=[_client(federation, row) for row in ledger.session.scalars(clients)],
            evaluations=[_evaluation(row) for row in ledger.session.scalars(found)],
        )


def evaluations(federation: Federation) -> list[operator_pb2.ClientEvaluation]:
    """What clients measured on all adapters, in the order of versions and clients."""
    with federation.reading() as ledger:
        found = select(EvaluationRow).order_by(EvaluationRow.version, EvaluationRow.client_id)
        return [_evaluation(row) for row in ledger.session.scalars(found)]


def _client(federation: Federation, row: ClientRow) -> operator_pb2.ClientStatus:
    sign = federation.presence.sign(row.client_id)
    sent, received = federation.traffic.totals(row)
    return operator_pb2.ClientStatus(
        client_id=row.client_id,
        num_train_pairs=row.num_train_pairs,
        left=row.left,
        last_seen_s=federation.presence.silent_s(row.client_id),
        activity=sign.activity,
        progress=sign.progress,
        bytes_received=received,
        bytes_sent=sent,
        remarks=[]
        if row.left
        else federation.presence.remarks(
            row.client_id, patience_s=federation.settings.progress_deadline_s
        ),
    )


def _evaluation(row: EvaluationRow) -> operator_pb2.ClientEvaluation:
    return operator_pb2.ClientEvaluation(
        client_id=row.client_id,
        adapter_version=row.version,
        num_pairs=row.num_pairs,
        evaluations=[
            metrics_pb2.Evaluation(
                view=metrics_pb2.View.Value(view),
                metrics=metrics_pb2.PreferenceMetrics(**metrics),
            )
            for view, metrics in row.views.items()
        ],
    )
