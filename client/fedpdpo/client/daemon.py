"""The client process: prepares once, then does what the server asks until the run has ended."""

import contextlib
import hashlib
import logging

import torch

from fedpdpo.client.backbone import Backbone, device_of, load_backbone
from fedpdpo.client.holdout import split
from fedpdpo.client.link import Heart, Link
from fedpdpo.client.lora import layout_of
from fedpdpo.client.pairset import PairSet, prepare
from fedpdpo.client.policy import Policy
from fedpdpo.client.preferences import Preference, read_preferences
from fedpdpo.client.progress import working
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.state import ClientState
from fedpdpo.client.tokens import PairTokens, pair_tokens
from fedpdpo.client.worker import Worker
from fedpdpo.common.files import held
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)


def run_client(settings: ClientSettings) -> None:
    """Take part in the run of a server until it has ended.

    Raises BadData, BadModel, BadState or Refused, each with what to do.
    """
    train, held_out = read_pairs(settings)
    device = device_of(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with held(settings.state_dir), contextlib.ExitStack() as closing:
        state = ClientState(settings.state_dir, client_id=settings.client_id)
        link = Link(settings.server, state.client_id, connect_timeout_s=settings.connect_timeout_s)
        closing.callback(link.close)
        run = link.get_run()
        model = settings.model or run.model
        state.bind(run, model=model)
        backbone = load_backbone(model, device=device, dtype=getattr(torch, settings.dtype))
        log.info(
            fields("backbone", model=model, fingerprint=backbone.fingerprint, device=device,
                   dtype=settings.dtype, threads=torch.get_num_threads())
        )  # fmt: skip
        seed = client_seed(run.seed, state.client_id)
        policy = Policy(backbone, run, private_seed=seed)
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
        sets: list[PairSet] = []
        for part, pairs in tokens.items():
            with working(f"preparing {part}", total=len(pairs), heart=heart) as advance:
                taken = sum(earlier.kept_bytes for earlier in sets)
                prepared = prepare(
                    policy,
                    pairs,
                    tokens_per_pack=settings.tokens_per_pack,
                    trunk_cache_bytes=int(settings.trunk_cache_gib * 2**30) - taken,
                    reference_file=state.reference_path(part),
                    reference_key=_reference_key(parts[part], policy, backbone, settings),
                    advance=advance,
                )
            sets.append(prepared)
        Worker(policy, run, state, link, heart, *sets, seed=seed).work()


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


def _reference_key(
    preferences: tuple[Preference, ...],
    policy: Policy,
    backbone: Backbone,
    settings: ClientSettings,
) -> str:
    """Names all that reference margins depend on, to the last bit."""
    parts = [
        backbone.fingerprint,
        backbone.tokenizer_fingerprint,
        f"{settings.dtype} {policy.device} {torch.get_num_threads()} threads {torch.__version__}",
        f"{settings.max_tokens} {settings.tokens_per_pack} {policy.decoder.num_trunk_layers}",
        *(one.digest for one in preferences),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def client_seed(run_seed: int, client_id: str) -> int:
    """The seed of a client's private parts and of the order of its pairs."""
    digest = hashlib.sha256(f"{run_seed}/{client_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
