"""Pairs as sequences: the prompt once, two responses that do not see each other, no padding.

Shapes: P pairs in a pack, T tokens in it, N response tokens in it (both responses of all pairs).
A pair lies in its pack as [prompt | chosen | rejected]; rejected does not see chosen and restarts
its positions at the prompt's end, so each response is computed as if it stood alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpdpo.client.tokens import PairTokens

_PROMPT, _CHOSEN, _REJECTED = 0, 1, 2


@dataclass(frozen=True)
class Pack:
    """Several pairs in one sequence.

    token_ids, positions: (T,). pair, branch: (T,), which pair and which part a token belongs to.
    predicting: (N,), where in the sequence the hidden state lies that predicts a response token;
    targets: (N,), that token; owner: (N,), its response, 2 p for chosen and 2 p + 1 for rejected.
    last: (2 P,), where the final token of each response lies. indices: (P,), the pairs' numbers.
    """

    token_ids: Tensor
    positions: Tensor
    pair: Tensor
    branch: Tensor
    predicting: Tensor
    targets: Tensor
    owner: Tensor
    last: Tensor
    indices: tuple[int, ...]

    @property
    def mask(self) -> Tensor:
        """Which token may see which: (1, 1, T, T), True where row i sees column j."""
        order = torch.arange(len(self.token_ids), device=self.token_ids.device)
        same_pair = self.pair[:, None] == self.pair[None, :]
        visible = (self.branch[None, :] == _PROMPT) | (self.branch[:, None] == self.branch[None, :])
        return (same_pair & visible & (order[:, None] >= order[None, :]))[None, None]

    @property
    def in_response(self) -> Tensor:
        """Which tokens are those of a response: (T,)."""
        return self.branch != _PROMPT

    @property
    def in_rejected(self) -> Tensor:
        """Which tokens are those of a rejected response: (T,)."""
        return self.branch == _REJECTED

    def with_other_chosen(self) -> "Pack":
        """The same pack with other tokens as chosen; no prompt and no rejected may feel it."""
        other = torch.where(self.branch == _CHOSEN, self.token_ids[0], self.token_ids)
        return replace(self, token_ids=other)


def pack(pairs: Sequence[PairTokens], indices: Sequence[int], *, device: torch.device) -> Pack:
    """Lay the pairs with these numbers one after another."""
    token_ids: list[int] = []
    positions: list[int] = []
    pair_of: list[int] = []
    branch_of: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    last: list[int] = []
    for number, index in enumerate(indices):
        tokens = pairs[index]
        prompt_end = len(token_ids) + len(tokens.prompt) - 1
        for branch, ids, start in (
            (_PROMPT, tokens.prompt, 0),
            (_CHOSEN, tokens.chosen, len(tokens.prompt)),
            (_REJECTED, tokens.rejected, len(tokens.prompt)),
        ):
            first = len(token_ids)
            if branch != _PROMPT:
                predicting += [prompt_end, *range(first, first + len(ids) - 1)]
                targets += ids
                owner += [2 * number + branch - _CHOSEN] * len(ids)
                last.append(first + len(ids) - 1)
            token_ids += ids
            positions += range(start, start + len(ids))
            pair_of += [number] * len(ids)
            branch_of += [branch] * len(ids)
    return Pack(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        pair=torch.tensor(pair_of, device=device),
        branch=torch.tensor(branch_of, device=device),
        predicting=torch.tensor(predicting, device=device),
        targets=torch.tensor(targets, device=device),
        owner=torch.tensor(owner, device=device),
        last=torch.tensor(last, device=device),
        indices=tuple(indices),
    )


def grouped(
    pairs: Sequence[PairTokens], indices: Sequence[int], *, tokens_per_pack: int
) -> list[list[int]]:
    """Divide pairs, in their order, into groups of at most `tokens_per_pack` tokens.

    A pair that is longer on its own makes a group of its own.
    """
    groups: list[list[int]] = []
    room = 0
    for index in indices:
        if not groups or len(pairs[index]) > room:
            groups.append([])
            room = tokens_per_pack
        groups[-1].append(index)
        room -= len(pairs[index])
    return groups
