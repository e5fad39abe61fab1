"""Packs: who sees whom, where positions begin, what predicts what."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpdpo.client.packing import grouped, pack
from fedpdpo.client.tokens import PairTokens

CPU = torch.device("cpu")
ids = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)
pair = st.builds(PairTokens, ids, ids, ids)
pairs = st.lists(pair, min_size=1, max_size=5)

TWO = [PairTokens((1, 2), (3, 4), (5,)), PairTokens((6,), (7,), (8, 9))]


def test_a_pair_lies_as_prompt_chosen_rejected_and_rejected_restarts_at_the_prompts_end() -> None:
    packed = pack(TWO, [0, 1], device=CPU)
    assert packed.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert packed.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 1, 2]
    assert packed.last.tolist() == [3, 4, 6, 8]


def test_each_response_token_is_predicted_by_the_one_before_it_or_by_the_prompts_end() -> None:
    packed = pack(TWO, [0, 1], device=CPU)
    assert packed.targets.tolist() == [3, 4, 5, 7, 8, 9]
    assert packed.predicting.tolist() == [1, 2, 1, 5, 5, 7]
    assert packed.owner.tolist() == [0, 0, 1, 2, 3, 3]


@given(pairs)
def test_a_token_sees_its_own_prompt_and_its_own_response_up_to_itself(
    some: list[PairTokens],
) -> None:
    packed = pack(some, range(len(some)), device=CPU)
    mask = packed.mask[0, 0]
    for row in range(len(packed.token_ids)):
        for column in range(len(packed.token_ids)):
            own_pair = packed.pair[row] == packed.pair[column]
            own_part = packed.branch[column] == 0 or packed.branch[row] == packed.branch[column]
            assert mask[row, column] == bool(own_pair and own_part and column <= row)


@given(pairs)
def test_a_response_sees_what_it_would_see_alone_at_the_positions_it_would_have_alone(
    some: list[PairTokens],
) -> None:
    packed = pack(some, range(len(some)), device=CPU)
    mask = packed.mask[0, 0]
    alone = [(one.prompt, answer) for one in some for answer in (one.chosen, one.rejected)]
    for last, (prompt, response) in zip(packed.last.tolist(), alone, strict=True):
        for back in range(len(response)):
            seen = mask[last - back].nonzero().flatten()
            length = len(prompt) + len(response) - back
            assert packed.token_ids[seen].tolist() == [*prompt, *response][:length]
            assert packed.positions[seen].tolist() == list(range(length))


@given(pairs)
def test_other_tokens_as_chosen_change_nothing_else(some: list[PairTokens]) -> None:
    packed = pack(some, range(len(some)), device=CPU)
    other = packed.with_other_chosen()
    kept = [(one.prompt, one.rejected) for one in some]
    in_chosen = packed.in_response & ~packed.in_rejected
    assert other.token_ids[~in_chosen].tolist() == [i for p, r in kept for i in (*p, *r)]
    assert (other.token_ids[in_chosen] == some[0].prompt[0]).all()
    assert torch.equal(other.mask, packed.mask)


@given(pairs, st.integers(1, 40))
def test_grouping_keeps_every_pair_in_order_within_the_budget(
    some: list[PairTokens], budget: int
) -> None:
    groups = grouped(some, range(len(some)), tokens_per_pack=budget)
    assert [index for group in groups for index in group] == list(range(len(some)))
    for group in groups:
        assert len(group) == 1 or sum(len(some[index]) for index in group) <= budget
    for group, following in itertools.pairwise(groups):
        assert sum(len(some[index]) for index in (*group, following[0])) > budget
