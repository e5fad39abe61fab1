"""Clients come and go. The first one that joins fixes the run's backbone and LoRA layout."""

import re
from dataclasses import dataclass

from fedpdpo.common.encoding import DeltaFormat, Encoding
from fedpdpo.common.errors import BadRequest, Forbidden, Mismatch, NotFound
from fedpdpo.common.header import Contents
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.log import printable
from fedpdpo.common.run import Run
from fedpdpo.server.averaging import initial_adapter
from fedpdpo.server.federation import Federation
from fedpdpo.server.ledger import Ledger
from fedpdpo.server.product_averaging import layers_of
from fedpdpo.server.rows import ClientRow
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.steps import write_adapter

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Newcomer:
    """What a client says of itself when it joins.

    Raises BadRequest for a malformed fingerprint or a count out of range.
    """

    client_id: str
    backbone_fingerprint: str
    tokenizer_fingerprint: str
    layout: LoraLayout
    num_train_pairs: int
    num_eval_pairs: int
    encodings: tuple[str, ...] = ()
    zstd: bool = False

    def __post_init__(self) -> None:
        for fingerprint in (self.backbone_fingerprint, self.tokenizer_fingerprint):
            if not _FINGERPRINT.fullmatch(fingerprint):
                raise BadRequest(f"the fingerprint {fingerprint[:80]!r} is not 64 hex digits")


def format_of(row: ClientRow) -> DeltaFormat:
    """How a client's deltas travel, as was agreed when it joined."""
    return DeltaFormat(Encoding(row.encoding), row.topk_share)


def _agree(row: ClientRow, client: Newcomer, settings: ServerSettings) -> None:
    """Take the wanted encoding where the client knows it, else float32, for the whole run."""
    known = settings.encoding in client.encodings
    row.encoding = settings.encoding if known else Encoding.FLOAT32
    row.topk_share = settings.topk_share
    row.zstd = settings.zstd and client.zstd


def join(federation: Federation, client: Newcomer) -> tuple[Run, ClientRow]:
    """Enter a client, or enter it again; gives the run, and what was agreed.

    Raises Mismatch for another backbone, tokenizer or layout than the run's, or for a newcomer
    when the run has ended; BadPayload where the rule of averages cannot do with the
    layout; StorageFull.
    """
    with federation.lock:
        federation.settle_doubt()
        run = federation.run
        entering = federation.writing if run.lora_layout else federation.turning
        with entering() as ledger:
            row = ledger.session.get(ClientRow, client.client_id)
            if row is None:
                _check_room(federation)
            _check_pairs(client, most=federation.settings.max_pairs)
            if not run.lora_layout:
                run = _fixed(federation, ledger, client)
            _check_same(run, client)
            kind = "client_joined" if row is None or row.left else "client_rejoined"
            if row is None:
                row = ClientRow(client_id=client.client_id)
                ledger.session.add(row)
                _agree(row, client, federation.settings)
            row.left = False
            row.num_train_pairs, row.num_eval_pairs = client.num_train_pairs, client.num_eval_pairs
            ledger.record(kind, client=client.client_id, train_pairs=client.num_train_pairs)
            federation.presence.came(client.client_id)
            ledger.once_durable.append(lambda stage: stage.note_joined(client.client_id))
        federation.run = run
    return run, row


def _check_room(federation: Federation) -> None:
    if federation.stage.ended:
        raise Mismatch(f"run {federation.run.run_id} has ended; ask its operator for another")
    if len(federation.stage.joined | federation.stage.left) >= federation.settings.max_clients:
        raise Forbidden(f"the run has its {federation.settings.max_clients} clients")


def _check_pairs(client: Newcomer, *, most: int) -> None:
    for what, count in (("training", client.num_train_pairs), ("held-out", client.num_eval_pairs)):
        if not 1 <= count <= most:
            raise BadRequest(f"{count} {what} pairs; this run takes 1 to {most}")


def _fixed(federation: Federation, ledger: Ledger, client: Newcomer) -> Run:
    size, most = Contents.of(client.layout).num_bytes, federation.settings.max_adapter_mib
    if size > most * 2**20:
        raise BadRequest(f"an adapter of {size} bytes; this run takes {most} MiB at most")
    if federation.settings.averaging == "products":
        layers_of(client.layout)
    specs = [{"name": name, "shape": shape} for name, shape in client.layout.shapes]
    fixed = {
        "backbone_fingerprint": client.backbone_fingerprint,
        "tokenizer_fingerprint": client.tokenizer_fingerprint,
        "lora_layout": specs,
    }
    run = Run.model_validate(federation.run.model_dump() | fixed)
    first = initial_adapter(client.layout, seed=run.seed)
    ledger.session.add(write_adapter(federation.store, 0, client.layout, first))
    ledger.run.spec = run.model_dump(mode="json")
    ledger.record("run_fixed", by=client.client_id, backbone=client.backbone_fingerprint[:12])
    return run


def _check_same(run: Run, client: Newcomer) -> None:
    for what, theirs, ours in (
        ("backbone", client.backbone_fingerprint, run.backbone_fingerprint),
        ("tokenizer", client.tokenizer_fingerprint, run.tokenizer_fingerprint),
    ):
        if theirs != ours:
            raise Mismatch(
                f"the client's {what} has fingerprint {theirs[:12]}, the run's {ours[:12]}; "
                f"load the same weights and tokenizer as the others ({run.model})"
            )
    if difference := run.layout.difference(client.layout):
        raise Mismatch(f"the LoRA layout differs: {difference} (here the run, there the client)")


def leave(federation: Federation, client_id: str) -> None:
    """Let a client go; it may join again. One that has left stays so. Raises NotFound."""
    with federation.writing() as ledger:
        row = ledger.session.get(ClientRow, client_id)
        if row is None:
            raise NotFound(f"client {client_id} has never joined the run")
        if not row.left:
            row.left = True
            ledger.record("client_left", client=client_id)
            ledger.once_durable.append(lambda stage: stage.note_left(client_id))


def heartbeat(federation: Federation, client_id: str, *, activity: str, progress: float) -> None:
    """Note that a client lives and how far it is. Raises NotFound."""
    federation.check_joined(client_id)
    share = min(max(0.0, progress), 1.0)  # in this order NaN becomes 0
    federation.presence.heard(client_id, activity=printable(activity)[:100], progress=share)
