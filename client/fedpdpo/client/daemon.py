"""The client process: prepares once, then does what the server asks until the run has ended."""

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fedpdpo.client.backbone import Backbone, device_of, dtype_of, load_backbone
from fedpdpo.client.holdout import split
from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.link import Heart, Link
from fedpdpo.client.lora import layout_of
from fedpdpo.client.machine import CoreShare, Neighbours
from fedpdpo.client.optimizer import LocalOptimizer
from fedpdpo.client.pairset import PairSet, keep_trunk, prepare
from fedpdpo.client.policy import Policy
from fedpdpo.client.preferences import Preference, read_preferences
from fedpdpo.client.progress import working
from fedpdpo.client.reference import ReferenceCache
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.state import ClientState
from fedpdpo.client.tokens import PairTokens, pair_tokens
from fedpdpo.client.trainer import Trainer, round_key
from fedpdpo.client.trunk import TrunkCache
from fedpdpo.client.unfinished import Unfinished
from fedpdpo.client.worker import Worker
from fedpdpo.common.files import held
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)

_TOKENS_PER_STEP = {"cpu": 512}


def run_client(settings: ClientSettings) -> None:
    """Take part in the run of a server until it has ended.

    Raises BadData, BadModel, BadState or Refused, each with what to do.
    """
    train, held_out = read_pairs(settings)
    device_of(settings.device)
    interruption, neighbours = Interruption(), Neighbours()
    cores = CoreShare(settings.threads, neighbours)
    with contextlib.ExitStack() as closing:
        closing.enter_context(held(settings.state_dir))
        closing.enter_context(interruption.handled())
        closing.enter_context(neighbours.present())
        cores.take()
        state = ClientState(settings.state_dir, client_id=settings.client_id)
        link = Link(settings.server, state.client_id, connect_timeout_s=settings.connect_timeout_s)
        closing.callback(link.close)
        run = link.get_run()
        model = settings.model or run.model
        state.bind(run, model=model)
        backbone, policy = load_policy(settings, run, model=model, client_id=state.client_id)
        parts = {"train": train, "eval": held_out}
        tokens = {part: _tokens(some, backbone, settings) for part, some in parts.items()}
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
        sets = prepare_all(policy, backbone, tokens, settings, state.folder, heart)
        seed = client_seed(run.seed, state.client_id)
        trainer = Trainer(
            policy,
            run,
            sets["train"],
            LocalOptimizer(policy, run.method, head_moments=settings.head_moments),
            Unfinished(state.folder / "unfinished", key=round_key(run, sets["train"], seed=seed)),
            seed=seed,
            save_every_s=settings.save_every_s,
            cores=cores,
            interruption=interruption,
        )
        Worker(
            policy, run, state, link, heart, trainer, train=sets["train"], held_out=sets["eval"]
        ).work()


def load_policy(
    settings: ClientSettings, run: Run, *, model: str, client_id: str
) -> tuple[Backbone, Policy]:
    """Load the backbone as the settings say and put the run's trained parts on it.

    Raises BadModel.
    """
    device = device_of(settings.device)
    dtype = dtype_of(settings.dtype, device)
    backbone = load_backbone(model, device=device, dtype=dtype, quantize=settings.quantize)
    log.info(
        fields("backbone", model=model, fingerprint=backbone.fingerprint, device=device,
               dtype=dtype, quantize=settings.quantize, threads=torch.get_num_threads())
    )  # fmt: skip
    policy = Policy(
        backbone,
        run,
        private_seed=client_seed(run.seed, client_id),
        checkpoint_activations=settings.checkpoint_activations,
    )
    return backbone, policy


def prepare_all(
    policy: Policy,
    backbone: Backbone,
    tokens: Mapping[str, Sequence[PairTokens]],
    settings: ClientSettings,
    folder: Path,
    heart: Heart,
) -> dict[str, PairSet]:
    """Run the frozen layers and the reference over what they do not know yet, part by part."""
    key = f"{backbone.fingerprint} {policy.dtype} {settings.quantize}"
    reference = ReferenceCache(folder / "reference.safetensors", key=key)
    tokens_per_step = settings.tokens_per_step or _TOKENS_PER_STEP.get(policy.device.type, 4096)
    budget_bytes = int(settings.trunk_cache_gib * 2**30)
    sets = {}
    for part, pairs in tokens.items():
        trunk = None
        if policy.has_trunk:
            trunk = TrunkCache(
                folder / f"trunk-{part}",
                key=f"{key} {policy.decoder.num_trunk_layers}",
                hidden=policy.hidden_size,
                dtype=policy.dtype,
            )
            with working(f"running frozen layers on {part}", total=len(pairs), heart=heart) as done:
                keep_trunk(policy, pairs, trunk, tokens_per_step=tokens_per_step,
                           budget_bytes=budget_bytes, advance=done)  # fmt: skip
            budget_bytes -= trunk.kept_bytes
        with working(f"scoring {part} by the reference", total=len(pairs), heart=heart) as done:
            sets[part] = prepare(policy, pairs, tokens_per_step=tokens_per_step,
                                 reference=reference, trunk=trunk, advance=done)  # fmt: skip
    return sets


def read_pairs(
    settings: ClientSettings,
) -> tuple[tuple[Preference, ...], tuple[Preference, ...]]:
    """The pairs to train on and those held out. Raises BadData."""
    loaded = read_preferences(settings.data, skip_bad_records=settings.skip_bad_records)
    skipped = list(loaded.skipped)
    if settings.eval_data is None:
        train, held_out = split(loaded.preferences, share=settings.eval_share)
    else:
        train = loaded.preferences
        other = read_preferences(settings.eval_data, skip_bad_records=settings.skip_bad_records)
        held_out = other.preferences
        skipped += other.skipped
    for line in skipped[:20]:
        log.warning(fields("skipped", record=line))
    log.info(fields("data", train_pairs=len(train), eval_pairs=len(held_out), skipped=len(skipped)))
    return train, held_out


def _tokens(
    preferences: tuple[Preference, ...], backbone: Backbone, settings: ClientSettings
) -> list[PairTokens]:
    tokenizer, max_tokens = backbone.tokenizer, settings.max_tokens
    pairs = [pair_tokens(one, tokenizer, max_tokens=max_tokens) for one in preferences]
    if cut := sum(pair.truncated for pair in pairs):
        log.warning(fields("cut", pairs=cut, max_tokens=max_tokens))
    return pairs


def client_seed(run_seed: int, client_id: str) -> int:
    """The seed of a client's private parts and of the order of its pairs."""
    digest = hashlib.sha256(f"{run_seed}/{client_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
