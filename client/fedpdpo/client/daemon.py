"""The client process: prepares once, then does what the server asks until the run has ended."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.heart import Heart
from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.link import Link
from fedpdpo.client.machine import CoreShare, Neighbours
from fedpdpo.client.model.backbone import device_of
from fedpdpo.client.model.lora import layout_of
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.preparation import (
    client_seed,
    load_policy,
    prepare_all,
    read_pairs,
    tokens_of,
    tokens_per_step,
    trunk_cache,
)
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.state import ClientState
from fedpdpo.client.trainer import Trainer, round_key
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.client.unfinished import Unfinished
from fedpdpo.client.vault import Vault
from fedpdpo.client.worker import Worker
from fedpdpo.common.errors import BadState
from fedpdpo.common.files import held
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)


def run_client(settings: ClientSettings) -> None:
    """Take part in the run of a server until it has ended.

    Of several processes that were launched together the first does so, and the others train with
    it. Raises BadData, BadModel, BadState or Refused, each with what to do.
    """
    train, held_out = read_pairs(settings)
    crew = Crew(device=settings.device)
    settings = settings.model_copy(update={"device": str(device_of(crew.device))})
    with contextlib.ExitStack() as closing:
        closing.callback(crew.close)
        neighbours, interruption = Neighbours(), Interruption()
        closing.enter_context(interruption.handled())
        closing.enter_context(neighbours.present())
        process = Process(settings, crew, CoreShare(settings.threads, neighbours), interruption)
        process.cores.take()
        if crew.leads:
            _lead(process, train, held_out, closing)
        else:
            _follow(process, train)


@dataclass(frozen=True)
class Process:
    """What this process runs with."""

    settings: ClientSettings
    crew: Crew
    cores: CoreShare
    interruption: Interruption


def _lead(
    process: Process,
    train: Sequence[Preference],
    held_out: Sequence[Preference],
    closing: contextlib.ExitStack,
) -> None:
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
    backbone, policy = load_policy(settings, run, model=model, client_id=state.client_id)
    tokens = {
        part: tokens_of(some, backbone, settings)
        for part, some in (("train", train), ("eval", held_out))
    }
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
    heart = closing.enter_context(Heart(link, every_s=settings.heartbeat_s))
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
    Worker(
        policy, run, state, link, heart, trainer, train=sets["train"], held_out=sets["eval"]
    ).work()
    crew.tell(None)


def _follow(process: Process, train: Sequence[Preference]) -> None:
    settings, crew = process.settings, process.crew
    run, model, client_id = crew.hear()
    backbone, policy = load_policy(settings, run, model=model, client_id=client_id)
    tokens = tokens_of(train, backbone, settings)
    policy.check(max(tokens, key=len))
    reference_logps = crew.hear()
    if len(reference_logps) != len(tokens):
        raise BadState(
            f"this process read {len(tokens)} pairs to train on, the first one "
            f"{len(reference_logps)}; give all processes of a client the same data"
        )
    trunk = trunk_cache(policy, backbone, settings, part="train")
    at_once = tokens_per_step(settings, policy)
    pairs = PairSet(tokens, reference_logps, at_once, trunk)
    new_trainer(process, policy, run, pairs, client_id=client_id).follow()


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
