"""The floating-point operations that a job of FedPDPO's cannot do without.

Shapes: T tokens, A tokens of the topmost layer whose result is read, E visible pairs of tokens (a
token with itself or one before it on its path), U states that predict response tokens, H hidden
size, I inner size of the feed-forward, Q and K width of all query and key heads, V vocabulary, R
LoRA rank, M bottleneck width. LoRA is on q_proj and v_proj. A product (m, k) x (k, n) counts as
2 m k n; norms, rotations, softmax and the optimizer count as nothing.

One layer's forward:    2 T 2HK (keys, values) + 2 A (2HQ + 3HI) + 4 Q E (scores, mixture)
LoRA's forward:         2 A R (H + Q) + 2 T R (H + K)
One layer's backward:   the first line by its inputs, as its weights are frozen, with 8 Q E for four
                        products of attention. In the lowest layer with LoRA the input needs no
                        gradient: no 2 T 2HK, no 2 A HQ, and 6 Q E, as keys need none.
LoRA's backward:        twice its forward; in the lowest layer without the products that give the
                        input's gradient, 2 A R H + 2 T R H
Head, per state:        2 HV forward, 2 HV backward by its input; a trained head 2 HV for its own
                        gradient; a low-rank one 2 r (H + V) forward and twice that backward
Bottleneck, per read state: 4 HM forward, 8 HM backward

    job = trunk and reference forward once + epochs x batches x (forward + backward)

A is T in all layers but the topmost: there only predicting states are read (and each response's
last where a reward head reads it), and the queries and visible pairs are theirs alone. Layers below
the lowest one with LoRA are trunk: forward once per data set, backward never. T counts the tokens
of a prefix tree that a read state descends from: of a batch for training, in the order of the data,
of the whole data set for what is done once. What two responses or two pairs begin with counts once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.packing import pack
from job import Job

BOTTLENECK = 64
HEAD_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a decoder."""

    layers: int
    hidden: int
    inner: int
    query: int
    key: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The sizes that a transformers configuration of a Llama-like model tells."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            query=config.num_attention_heads * config.head_dim,
            key=config.num_key_value_heads * config.head_dim,
            vocabulary=config.vocab_size,
        )


@dataclass(frozen=True, kw_only=True)
class Count:
    """Tokens of a prefix tree: T and E of all, A and E of those that are read, and U."""

    tokens: int
    visible: int
    read: int
    visible_to_read: int
    states: int


def count(pairs: Sequence[PairTokens]) -> Count:
    """Count the tokens that these pairs need together."""
    tree = pack(pairs, range(len(pairs)), device=torch.device("cpu"))
    read = tree.states.tolist()
    sees = [position + 1 for position in tree.positions.tolist()]
    return Count(
        tokens=len(sees),
        visible=sum(sees),
        read=len(read),
        visible_to_read=sum(sees[place] for place in read),
        states=len(read),
    )


def tokens_of(job: Job) -> list[PairTokens]:
    """A job's pairs as the client knows them."""
    return [
        PairTokens(tuple(prompt), tuple(chosen), tuple(rejected))
        for prompt, chosen, rejected in job.pairs
    ]


def flops_of_job(job: Job, config: Any, *, shared: bool = True) -> float:
    """The operations of a whole job; without `shared` each pair is counted on its own."""
    shape = Shape.of(config)
    pairs = tokens_of(job)
    size = job.batch_pairs if shared else 1
    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    once = [pairs] if shared else batches
    trunk = shape.layers - job.last_layers if job.last_layers else 0
    prepared = sum(_prepare(shape, count(some)) for some in once)
    epoch = sum(_step(shape, count(some), trunk, job) for some in batches)
    return prepared + job.epochs * epoch


def _prepare(shape: Shape, tokens: Count) -> float:
    whole = shape.layers - 1
    layers = whole * _layer(shape, tokens, top=False) + _layer(shape, tokens, top=True)
    return layers + 2 * tokens.states * shape.hidden * shape.vocabulary


def _step(shape: Shape, tokens: Count, trunk: int, job: Job) -> float:
    total = 0.0
    for number in range(trunk, shape.layers):
        top = number == shape.layers - 1
        lowest = number == trunk
        total += _layer(shape, tokens, top=top)
        total += _layer_backward(shape, tokens, top=top, lowest=lowest)
        total += _lora(shape, tokens, job.lora_rank, top=top, lowest=lowest)
    return total + _head(shape, tokens, job)


def _layer(shape: Shape, tokens: Count, *, top: bool) -> float:
    read, visible = _read(tokens, top=top)
    keys = 2 * tokens.tokens * 2 * shape.hidden * shape.key
    rest = 2 * read * shape.hidden * (2 * shape.query + 3 * shape.inner)
    return keys + rest + 4 * shape.query * visible


def _layer_backward(shape: Shape, tokens: Count, *, top: bool, lowest: bool) -> float:
    read, visible = _read(tokens, top=top)
    by_input = _layer(shape, tokens, top=top) + 4 * shape.query * visible
    if not lowest:
        return by_input
    keys = 2 * tokens.tokens * 2 * shape.hidden * shape.key
    return by_input - keys - 2 * read * shape.hidden * shape.query - 2 * shape.query * visible


def _lora(shape: Shape, tokens: Count, rank: int, *, top: bool, lowest: bool) -> float:
    read, _ = _read(tokens, top=top)
    forward = 2 * read * rank * (shape.hidden + shape.query)
    forward += 2 * tokens.tokens * rank * (shape.hidden + shape.key)
    by_input = 2 * (read + tokens.tokens) * rank * shape.hidden
    return 3 * forward - (by_input if lowest else 0)


def _head(shape: Shape, tokens: Count, job: Job) -> float:
    hidden, vocabulary = shape.hidden, shape.vocabulary
    by_state = 4.0 * hidden * vocabulary
    if job.head == "full":
        by_state += 2 * hidden * vocabulary
    if job.head == "lowrank":
        by_state += 6 * HEAD_RANK * (hidden + vocabulary)
    by_read = 12 * hidden * BOTTLENECK if job.private else 0
    return tokens.states * by_state + tokens.read * by_read


def _read(tokens: Count, *, top: bool) -> tuple[int, int]:
    """A and E of a layer."""
    if top:
        return tokens.read, tokens.visible_to_read
    return tokens.tokens, tokens.visible
