"""Pairs as a forest of tokens: what several answers begin with is computed once, nothing is padded.

Shapes: P pairs in a pack, S = 2 P responses, T tokens in it, N response tokens, U states that
predict them. A pack is a prefix tree: two responses share the tokens up to where they part, be it
the prompt of one pair, the equal beginnings of its answers, or an instruction that all prompts open
with. A token sees its ancestors only and has its depth as position, so each response is computed as
if it stood alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedpdpo.client.data.tokens import PairTokens

#: Rows of an attention block have at least this share of its longest row's queries and keys.
_EVEN = 0.7


@dataclass(frozen=True)
class Block:
    """Responses of about the same lengths as rows for attention.

    A response brings as queries the tokens that no response before it has, which are its last, and
    as keys its whole path. queries: (B, Q), keys: (B, K), the tokens' places in the pack; mask:
    (B, 1, Q, K), True where a query sees a key; apart: (B, 1, Q, K), how many positions lie between
    them. Where a row ends early, its first token stands again: no query sees it as a key, and what
    it gives as a query is not read.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    apart: Tensor


@dataclass(frozen=True)
class Pack:
    """Several pairs in one sequence.

    token_ids, positions: (T,). For each of S responses, chosen and rejected in turn: paths, where
    the tokens of its prompt and itself lie; begins, how many of these an earlier response has made.
    states: (U,), where the hidden states lie that predict response tokens. For each of N response
    tokens: state_of (N,), which of these predicts it; targets (N,), its id; owner (N,), its
    response. indices: the pairs' numbers.
    """

    token_ids: Tensor
    positions: Tensor
    paths: tuple[tuple[int, ...], ...]
    begins: tuple[int, ...]
    states: Tensor
    state_of: Tensor
    targets: Tensor
    owner: Tensor
    indices: tuple[int, ...]

    @property
    def num_chosen_tokens(self) -> Tensor:
        """Tokens of each pair's chosen response, (P,)."""
        return torch.bincount(self.owner, minlength=len(self.paths))[0::2]

    @cached_property
    def rows(self) -> tuple[Tensor, ...]:
        """For each pair, where its own tokens lie: [prompt | chosen | rejected], each once."""
        return tuple(
            torch.tensor([*chosen, *rejected[_common(chosen, rejected) :]])
            for chosen, rejected in zip(self.paths[0::2], self.paths[1::2], strict=True)
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The responses as rows for attention, in blocks of similar lengths."""
        rows = [row for row in zip(self.paths, self.begins, strict=True) if row[1] < len(row[0])]
        rows.sort(key=lambda row: row[1] - len(row[0]))
        groups: list[list[tuple[tuple[int, ...], int]]] = []
        for path, begin in rows:
            for group in groups:
                longest, first = group[0]
                ratio = len(path) / len(longest)
                even = len(path) - begin >= _EVEN * (len(longest) - first)
                if even and _EVEN <= ratio <= 1 / _EVEN:
                    group.append((path, begin))
                    break
            else:
                groups.append([(path, begin)])
        return tuple(self._block(group) for group in groups)

    def _block(self, rows: Sequence[tuple[tuple[int, ...], int]]) -> Block:
        queries = _padded([path[begin:] for path, begin in rows])
        keys = _padded([path for path, _ in rows])
        lengths = torch.tensor([len(path) for path, _ in rows])
        begins = torch.tensor([begin for _, begin in rows])
        order = torch.arange(keys.shape[1])
        asks = begins[:, None] + torch.arange(queries.shape[1])
        asks = torch.where(asks < lengths[:, None], asks, 0)
        apart = (asks[:, :, None] - order)[:, None]
        device = self.token_ids.device
        return Block(*(part.to(device) for part in (queries, keys, apart >= 0, apart)))

    @cached_property
    def asked(self) -> Tensor:
        """The blocks' queries, laid end to end."""
        return torch.cat([block.queries.flatten() for block in self.blocks])

    @cached_property
    def answers(self) -> Tensor:
        """Where each token lies first among the queries laid end to end: (T,)."""
        return first_places(self.asked, len(self.token_ids))

    @cached_property
    def seen(self) -> Tensor:
        """The blocks' keys, laid end to end."""
        return torch.cat([block.keys.flatten() for block in self.blocks])

    @cached_property
    def places(self) -> Tensor:
        """Where each token lies first among the keys laid end to end: (T,)."""
        return first_places(self.seen, len(self.token_ids))

    @cached_property
    def repeats(self) -> Tensor:
        """Which of the keys laid end to end are a token's second or later copy: (D,)."""
        first = torch.zeros_like(self.seen, dtype=torch.bool)
        first[self.places] = True
        return (~first).nonzero()[:, 0]

    @cached_property
    def mask(self) -> Tensor:
        """Which token may see which: (1, 1, T, T), True where row i sees column j."""
        sees = torch.zeros(2 * (len(self.token_ids),), dtype=torch.bool)
        for path in self.paths:
            places = torch.tensor(path)
            sees[places[:, None], places[None, :]] |= places[:, None] >= places[None, :]
        return sees[None, None].to(self.token_ids.device)


def pack(
    pairs: Sequence[PairTokens],
    indices: Sequence[int],
    *,
    device: torch.device,
) -> Pack:
    """Lay the pairs with these numbers into one forest.

    The final token of a response predicts nothing and is left out of the sequence.
    """
    forest = _Forest()
    paths: list[tuple[int, ...]] = []
    begins: list[int] = []
    states: dict[int, int] = {}
    state_of: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for index in indices:
        tokens = pairs[index]
        responses = (tokens.chosen, tokens.rejected)
        for response, ids in zip(responses, _both(tokens), strict=True):
            begins.append(forest.known(ids))
            path = forest.add(ids)
            first = len(tokens.prompt) - 1
            state_of += [
                states.setdefault(place, len(states))
                for place in path[first : first + len(response)]
            ]
            targets += response
            owner += [len(paths)] * len(response)
            paths.append(path)
    return Pack(
        token_ids=torch.tensor(forest.token_ids, device=device),
        positions=torch.tensor(forest.positions, device=device),
        paths=tuple(paths),
        begins=tuple(begins),
        states=torch.tensor(list(states), device=device),
        state_of=torch.tensor(state_of, device=device),
        targets=torch.tensor(targets, device=device),
        owner=torch.tensor(owner, device=device),
        indices=tuple(indices),
    )


def grouped(
    pairs: Sequence[PairTokens],
    indices: Sequence[int],
    *,
    tokens_per_step: int,
) -> list[list[int]]:
    """Divide pairs, in their order, into groups whose packs have at most `tokens_per_step` tokens.

    A pair that is longer on its own makes a group of its own.
    """
    groups: list[list[int]] = []
    forest = _Forest()
    for index in indices:
        both = _both(pairs[index])
        if not groups or len(forest.token_ids) + forest.new(*both) > tokens_per_step:
            groups.append([])
            forest = _Forest()
        groups[-1].append(index)
        for ids in both:
            forest.add(ids)
    return groups


def num_tokens(pair: PairTokens) -> int:
    """How many tokens the pack of one pair has."""
    return _Forest().new(*_both(pair))


def _both(pair: PairTokens) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the two responses of a pair bring into the forest, each with the prompt."""
    return (*pair.prompt, *pair.chosen[:-1]), (*pair.prompt, *pair.rejected[:-1])


class _Forest:
    """A prefix tree of token ids; a token is known by its place, parents before children."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Places of the tokens of a sequence; those that are not there yet are made."""
        path = []
        place = -1
        for depth, token in enumerate(ids):
            child = self._children.setdefault((place, token), len(self.token_ids))
            if child == len(self.token_ids):
                self.token_ids.append(token)
                self.positions.append(depth)
            place = child
            path.append(place)
        return tuple(path)

    def new(self, chosen: Sequence[int], rejected: Sequence[int]) -> int:
        """How many tokens a pair would add."""
        alike = max(self.known(rejected), _common(chosen, rejected))
        return len(chosen) - self.known(chosen) + len(rejected) - alike

    def known(self, ids: Sequence[int]) -> int:
        """How many tokens of a sequence are there already."""
        place = -1
        for depth, token in enumerate(ids):
            child = self._children.get((place, token))
            if child is None:
                return depth
            place = child
        return len(ids)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of the same length, the shorter ones ending in their first item again and again."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows])


def first_places(places: Tensor, num_tokens: int) -> Tensor:
    """Where each of so many tokens comes first among places; not every device can compute it."""
    on_cpu = places.cpu()
    found = on_cpu.new_full((num_tokens,), len(places))
    found.scatter_reduce_(0, on_cpu, torch.arange(len(places)), "amin")
    return found.to(places.device)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two sequences begin with alike."""
    for depth, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return depth
    return min(len(one), len(other))
