"""How a client enters a run: identity, backbone and pairs, and the worker that does the rest."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.heart import Heart
from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.link import Link
from fedpdpo.client.machine import CoreShare
from fedpdpo.client.model.backbone import Backbone
from fedpdpo.client.model.lora import layout_of
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.preparation import client_seed, load_policy, prepare_all, tokens_of
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.state import ClientState
from fedpdpo.client.trainer import Trainer, round_key
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.client.unfinished import Unfinished
from fedpdpo.client.vault import Vault
from fedpdpo.client.worker import Worker
from fedpdpo.common.files import held
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """What this process runs with."""

    settings: ClientSettings
    crew: Crew
    cores: CoreShare
    interruption: Interruption


Load = Callable[[ClientSettings, Run, str, str], tuple[Backbone, Policy]]


def enter(
    process: Process,
    train: Sequence[Preference],
    held_out: Sequence[Preference],
    closing: contextlib.ExitStack,
    *,
    load: Load = load_policy,
    beats: bool = True,
) -> Worker:
    """Join the run of the settings' server, or go on in it, with all that its rounds need.

    `closing` takes what must be closed. `load` is called with settings, run, model and client id.
    Without `beats` no thread tells the server that the client lives. Raises BadModel, BadState or
    Refused.
    """
    settings, crew = process.settings, process.crew
    closing.enter_context(held(settings.state_dir))
    vault = Vault.of(settings.state_key, settings.state_key_file)
    state = ClientState(settings.state_dir, client_id=settings.client_id, vault=vault)
    link = Link(
        settings.server,
        state.client_id,
        connect_timeout_s=settings.connect_timeout_s,
        stall_s=settings.stall_timeout_s,
        access=settings,
    )
    closing.callback(link.close)
    run = link.get_run()
    model = settings.model or run.model
    state.bind(run, model=model)
    crew.tell((run, model, state.client_id))
    backbone, policy = load(settings, run, model, state.client_id)
    tokens = {
        part: tokens_of(some, backbone, settings)
        for part, some in (("train", train), ("eval", held_out))
    }
    if not policy.checked:
        policy.check(max(tokens["train"] + tokens["eval"], key=len))
    run = link.join(
        backbone_fingerprint=backbone.fingerprint,
        tokenizer_fingerprint=backbone.tokenizer_fingerprint,
        layout=layout_of(policy.peft_model),
        num_train_pairs=len(train),
        num_eval_pairs=len(held_out),
    )
    state.bind(run, model=model)
    log.info(fields("joined", server=settings.server, run=run.run_id, client=state.client_id))
    heart = Heart(link, every_s=settings.heartbeat_s)
    if beats:
        closing.enter_context(heart)
    closing.enter_context(heart.meters.served(settings.metrics_host, settings.metrics_port))
    if settings.track:
        from fedpdpo.client.tracking import Tracking  # its tools take seconds to import

        folder = settings.state_dir / "tracking"
        tracking = Tracking(settings.track, folder, run=run, client_id=state.client_id)
        closing.callback(tracking.close)
        heart.meters.log = tracking.log
    sets = prepare_all(policy, backbone, tokens, settings, heart)
    crew.tell(sets["train"].reference_logps)
    trainer = new_trainer(process, policy, run, sets["train"], client_id=state.client_id)
    return Worker(
        policy, run, state, link, heart, trainer, train=sets["train"], held_out=sets["eval"]
    )


def new_trainer(
    process: Process, policy: Policy, run: Run, pairs: PairSet, *, client_id: str
) -> Trainer:
    """What trains a client's rounds in its state directory."""
    settings = process.settings
    seed = client_seed(run.seed, client_id)
    how = f"{process.crew.size} {policy.dtype} {settings.quantize} {settings.head_moments}"
    return Trainer(
        policy,
        run,
        pairs,
        LocalOptimizer(policy, run.method, head_moments=settings.head_moments),
        Unfinished(
            settings.state_dir / "unfinished",
            key=round_key(run, pairs, seed=seed, process=how),
            vault=Vault.of(settings.state_key, settings.state_key_file),
        ),
        seed=seed,
        save_every_s=settings.save_every_s,
        crew=process.crew,
        cores=process.cores,
        interruption=process.interruption,
    )
