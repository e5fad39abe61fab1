"""What clients send: deltas and evaluations, checked, then kept durably."""

import contextlib
import math
from dataclasses import asdict, dataclass

from fedpdpo.common.errors import AlreadyPushed, BadRequest, NotOpen
from fedpdpo.common.metrics import MOST, Metrics
from fedpdpo.common.payload import Receiver
from fedpdpo.server.admission import norm_of
from fedpdpo.server.federation import Federation
from fedpdpo.server.ledger import Ledger
from fedpdpo.server.membership import format_of
from fedpdpo.server.rows import DeltaRow, EvaluationRow

#: After so many bytes what came of a delta is forced to the disk and counts as held.
SYNC_BYTES = 2**24

_MAX_PAIRS = 10**9


@dataclass(frozen=True)
class Announced:
    """A delta that a client is about to send."""

    client_id: str
    round_number: int
    num_pairs: int
    num_bytes: int
    sha256: bytes
    report: dict[str, float]


class Intake:
    """Receives what clients send to a federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    def receiver(self, delta: Announced) -> Receiver | None:
        """A receiver for a delta's bytes; None where the same delta has been counted.

        Raises NotFound, NotOpen, AlreadyPushed, BadRequest, TooLarge or BadPayload.
        """
        federation = self._federation
        most = federation.settings.max_pairs
        if not 1 <= delta.num_pairs <= most:
            raise BadRequest(f"a delta of {delta.num_pairs} pairs; this run takes 1 to {most}")
        if not all(abs(value) <= MOST for value in delta.report.values()):
            raise BadRequest(f"the training report holds NaN or a number beyond {MOST:g}")
        with federation.reading() as ledger:
            if _counts_in(federation, ledger, delta) is None:
                return None
            client = ledger.client(delta.client_id)
        return Receiver(
            federation.store.delta_path(delta.round_number, delta.client_id),
            num_bytes=delta.num_bytes,
            sha256=delta.sha256,
            contents=format_of(client).contents(federation.run.layout),
            sync_bytes=SYNC_BYTES,
        )

    def accept(self, delta: Announced, received: Receiver) -> bool:
        """Check and count a delta that came whole; durable when this returns.

        Returns whether the same delta had been counted meanwhile. Raises CutOff, WrongDigest,
        BadPayload, NotOpen, AlreadyPushed, StorageFull or StorageAway; nothing is counted then.
        """
        federation = self._federation
        received.finish()
        norm = math.inf
        with contextlib.suppress(FileNotFoundError):  # put aside by now, and late
            norm = norm_of(received.part, federation.run.layout)
            federation.store.keep(received.part, received.path, delta.sha256)
        with federation.writing() as ledger:
            counts_in = _counts_in(federation, ledger, delta)
            if counts_in is None:
                return True
            received.keep()
            federation.traffic.put_into(ledger.client(delta.client_id))
            older = ledger.deltas_of(delta.client_id, counts_in)
            for row in older:
                ledger.session.delete(row)
                ledger.record("delta_replaced", round=row.round_number, client=delta.client_id,
                              by=delta.round_number)  # fmt: skip
            ledger.once_durable.append(
                lambda stage: stage.note_answered(
                    delta.client_id, delta.round_number, counts_in=counts_in, instead=len(older)
                )
            )
            ledger.session.add(
                DeltaRow(
                    round_number=delta.round_number,
                    client_id=delta.client_id,
                    counts_in=counts_in,
                    num_pairs=delta.num_pairs,
                    num_bytes=delta.num_bytes,
                    sha256=delta.sha256,
                    norm=norm,
                    report=delta.report,
                )
            )
            ledger.record(
                "delta_received",
                round=delta.round_number,
                client=delta.client_id,
                counts_in=counts_in,
                pairs=delta.num_pairs,
                loss=delta.report.get("loss", 0.0),
                norm=norm,
            )
        return False

    def evaluation(
        self, client_id: str, *, version: int, num_pairs: int, views: dict[str, Metrics]
    ) -> None:
        """Keep a client's held-out metrics of an adapter; the last report counts.

        Raises NotFound for an unknown client or version, BadRequest for counts out of range.
        """
        federation = self._federation
        if not 1 <= num_pairs <= _MAX_PAIRS or not views:
            raise BadRequest(f"an evaluation of {len(views)} views on {num_pairs} pairs")
        with federation.writing() as ledger:
            client = ledger.client(client_id)
            ledger.adapter(version)
            federation.traffic.put_into(client)
            ledger.once_durable.append(lambda stage: stage.note_measured(client_id, version))
            ledger.session.merge(
                EvaluationRow(
                    version=version,
                    client_id=client_id,
                    num_pairs=num_pairs,
                    views={view: asdict(metrics) for view, metrics in views.items()},
                )
            )
            accuracies = {
                view.removeprefix("VIEW_").lower(): metrics.combined_accuracy
                for view, metrics in views.items()
            }
            ledger.record("evaluated", version=version, client=client_id, **accuracies)


def _counts_in(federation: Federation, ledger: Ledger, delta: Announced) -> int | None:
    """The round in whose average a delta shall be; None where it is counted already.

    That is the round it answers while this is open, and for a late one the next average, where
    late deltas are folded in. A client has one delta in an average, its newest. Raises NotFound,
    NotOpen or AlreadyPushed.
    """
    number = delta.round_number
    federation.check_joined(delta.client_id)
    if found := ledger.session.get(DeltaRow, (number, delta.client_id)):
        if found.sha256 == delta.sha256:
            return None
        raise AlreadyPushed(f"another delta of {delta.client_id} for round {number} counts")
    stage = federation.stage
    if stage.ended:
        raise NotOpen(f"round {number} is not open, the run has ended")
    following = (stage.version or 0) + 1 + stage.closing
    late = number < following
    asked = stage.sampled if number == stage.round_number else ledger.sampled(number)
    if not asked or (late and number < federation.oldest_round(following)):
        now = f"round {stage.round_number} is open" if stage.round_number else "no round is open"
        if stage.closing:
            now = f"round {stage.round_number} is being averaged"
        raise NotOpen(f"round {number} is not open, {now}; ask for the present task")
    if following > federation.run.num_rounds:
        raise NotOpen(f"round {number} is not open, and no round follows")
    if delta.client_id not in asked:
        raise NotOpen(f"round {number} did not ask {delta.client_id} to train")
    if any(row.round_number > number for row in ledger.deltas_of(delta.client_id, following)):
        raise NotOpen(f"round {number} is not open, a newer delta of {delta.client_id} counts")
    return following
