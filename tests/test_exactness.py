"""The engine gives the numbers of a plain implementation: padded rows, whole logits, float64.

The plain implementation is here: transformers' own forward pass of the PEFT model over rows padded
on the right, chosen and rejected answers apart, log-softmax over all logits, the loss as it is
written in docs/method.md. It holds the engine's values, widened.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.data.tokens import PairTokens, pair_tokens
from fedpdpo.client.model import logps
from fedpdpo.client.model.layers import PATHS
from fedpdpo.client.model.layers import Path as Way
from fedpdpo.client.model.lora import lora_parameters, with_lora
from fedpdpo.client.model.objective import explicit_margin, implicit_margin, pair_losses
from fedpdpo.client.model.packing import Pack, grouped, pack
from fedpdpo.client.model.policy import Policy
from fedpdpo.common.run import Run
from model import get_model
from tiny import (
    CPU,
    save_tiny_model,
    tiny_backbone,
    tiny_pairset,
    tiny_records,
    tiny_run,
    tiny_tokenizer,
)

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

REAL = Path(__file__).parents[1] / ".cache" / "smollm2-135m-instruct"
TOGETHER, ALONE, SOME = 10**6, 1, 60

#: The engine in float32 against float64: rounding; in float64 against float64: next to none.
PRECISIONS = {torch.float32: 1e-5, torch.float64: 1e-12}
#: Gradients through thirty layers in float32; transformers' own are 1e-4 off here.
DEEP = 3e-5


def text_pairs(*, max_tokens: int = 256) -> list[PairTokens]:
    records = tiny_records(seed=3, num=4, taste="warm")
    records[0]["chosen"] += " and long, longer than the others are"
    preferences = [Preference(**record) for record in records]
    return [pair_tokens(one, tiny_tokenizer(), max_tokens=max_tokens) for one in preferences]


#: A pack, and the trunk's states for it where they are kept.
Entered = tuple[Pack, Tensor | None]

SITUATIONS = {
    "texts": text_pairs(),
    "prompts of one token": [
        PairTokens((9,), (20, 21, 22), (30, 31)),
        PairTokens((8,), (40,), (41,)),
    ],
    "answers that begin alike": [
        PairTokens((9, 10), (20, 21, 22, 23), (20, 21, 33)),
        PairTokens((9, 11), (5, 5, 5, 5, 6), (5, 5, 5, 5, 7)),
    ],
    "one prompt in several pairs": [
        PairTokens((9, 10, 11), (20, 21), (30,)),
        PairTokens((9, 10, 11), (30, 31), (20, 22)),
        PairTokens((9, 10, 11), (40,), (20, 21)),
    ],
    "an answer that the other begins with": [
        PairTokens((9, 10), (20, 21), (20, 21, 22, 23)),
        PairTokens((9, 12), (20, 21, 22), (20,)),
    ],
    "a prompt that is another pair's prompt and answer": [
        PairTokens((9,), (10, 11), (10, 12, 13)),
        PairTokens((9, 10, 11), (12, 13), (14,)),
        PairTokens((9, 10), (11,), (12, 13)),
    ],
    "a pair twice": [PairTokens((9, 10), (20, 21), (22,)), PairTokens((9, 10), (20, 21), (22,))],
    "answers that are equal": [
        PairTokens((9, 10), (20, 21), (20, 21)),
        PairTokens((9, 11), (20, 21), (30, 21)),
    ],
    "texts cut short": text_pairs(max_tokens=12),
}
REAL_PREFERENCES = [
    Preference(
        "Continue this film review: It's hard to imagine",
        " Alan Arkin being better than he is in this performance.",
        " any recent film that makes as much of a mess as this one.",
    ),
    Preference(
        "Continue this film review: It's not so much",
        " enjoyable to watch as it is enlightening to listen to.",
        " a movie as a joint promotion.",
    ),
    Preference("Q: What is two and two?\nA:", " Four.", " Four hundred, or so they say."),
]
EVERYTHING = [pair for pairs in SITUATIONS.values() for pair in pairs]


@dataclass(frozen=True)
class Case:
    """A model, where its LoRA sits, the method, and how pairs go through the engine."""

    family: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    last_layers: int = 2
    path: Way = "blocks"
    tokens_per_step: int = TOGETHER
    method: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        where = "all" if not self.last_layers else f"last {self.last_layers}"
        named = [*self.config.items(), *self.method.items()]
        parts = [self.family, self.path, where, f"{self.tokens_per_step} tokens"]
        return ", ".join([*parts, *(f"{name}={value}" for name, value in named)])

    def run(self) -> Run:
        run = tiny_run(last_layers=self.last_layers, alpha=0.7, **self.method)
        if self.family != "gpt2":
            return run
        lora = run.lora.model_copy(update={"target_modules": ("c_attn",)})
        return run.model_copy(update={"lora": lora})


MIXED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
CASES = [
    Case(),
    Case(tokens_per_step=ALONE, method={"head": "lowrank"}),
    Case(last_layers=0, path="mask", tokens_per_step=SOME, method={"head": "frozen"}),
    Case(path="mask", method={"objective": "combined"}),
    Case(last_layers=0, path="plain", tokens_per_step=SOME, method={"head": "lowrank"}),
    Case("qwen2", tokens_per_step=SOME, method={"head": "lowrank"}),
    Case("qwen2", last_layers=0, tokens_per_step=ALONE, method={"bottleneck": 0}),
    Case("qwen2", last_layers=0, path="plain", method={"head": "frozen"}),
    Case("mistral", last_layers=0, method={"reward_head": False}),
    Case("mistral", {"sliding_window": 5}, tokens_per_step=SOME),
    Case(
        "mistral",
        {"sliding_window": 5},
        last_layers=0,
        path="plain",
        method={"reward_head": False},
    ),
    Case("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
    Case("gemma3_text", {"sliding_window": 5, "layer_types": MIXED}, last_layers=0),
    Case("gpt2", last_layers=0),
    Case("gpt2", tokens_per_step=SOME, method={"head": "frozen"}),
    Case("gpt2", {"scale_attn_by_inverse_layer_idx": True}, last_layers=0),
    Case("gpt2", last_layers=0, path="mask", method={"head": "lowrank"}),
    Case("gpt2", path="plain", tokens_per_step=ALONE),
]


@dataclass(frozen=True)
class Numbers:
    """What a step of training computes. Gradients by the names of private parts and LoRA's numbers.

    Shapes: P pairs.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    reference_margins: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def own_numbers(policy: Policy, packs: Sequence[Entered], run: Run) -> Numbers:
    """By the engine; the gradients of the packs add up."""
    for part in (*policy.lora(), *policy.private.parameters()):
        part.grad = None
    num_pairs = sum(len(batch.indices) for batch, _ in packs)
    chosen, rejected, margins, losses = torch.zeros(4, num_pairs)
    for batch, entering in packs:
        reference = policy.reference_scores(batch, entering)
        scores = policy.scores(batch, policy.hidden(batch, entering))
        margin = reference.chosen_logps - reference.rejected_logps
        loss = pair_losses(
            implicit_margin(scores, margin, beta=run.method.beta),
            explicit_margin(scores),
            alpha=run.method.alpha,
            objective=run.method.objective,
        )
        (loss.sum() / num_pairs).backward()  # type: ignore[no-untyped-call]
        found = (scores.chosen_logps, scores.rejected_logps, margin, loss)
        for whole, part in zip((chosen, rejected, margins, losses), found, strict=True):
            whole[list(batch.indices)] = part.detach()
    gradients = gradients_of(policy.lora(), policy.private)
    return Numbers(chosen, rejected, margins, losses.mean(), gradients)


def packed(
    policy: Policy, pairs: Sequence[PairTokens], *, tokens_per_step: int = TOGETHER
) -> list[Entered]:
    """Pairs in as many packs as the budget asks for, without the trunk's states."""
    groups = grouped(pairs, range(len(pairs)), tokens_per_step=tokens_per_step)
    return [(pack(pairs, group, device=CPU), None) for group in groups]


def plain_numbers(plain: "Plain", pairs: Sequence[PairTokens], run: Run) -> Numbers:
    """By the plain implementation."""
    chosen = [(pair.prompt, pair.chosen) for pair in pairs]
    rejected = [(pair.prompt, pair.rejected) for pair in pairs]
    with torch.no_grad():
        margins = plain.reference_logps(chosen) - plain.reference_logps(rejected)
    chosen_logps, chosen_rewards = plain.scores(chosen)
    rejected_logps, rejected_rewards = plain.scores(rejected)
    implicit = run.method.beta * (chosen_logps - rejected_logps - margins)
    explicit = run.method.alpha * (chosen_rewards - rejected_rewards)
    if run.method.objective == "combined":
        losses = -torch.log(torch.sigmoid(implicit + explicit))
    else:
        reward = -run.method.alpha * torch.log(torch.sigmoid(chosen_rewards - rejected_rewards))
        losses = reward - torch.log(torch.sigmoid(implicit))
    loss = losses.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = gradients_of(lora_parameters(plain.model), plain.private)
    return Numbers(
        chosen_logps.detach(), rejected_logps.detach(), margins, loss.detach(), gradients
    )


def gradients_of(lora: Sequence[Tensor], private: nn.Module) -> dict[str, Tensor]:
    parts = {f"lora {number}": matrix for number, matrix in enumerate(lora)}
    parts |= dict(private.named_parameters())
    return {name: part.grad for name, part in parts.items() if part.grad is not None}


class Plain:
    """The policy's model and private parts in float64, with no module of the engine's in it."""

    def __init__(self, policy: Policy, folder: Path, run: Run) -> None:
        backbone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.model = with_lora(backbone.requires_grad_(False).eval(), run.lora).double()
        for module in self.model.modules():
            if hasattr(module, "variance_epsilon"):
                module.forward = MethodType(norm_without_rounding, module)
        with torch.no_grad():
            for matrix, own in zip(lora_parameters(self.model), policy.lora(), strict=True):
                matrix.copy_(own)
        self.private = copy.deepcopy(policy.private).double()

    def scores(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of answers and rewards of the states that predict their tokens."""
        private = self.private
        z = self._forward(rows).hidden_states[-1]
        if private.bottleneck is not None:
            z = z + F.gelu(z @ private.bottleneck.down.T) @ private.bottleneck.up.T
        logits = z @ private.head.weight.T
        if private.head.a is not None and private.head.b is not None:
            logits = logits + z @ private.head.a.T @ private.head.b.T
        pooled = []
        for row, (prompt, answer) in zip(z, rows, strict=True):
            states = row[len(prompt) - 1 : len(prompt) + len(answer) - 1]
            pooled.append(states[-1] + states.mean(dim=0))
        reward = private.reward
        rewards = z.new_zeros(len(rows)) if reward is None else torch.stack(pooled) @ reward.v
        return summed(logits, rows), rewards

    def reference_logps(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
        """Log-probabilities of answers by the model without LoRA and with its own head."""
        with self.model.disable_adapter():
            return summed(self._forward(rows).logits, rows)

    def _forward(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Any:
        ids = [torch.tensor([*prompt, *answer]) for prompt, answer in rows]
        return self.model(
            input_ids=nn.utils.rnn.pad_sequence(ids, batch_first=True),
            attention_mask=nn.utils.rnn.pad_sequence(
                [torch.ones_like(row) for row in ids], batch_first=True
            ),
            output_hidden_states=True,
            use_cache=False,
        )


def summed(logits: Tensor, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """Log-probabilities of whole answers from logits (P, L, V)."""
    found = []
    for row, (prompt, answer) in zip(F.log_softmax(logits, dim=-1), rows, strict=True):
        found.append(row[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer].sum())
    return torch.stack(found)


def norm_without_rounding(module: Any, x: Tensor) -> Tensor:
    """transformers' own goes by way of float32, whatever it is given."""
    scaled: Tensor = (
        module.weight * x / (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
    )
    return scaled


def policy_of(
    folder: Path, run: Run, dtype: torch.dtype, *, scale: float = 0.1, **options: Any
) -> Policy:
    """A policy none of whose parts is zero or as it was at the start."""
    backbone = tiny_backbone(folder, dtype=dtype)
    torch.manual_seed(0)
    policy = Policy(backbone, run, private_seed=1, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (*policy.lora(), *policy.private.parameters()):
            if part.requires_grad:
                part.add_(scale * torch.randn(part.shape, generator=generator))
    return policy


def off(found: Tensor, expected: Tensor) -> float:
    """How far a tensor is off, as a share of the expected one's norm."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


def check(
    own: Numbers, plain: Numbers, *, within: float, gradients_within: float | None = None
) -> None:
    for name in ("chosen_logps", "rejected_logps"):
        expected = getattr(plain, name)
        assert float(((getattr(own, name) - expected) / expected).abs().max()) < within, name
    assert off(own.reference_margins, plain.reference_margins) < within
    assert off(own.loss, plain.loss) < within
    assert own.gradients.keys() == plain.gradients.keys()
    for name, gradient in plain.gradients.items():
        assert off(own.gradients[name], gradient) < (gradients_within or within), name


@pytest.fixture(params=PRECISIONS, ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """The engine's precision; in float64 its steps to float32, and transformers', go to float64."""
    before = torch.get_default_dtype()
    if request.param == torch.float64:
        monkeypatch.setattr(Tensor, "float", Tensor.double)
        torch.set_default_dtype(torch.float64)
    yield request.param
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"), initializer_range=0.15)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_engines_numbers_are_the_plain_ones(
    tmp_path: Path, case: Case, dtype: torch.dtype
) -> None:
    save_tiny_model(tmp_path, family=case.family, initializer_range=0.15, **case.config)
    policy = policy_of(tmp_path, case.run(), dtype)
    policy.decoder.path = case.path
    if case.path == "plain":
        policy.decoder.num_trunk_layers = 0
    packs = packed(policy, EVERYTHING, tokens_per_step=case.tokens_per_step)
    own = own_numbers(policy, packs, case.run())
    plain = plain_numbers(Plain(policy, tmp_path, case.run()), EVERYTHING, case.run())
    check(own, plain, within=PRECISIONS[dtype])


def test_the_cases_take_every_path_and_every_kind_of_head_with_a_trunk_and_without() -> None:
    assert {case.path for case in CASES} == set(PATHS)
    assert {case.run().method.head for case in CASES} == {"full", "lowrank", "frozen"}
    assert {case.last_layers for case in CASES if case.path != "plain"} == {0, 2}


@pytest.mark.parametrize("dtype", [torch.float64], indirect=True, ids=str)
@pytest.mark.parametrize("pairs", SITUATIONS.values(), ids=SITUATIONS)
def test_pairs_that_share_what_they_can_have_plain_numbers(
    llama: Path, pairs: list[PairTokens], dtype: torch.dtype
) -> None:
    run = tiny_run()
    policy = policy_of(llama, run, dtype)
    own = own_numbers(policy, packed(policy, pairs), run)
    check(own, plain_numbers(Plain(policy, llama, run), pairs, run), within=PRECISIONS[dtype])


@pytest.mark.parametrize("kind", ["full", "lowrank", "frozen"])
def test_slices_of_the_vocabulary_give_plain_numbers(
    llama: Path, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "_LOGITS", {"cpu": 1})
    monkeypatch.setattr(logps, "_LEAST_SLICE", 100)
    run = tiny_run(head=kind)
    policy = policy_of(llama, run, dtype)
    own = own_numbers(policy, packed(policy, EVERYTHING), run)
    plain = plain_numbers(Plain(policy, llama, run), EVERYTHING, run)
    check(own, plain, within=PRECISIONS[dtype])


@pytest.mark.parametrize("reward_head", [True, False])
def test_kept_states_of_the_trunk_give_plain_numbers(
    llama: Path, tmp_path: Path, reward_head: bool
) -> None:
    run = tiny_run(reward_head=reward_head)
    policy = policy_of(llama, run, torch.float32)
    pairset = tiny_pairset(policy, EVERYTHING, tmp_path, tokens_per_step=SOME)
    packs = list(pairset.packs(range(len(pairset)), device=CPU))
    assert len(packs) > 1
    assert all(entering is not None for _, entering in packs)
    plain = plain_numbers(Plain(policy, llama, run), EVERYTHING, run)
    check(own_numbers(policy, packs, run), plain, within=PRECISIONS[torch.float32])
    assert off(pairset.reference_margins, plain.reference_margins) < PRECISIONS[torch.float32]


@pytest.mark.parametrize("last_layers", [2, 0])
def test_layers_that_are_computed_twice_give_plain_numbers(
    llama: Path, last_layers: int, dtype: torch.dtype
) -> None:
    run = tiny_run(last_layers=last_layers)
    policy = policy_of(llama, run, dtype, checkpoint_activations=True)
    own = own_numbers(policy, packed(policy, EVERYTHING, tokens_per_step=SOME), run)
    plain = plain_numbers(Plain(policy, llama, run), EVERYTHING, run)
    check(own, plain, within=PRECISIONS[dtype])


@pytest.mark.parametrize("tokens_per_step", [ALONE, 20, SOME])
def test_gradients_do_not_depend_on_how_pairs_are_divided_into_packs(
    llama: Path, dtype: torch.dtype, tokens_per_step: int
) -> None:
    run = tiny_run()
    policy = policy_of(llama, run, dtype)
    divided = packed(policy, EVERYTHING, tokens_per_step=tokens_per_step)
    assert len(divided) > 1
    (together,) = packed(policy, EVERYTHING)
    check(
        own_numbers(policy, divided, run),
        own_numbers(policy, [together], run),
        within=PRECISIONS[dtype],
    )


def test_what_is_cut_short_keeps_the_prompts_end_and_the_answers_beginning() -> None:
    pairs = zip(SITUATIONS["texts cut short"], SITUATIONS["texts"], strict=True)
    for short, long in pairs:
        assert short.truncated
        assert short.prompt == long.prompt[-len(short.prompt) :]
        assert short.chosen == long.chosen[:11]
        assert short.rejected == long.rejected[:11]


@pytest.mark.timeout(900)
def test_a_real_models_numbers_are_the_plain_ones() -> None:
    folder = get_model(REAL)
    run = tiny_run(last_layers=8)
    policy = policy_of(folder, run, torch.float32, scale=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [pair_tokens(one, tokenizer, max_tokens=64) for one in REAL_PREFERENCES]
    policy.check(pairs[0])
    assert policy.decoder.path == "blocks"
    own = own_numbers(policy, packed(policy, pairs), run)
    plain = plain_numbers(Plain(policy, folder, run), pairs, run)
    check(own, plain, within=PRECISIONS[torch.float32], gradients_within=DEEP)
