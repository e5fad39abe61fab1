"""What a client makes ready before its first round: pairs, tokens, policy, reference, trunk."""

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence

import torch

from fedpdpo.client.data.holdout import split
from fedpdpo.client.data.preferences import Preference, read_preferences
from fedpdpo.client.data.tokens import PairTokens, pair_tokens
from fedpdpo.client.heart import Heart
from fedpdpo.client.model.backbone import Backbone, device_of, dtype_of, load_backbone
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.progress import working
from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.training.pairset import PairSet, keep_trunk, prepare
from fedpdpo.client.training.reference import ReferenceCache
from fedpdpo.client.training.trunk import TrunkCache
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)

_TOKENS_PER_STEP = {"cpu": 640}


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


def tokens_of(
    preferences: Sequence[Preference], backbone: Backbone, settings: ClientSettings
) -> list[PairTokens]:
    """The pairs as tokens, with a warning where some were cut. Raises BadData."""
    tokenizer, max_tokens = backbone.tokenizer, settings.max_tokens
    pairs = [pair_tokens(one, tokenizer, max_tokens=max_tokens) for one in preferences]
    if cut := sum(pair.truncated for pair in pairs):
        log.warning(fields("cut", pairs=cut, max_tokens=max_tokens))
    return pairs


def client_seed(run_seed: int, client_id: str) -> int:
    """The seed of a client's private parts and of the order of its pairs."""
    digest = hashlib.sha256(f"{run_seed}/{client_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def load_policy(
    settings: ClientSettings, run: Run, model: str, client_id: str
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
    heart: Heart,
) -> dict[str, PairSet]:
    """Run the frozen layers and the reference over what they do not know yet, part by part."""
    reference = ReferenceCache(
        settings.state_dir / "reference.safetensors",
        key=f"{_model_key(policy, backbone, settings)} head {policy.pretrained.weight.dtype}",
    )
    at_once = tokens_per_step(settings, policy)
    budget_bytes = int(settings.trunk_cache_gib * 2**30)
    sets = {}
    for part, pairs in tokens.items():
        trunk = trunk_cache(policy, backbone, settings, part=part)
        if trunk is not None:
            with working(f"running frozen layers on {part}", total=len(pairs), heart=heart) as done:
                keep_trunk(policy, pairs, trunk, tokens_per_step=at_once,
                           budget_bytes=budget_bytes, advance=done)  # fmt: skip
            budget_bytes -= trunk.kept_bytes
        with working(f"scoring {part} by the reference", total=len(pairs), heart=heart) as done:
            sets[part] = prepare(policy, pairs, tokens_per_step=at_once,
                                 reference=reference, trunk=trunk, advance=done)  # fmt: skip
    return sets


def tokens_per_step(settings: ClientSettings, policy: Policy) -> int:
    """How many tokens go through the model at once: as set, or what suits the device."""
    return settings.tokens_per_step or _TOKENS_PER_STEP.get(policy.device.type, 4096)


def _model_key(policy: Policy, backbone: Backbone, settings: ClientSettings) -> str:
    return f"{backbone.fingerprint} {policy.dtype} {settings.quantize}"


def trunk_cache(
    policy: Policy, backbone: Backbone, settings: ClientSettings, *, part: str
) -> TrunkCache | None:
    """Where the trunk's states of a part lie; None for a policy without a trunk.

    None too where the state is encrypted: these states tell the texts, and are read in place.
    """
    folder = settings.state_dir / f"trunk-{part}"
    if settings.encrypts:
        shutil.rmtree(folder, ignore_errors=True)
    if settings.encrypts or not policy.has_trunk:
        return None
    key = f"{_model_key(policy, backbone, settings)} {policy.decoder.num_trunk_layers}"
    return TrunkCache(
        folder,
        key=key,
        hidden=policy.hidden_size,
        dtype=policy.dtype,
    )
