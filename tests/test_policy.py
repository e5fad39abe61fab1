"""The policy: packing is exact, the start is the plain model, the reference never moves."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model import logps
from fedpdpo.client.model.backbone import fingerprint
from fedpdpo.client.model.logps import response_logps
from fedpdpo.client.model.packing import pack
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.model.private import PrivateHead
from fedpdpo.client.training.evaluation import evaluate
from fedpdpo.client.training.local_round import train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.common.errors import BadModel
from tiny import (
    CPU,
    save_tiny_model,
    tiny_backbone,
    tiny_pairs,
    tiny_pairset,
    tiny_policy,
    tiny_run,
)

LONG = PairTokens(tuple(range(4, 50)), tuple(range(50, 100)), tuple(range(100, 260)))
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "phi3")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def scores_of(policy: Policy, pairs: list[PairTokens], *, personalized: bool = True) -> Tensor:
    """(4, P): chosen and rejected log-probabilities, chosen and rejected rewards."""
    packed = pack(pairs, range(len(pairs)), device=CPU)
    with torch.no_grad():
        found = policy.scores(packed, policy.hidden(packed), personalized=personalized)
    return torch.stack(
        [found.chosen_logps, found.rejected_logps, found.chosen_rewards, found.rejected_rewards]
    )


def plain_logp(policy: Policy, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """By the model's own forward, one sequence, no packing, with its LoRA and pretrained head."""
    policy.decoder.restore()
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logps = F.log_softmax(policy.peft_model(ids).logits[0].float(), dim=-1)
    at = range(len(prompt) - 1, ids.shape[1] - 1)
    return float(sum(logps[i, ids[0, i + 1]] for i in at))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_pairs_score_as_each_response_alone_does(tmp_path: Path, family: str) -> None:
    policy = tiny_policy(save_tiny_model(tmp_path, family=family), tiny_run())
    pairs = tiny_pairs(num=5)
    packed = scores_of(policy, pairs, personalized=False)
    for number, pair in enumerate(pairs):
        assert float(packed[0, number]) == pytest.approx(
            plain_logp(policy, pair.prompt, pair.chosen), abs=1e-4
        )
        assert float(packed[1, number]) == pytest.approx(
            plain_logp(policy, pair.prompt, pair.rejected), abs=1e-4
        )
    policy.check(pairs[0])
    assert policy.decoder.num_trunk_layers == 2


def test_the_trunk_and_the_upper_layers_are_the_whole_decoder(model: Path) -> None:
    policy = tiny_policy(model, tiny_run())
    packed = pack(tiny_pairs(), range(12), device=CPU)
    with torch.no_grad():
        split, whole = policy.hidden(packed), policy.decoder.whole(packed)
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5)


def test_swapping_the_answers_swaps_the_scores(model: Path) -> None:
    policy = tiny_policy(model, tiny_run())
    pairs = tiny_pairs()
    swapped = [PairTokens(pair.prompt, pair.rejected, pair.chosen) for pair in pairs]
    torch.testing.assert_close(
        scores_of(policy, swapped), scores_of(policy, pairs)[[1, 0, 3, 2]], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    "method",
    [{}, {"head": "lowrank"}, {"head": "frozen"}, {"bottleneck": 0}, {"reward_head": False}],
)
def test_a_new_client_is_the_plain_model_with_zero_reward(
    model: Path, method: dict[str, Any]
) -> None:
    policy = tiny_policy(model, tiny_run(**method))
    pairs = tiny_pairs()
    personal, shared = scores_of(policy, pairs), scores_of(policy, pairs, personalized=False)
    assert torch.equal(personal, shared)
    assert not personal[2:].any()


def test_before_training_every_pair_ties(model: Path, tmp_path: Path) -> None:
    run = tiny_run()
    policy = Policy(tiny_backbone(model), run, private_seed=1)
    for metrics in evaluate(policy, tiny_pairset(policy, tiny_pairs(), tmp_path), run.method):
        assert metrics.combined_accuracy == metrics.implicit_accuracy == 0.5
        assert metrics.margin == metrics.chosen_shift == 0.0


def test_how_far_the_chosen_answers_moved_is_told_in_nats_a_token(
    model: Path, tmp_path: Path
) -> None:
    run = tiny_run(head="frozen", bottleneck=0)
    policy = Policy(tiny_backbone(model), run, private_seed=1)
    pairs = tiny_pairs()
    pairset = tiny_pairset(policy, pairs, tmp_path)

    def by_token() -> Tensor:
        return torch.tensor([plain_logp(policy, one.prompt, one.chosen) / len(one.chosen)
                             for one in pairs])  # fmt: skip

    before = by_token()
    train_round(policy, pairset, run, LocalOptimizer(policy, run.method), seed=1, round_number=1)
    moved = float((by_token() - before).mean())
    assert abs(moved) > 0.01
    _, personal = evaluate(policy, pairset, run.method)
    assert personal.chosen_shift == pytest.approx(moved, abs=1e-4)


def test_training_moves_neither_backbone_nor_reference(model: Path, tmp_path: Path) -> None:
    run = tiny_run()
    backbone = tiny_backbone(model)
    before = backbone.fingerprint
    policy = Policy(backbone, run, private_seed=1)
    pairs = tiny_pairset(policy, tiny_pairs(), tmp_path)
    packed = pack(tiny_pairs(), range(12), device=CPU)
    reference = policy.reference_scores(packed).chosen_logps
    optimizer = LocalOptimizer(policy, run.method)
    train_round(policy, pairs, run, optimizer, seed=0, round_number=1)
    assert torch.equal(policy.reference_scores(packed).chosen_logps, reference)
    assert not torch.equal(scores_of(policy, tiny_pairs())[0], reference)
    plain = policy.peft_model.unload()
    assert fingerprint(plain) == before


def test_the_head_is_untied_from_the_embedding(model: Path, tmp_path: Path) -> None:
    run = tiny_run()
    policy = tiny_policy(model, run)
    embedding = policy.peft_model.get_input_embeddings().weight
    before = embedding.clone()
    pairs = tiny_pairset(policy, tiny_pairs(), tmp_path)
    optimizer = LocalOptimizer(policy, run.method)
    train_round(policy, pairs, run, optimizer, seed=0, round_number=1)
    assert torch.equal(embedding, before)
    assert not torch.equal(policy.private.head.weight, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
        ("jamba", {"num_experts": 2}),
        ("falcon_h1", {}),
    ],
)
def test_a_model_whose_layers_carry_a_state_past_the_mask_takes_the_plain_path(
    tmp_path: Path, family: str, config: dict[str, Any], dtype: torch.dtype
) -> None:
    save_tiny_model(tmp_path, family=family, initializer_range=0.15, **config)
    policy = tiny_policy(tmp_path, tiny_run(), dtype=dtype)
    policy.check(PairTokens(LONG.prompt[:9], LONG.chosen[:9], LONG.rejected[:12]))
    assert policy.decoder.path == "plain"


@pytest.mark.parametrize(
    ("family", "config", "targets"),
    [
        ("bamba", {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8,
                   "attn_layer_indices": [1, 3]}, ("q_proj", "v_proj")),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}, ("q_proj", "v_proj")),
    ],
)  # fmt: skip
def test_norms_and_attention_of_another_kind_are_left_alone(
    tmp_path: Path, family: str, config: dict[str, Any], targets: tuple[str, ...]
) -> None:
    run = tiny_run()
    lora = run.lora.model_copy(update={"target_modules": targets})
    save_tiny_model(tmp_path, family=family, **config)
    policy = tiny_policy(tmp_path, run.model_copy(update={"lora": lora}))
    policy.check(tiny_pairs()[0])


def test_a_trunk_keeps_to_the_kinds_of_its_own_layers(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    save_tiny_model(tmp_path, family="gemma3_text", layer_types=kinds, sliding_window=9)
    policy = tiny_policy(tmp_path, tiny_run())
    policy.check(LONG)
    assert (policy.decoder.path, policy.decoder.num_trunk_layers) == ("blocks", 2)


def test_a_decoder_that_gives_something_else_than_its_heads_states_is_refused(
    tmp_path: Path,
) -> None:
    save_tiny_model(tmp_path, family="llama4_text", num_local_experts=2, intermediate_size_mlp=64)
    with pytest.raises(BadModel, match="gives states of width"):
        tiny_policy(tmp_path, tiny_run()).check(tiny_pairs()[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_shorter_than_the_pair_is_kept_to(tmp_path: Path, dtype: torch.dtype) -> None:
    save_tiny_model(tmp_path, family="mistral", sliding_window=60, initializer_range=0.15)
    policy = tiny_policy(tmp_path, tiny_run(), dtype=dtype)
    policy.check(LONG)
    assert policy.decoder.path == "blocks"


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gemma2", "changes its logits by final_logit_softcapping"),
        ("cohere", "changes its logits by logit_scale"),
        ("phi", "no plain linear layer without bias"),
        ("gpt2", "cannot put LoRA into the model"),
    ],
)
def test_a_model_with_another_head_or_other_layers_is_refused_by_reason(
    tmp_path: Path, family: str, words: str
) -> None:
    save_tiny_model(tmp_path, family=family)
    with pytest.raises(BadModel, match=words):
        tiny_policy(tmp_path, tiny_run())


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("falcon_h1", {"lm_head_multiplier": 0.02}, "changes the logits of its LLM head"),
        ("gemma3_text", {"final_logit_softcapping": 1.0}, "by final_logit_softcapping"),
    ],
)
def test_a_model_that_changes_its_heads_logits_is_refused(
    tmp_path: Path, family: str, config: dict[str, Any], words: str
) -> None:
    tiny_backbone(save_tiny_model(tmp_path / "plain", family=family))
    save_tiny_model(tmp_path / "changed", family=family, **config)
    with pytest.raises(BadModel, match=words):
        tiny_backbone(tmp_path / "changed")


def test_a_model_that_cannot_be_split_is_run_whole(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = tiny_policy(model, tiny_run())
    upper = policy.decoder._upper
    forward = upper.forward
    upper.forward = lambda *args, inputs_embeds, **kwargs: forward(
        *args, inputs_embeds=2 * inputs_embeds, **kwargs
    )
    with caplog.at_level(logging.INFO):
        policy.check(tiny_pairs()[0])
    assert "path=blocks trunk_layers=0" in caplog.text
    assert not policy.has_trunk


@pytest.mark.parametrize("error", [RuntimeError("shape is invalid"), torch.OutOfMemoryError()])
def test_a_trunk_that_fails_is_left_out_unless_memory_is_what_lacks(
    model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    policy = tiny_policy(model, tiny_run())

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(policy.decoder, "upper", fails)
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            policy.check(tiny_pairs()[0])
    else:
        policy.check(tiny_pairs()[0])
        assert not policy.has_trunk


@pytest.mark.parametrize(
    "changed",
    [
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_the_same_weights_by_another_configuration_are_another_backbone(
    model: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    known = tiny_backbone(model).fingerprint
    shutil.copytree(model, tmp_path / "other")
    file = tmp_path / "other/config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config), encoding="utf-8")
    assert tiny_backbone(tmp_path / "other").fingerprint == known
    rounded = {"rms_norm_eps": config["rms_norm_eps"] * (1 + 1e-7), "use_cache": False}
    file.write_text(json.dumps(config | rounded), encoding="utf-8")
    assert tiny_backbone(tmp_path / "other").fingerprint == known
    file.write_text(json.dumps(config | changed), encoding="utf-8")
    assert tiny_backbone(tmp_path / "other").fingerprint != known


@pytest.mark.parametrize("kept", [0, 2**26])
@pytest.mark.parametrize(
    ("kind", "states_train"),
    [("full", True), ("lowrank", True), ("frozen", True), ("full", False), ("lowrank", False)],
)
def test_sliced_log_probabilities_have_the_gradients_of_the_whole(
    kind: Literal["full", "lowrank", "frozen"],
    states_train: bool,
    kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logps, "_KEPT", kept)
    monkeypatch.setattr(logps, "_LOGITS", {"cpu": 1})
    monkeypatch.setattr(logps, "_LEAST_SLICE", 7)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    head = PrivateHead(weight, kind, 3, generator).double()
    if head.b is not None:
        torch.nn.init.normal_(head.b)
    batch = pack(tiny_pairs(), range(12), device=CPU)
    z = torch.randn(len(batch.states), 8, dtype=torch.float64, requires_grad=states_train)
    weights = torch.randn(24, dtype=torch.float64)
    found = response_logps(z, head, batch)
    trained = [p for p in (z, *head.parameters()) if p.requires_grad]
    gradients = torch.autograd.grad((found * weights).sum(), trained)
    tokens = F.log_softmax(head(z), dim=-1)[batch.state_of, batch.targets]
    whole = tokens.new_zeros(24).index_add(0, batch.owner, tokens)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(gradients, torch.autograd.grad((whole * weights).sum(), trained))


@pytest.mark.parametrize("kind", ["lowrank", "frozen"])
def test_a_head_in_bfloat16_is_a_rounding_away_from_the_same_in_float32(
    kind: Literal["lowrank", "frozen"],
) -> None:
    weight = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    low, high = (PrivateHead(one, kind, 3, torch.Generator().manual_seed(1))
                 for one in (weight, weight.float()))  # fmt: skip
    for head in (low, high):
        if head.b is not None:
            torch.nn.init.normal_(head.b, generator=torch.Generator().manual_seed(2))
    batch = pack(tiny_pairs(), range(12), device=CPU)
    z = torch.randn(len(batch.states), 8, requires_grad=True)
    numbers = []
    for head in (low, high):
        found = response_logps(z, head, batch)
        trained = [z, *(p for p in head.parameters() if p.requires_grad)]
        numbers.append([found.detach(), *torch.autograd.grad(found.sum(), trained)])
    for rounded, exact in zip(*numbers, strict=True):
        assert 0 < (rounded - exact).norm() / exact.norm() < 0.01
        assert rounded.dtype == torch.float32


def test_a_bfloat16_backbone_has_the_same_fingerprint_and_trains_float32_parts(
    model: Path, tmp_path: Path
) -> None:
    run = tiny_run()
    assert (
        tiny_backbone(model, dtype=torch.bfloat16).fingerprint == tiny_backbone(model).fingerprint
    )
    policy = tiny_policy(model, run, dtype=torch.bfloat16)
    policy.check(tiny_pairs()[0])
    pairs = tiny_pairset(policy, tiny_pairs(num=48), tmp_path)
    optimizer = LocalOptimizer(policy, run.method)
    train_round(policy, pairs, run, optimizer, seed=0, round_number=1)
    _, personal = evaluate(policy, pairs, run.method)
    assert personal.combined_accuracy > 0.9
    assert {parameter.dtype for parameter in policy.private.parameters()} == {torch.float32}
    assert {matrix.dtype for matrix in policy.lora()} == {torch.float32}


@pytest.mark.parametrize("kind", ["lowrank", "full", "frozen"])
def test_a_bfloat16_backbones_head_is_not_copied_unless_it_is_trained_whole(
    model: Path, kind: str
) -> None:
    backbone = tiny_backbone(model, dtype=torch.bfloat16)
    policy = Policy(backbone, tiny_run(head=kind), private_seed=1)
    own = backbone.model.get_output_embeddings().weight
    for head in (policy.private.head, policy.pretrained):
        assert (head.weight.data_ptr() == own.data_ptr()) == (kind != "full")
    packed = pack(tiny_pairs(), range(12), device=CPU)
    h = policy.hidden(packed)
    personal, reference = (policy.scores(packed, h, personalized=one) for one in (True, False))
    assert torch.equal(personal.chosen_logps, reference.chosen_logps)
