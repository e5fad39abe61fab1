"""Packs: each token once, who sees whom, what predicts what, how attention asks for it."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.packing import Block, Pack, grouped, num_tokens, pack
from fedpdpo.client.model.private import pooled

CPU = torch.device("cpu")
Ids = tuple[int, ...]

#: So few token ids that sequences often begin alike, and answers of one token and of many.
ids = st.integers(1, 3).flatmap(
    lambda most: st.lists(st.integers(1, most), min_size=1, max_size=9).map(tuple)
)
pair = st.builds(PairTokens, ids, ids, ids)
pairs = st.lists(pair, min_size=1, max_size=6)
law = settings(deadline=None, max_examples=50)

APART = [PairTokens((1, 2), (3, 4), (5,)), PairTokens((6,), (7,), (8, 9))]
#: Answers that begin alike; the same prompt again, with an answer that others begin with.
ALIKE = [PairTokens((1, 2), (3, 4), (3, 5)), PairTokens((1, 2), (3,), (6,))]
#: An answer that is the other's beginning, two that are equal, and a prompt that is an answer.
WITHIN = [
    PairTokens((1,), (2, 3), (2,)),
    PairTokens((1, 2), (3, 3), (3, 3)),
    PairTokens((1, 2, 3), (3, 3, 1), (1,)),
]


def for_any_pack(test: Callable[..., None]) -> Callable[..., None]:
    """Try a law on pairs of all kinds."""
    for some in (ALIKE, WITHIN):
        test = example(some=some)(test)
    return law(given(some=pairs)(test))


def whole(some: Sequence[PairTokens]) -> Pack:
    return pack(some, range(len(some)), device=CPU)


def responses(some: Sequence[PairTokens]) -> list[tuple[Ids, Ids]]:
    return [(one.prompt, answer) for one in some for answer in (one.chosen, one.rejected)]


def sequences(some: Sequence[PairTokens]) -> list[Ids]:
    """Prompts with answers, but for the final tokens, which predict nothing."""
    return [prompt + answer[:-1] for prompt, answer in responses(some)]


def beginnings(some: Sequence[PairTokens]) -> set[Ids]:
    found = sequences(some)
    return {ids[: end + 1] for ids in found for end in range(len(ids))}


def lines(packed: Pack) -> dict[int, Ids]:
    """For each token its ancestors and itself, from the first on."""
    return {place: path[: depth + 1] for path in packed.paths for depth, place in enumerate(path)}


def rows_of(packed: Pack) -> Iterable[tuple[Block, int]]:
    return [(block, row) for block in packed.blocks for row in range(len(block.queries))]


def test_pairs_that_share_nothing_lie_one_after_the_other() -> None:
    packed = whole(APART)
    assert packed.token_ids.tolist() == [1, 2, 3, 6, 8]
    assert packed.positions.tolist() == [0, 1, 2, 0, 1]
    assert packed.paths == ((0, 1, 2), (0, 1), (3,), (3, 4))
    assert packed.begins == (0, 2, 0, 1)


def test_each_response_token_is_predicted_by_the_one_before_it_or_by_the_prompts_end() -> None:
    packed = whole(APART)
    assert packed.targets.tolist() == [3, 4, 5, 7, 8, 9]
    assert packed.states[packed.state_of].tolist() == [1, 2, 1, 3, 3, 4]
    assert packed.owner.tolist() == [0, 0, 1, 2, 3, 3]
    assert packed.states.tolist() == [1, 2, 3, 4]


def test_what_answers_and_prompts_begin_with_alike_lies_there_once() -> None:
    packed = whole(ALIKE)
    assert packed.token_ids.tolist() == [1, 2, 3]
    assert packed.positions.tolist() == [0, 1, 2]
    assert packed.paths == ((0, 1, 2), (0, 1, 2), (0, 1), (0, 1))
    assert packed.begins == (0, 3, 2, 2)
    assert packed.states.tolist() == [1, 2]
    assert packed.state_of.tolist() == [0, 1, 0, 1, 0, 0]
    assert packed.targets.tolist() == [3, 4, 3, 5, 3, 6]
    assert packed.owner.tolist() == [0, 0, 1, 1, 2, 3]


def test_a_response_asks_by_the_tokens_that_are_new_with_it_and_sees_its_whole_path() -> None:
    some = [PairTokens((1, 2), (3, 4, 9), (3, 5, 9)), PairTokens((1, 2), (3, 9), (6, 9))]
    first, second = whole(some).blocks
    assert first.queries.tolist() == first.keys.tolist() == [[0, 1, 2, 3]]
    assert torch.equal(first.mask[0, 0], torch.ones(4, 4, dtype=torch.bool).tril())
    assert second.queries.tolist() == [[4], [5]]
    assert second.keys.tolist() == [[0, 1, 2, 4], [0, 1, 5, 0]]
    assert second.mask[:, 0, 0].tolist() == [[True, True, True, True], [True, True, True, False]]
    assert second.apart[:, 0, 0].tolist() == [[3, 2, 1, 0], [2, 1, 0, -1]]


def test_a_pack_takes_the_pairs_with_the_numbers_it_is_given_in_their_order() -> None:
    packed = pack([*APART, *ALIKE], [3, 0], device=CPU)
    assert packed.indices == (3, 0)
    assert packed.token_ids.tolist() == [1, 2, 3]
    assert packed.paths == ((0, 1), (0, 1), (0, 1, 2), (0, 1))


@for_any_pack
def test_each_distinct_beginning_is_one_token(some: list[PairTokens]) -> None:
    packed = whole(some)
    found = {
        place: tuple(packed.token_ids[list(line)].tolist()) for place, line in lines(packed).items()
    }
    assert sorted(found) == list(range(len(packed.token_ids)))
    assert len(set(found.values())) == len(found)
    assert set(found.values()) == beginnings(some)


@for_any_pack
def test_a_path_reads_as_its_prompt_and_response_at_the_positions_they_have_alone(
    some: list[PairTokens],
) -> None:
    packed = whole(some)
    assert len(packed.paths) == 2 * len(some)
    alone = sequences(some)
    for path, ids in zip(packed.paths, alone, strict=True):
        assert tuple(packed.token_ids[list(path)].tolist()) == ids
        assert packed.positions[list(path)].tolist() == list(range(len(ids)))


@for_any_pack
def test_a_pair_is_counted_as_the_pack_of_it_alone_has_tokens(some: list[PairTokens]) -> None:
    for one in some:
        alone = len(whole([one]).token_ids)
        assert num_tokens(one) == alone


@for_any_pack
def test_parents_lie_before_their_children(some: list[PairTokens]) -> None:
    for path in whole(some).paths:
        assert list(path) == sorted(set(path))


@for_any_pack
def test_every_response_token_is_predicted_once_from_the_end_of_what_stands_before_it(
    some: list[PairTokens],
) -> None:
    packed = whole(some)
    line_of = lines(packed)
    predicted = []
    for state, target, owner in zip(packed.state_of, packed.targets, packed.owner, strict=True):
        line = line_of[int(packed.states[state])]
        before = tuple(packed.token_ids[list(line)].tolist())
        predicted.append((int(owner), before, int(target)))
    expected = [
        (number, prompt + answer[:at], answer[at])
        for number, (prompt, answer) in enumerate(responses(some))
        for at in range(len(answer))
    ]
    assert predicted == expected


@for_any_pack
def test_a_state_that_predicts_is_listed_once_and_each_that_is_listed_predicts(
    some: list[PairTokens],
) -> None:
    packed = whole(some)
    assert len(set(packed.states.tolist())) == len(packed.states)
    assert set(packed.state_of.tolist()) == set(range(len(packed.states)))


@for_any_pack
def test_a_reward_head_reads_the_last_and_the_mean_of_the_states_that_predict(
    some: list[PairTokens],
) -> None:
    packed = whole(some)
    states = torch.randn(len(packed.states), 3, generator=torch.Generator().manual_seed(0))
    found = pooled(states, packed)
    assert len(found) == 2 * len(some)
    for number, row in enumerate(found):
        own = states[packed.state_of[packed.owner == number]]
        assert torch.allclose(row, own[-1] + own.mean(dim=0), atol=1e-5)


@for_any_pack
def test_a_token_sees_its_ancestors_and_itself_and_nothing_else(some: list[PairTokens]) -> None:
    packed = whole(some)
    for place, line in lines(packed).items():
        assert tuple(packed.mask[0, 0, place].nonzero()[:, 0].tolist()) == line


@for_any_pack
def test_each_token_is_new_with_one_response(some: list[PairTokens]) -> None:
    packed = whole(some)
    new = [place for path, begin in zip(packed.paths, packed.begins, strict=True)
           for place in path[begin:]]  # fmt: skip
    assert sorted(new) == list(range(len(packed.token_ids)))


@for_any_pack
def test_a_blocks_rows_ask_by_new_tokens_and_have_their_whole_path_as_keys(
    some: list[PairTokens],
) -> None:
    packed = whole(some)
    new = {path[begin:]: path for path, begin in zip(packed.paths, packed.begins, strict=True)}
    new.pop((), None)
    asked = []
    for block, row in rows_of(packed):
        queries = tuple(dict.fromkeys(block.queries[row].tolist()))
        path = new[queries]
        asked.append(queries)
        assert block.keys[row, : len(path)].tolist() == list(path)
        assert not block.mask[row, :, :, len(path) :].any()
        assert bool(block.mask[row].any(-1).all())
    assert sorted(asked) == sorted(new)


@for_any_pack
def test_an_answer_is_taken_where_the_token_asked_and_saw_what_the_mask_lets_it_see(
    some: list[PairTokens],
) -> None:
    packed = whole(some)
    assert packed.asked[packed.answers].tolist() == list(range(len(packed.token_ids)))
    queries = [(block, row, column) for block, row in rows_of(packed)
               for column in range(block.queries.shape[1])]  # fmt: skip
    for place, answer in enumerate(packed.answers.tolist()):
        block, row, column = queries[answer]
        sees = block.mask[row, 0, column]
        seen = block.keys[row, sees]
        assert seen.tolist() == packed.mask[0, 0, place].nonzero()[:, 0].tolist()
        apart = packed.positions[place] - packed.positions[seen]
        assert torch.equal(block.apart[row, 0, column, sees], apart)


@for_any_pack
def test_the_first_of_a_tokens_keys_and_its_repeats_are_all_of_the_keys(
    some: list[PairTokens],
) -> None:
    packed = whole(some)
    assert packed.seen[packed.places].tolist() == list(range(len(packed.token_ids)))
    keys = sorted([*packed.places.tolist(), *packed.repeats.tolist()])
    assert keys == list(range(len(packed.seen)))


@for_any_pack
def test_a_row_of_a_block_is_mostly_its_own(some: list[PairTokens]) -> None:
    packed = whole(some)
    for block, row in rows_of(packed):
        queries = set(block.queries[row].tolist())
        assert len(queries) >= 0.7 * block.queries.shape[1]


@for_any_pack
def test_a_pairs_row_is_the_pack_of_the_pair_alone(some: list[PairTokens]) -> None:
    packed = whole(some)
    for row, one in zip(packed.rows, some, strict=True):
        alone = whole([one])
        assert torch.equal(packed.token_ids[row], alone.token_ids)
        assert torch.equal(packed.positions[row], alone.positions)
        assert torch.equal(packed.mask[0, 0][row][:, row], alone.mask[0, 0])


@law
@given(pairs, st.data())
def test_the_order_of_pairs_does_not_change_how_many_tokens_a_pack_has(
    some: list[PairTokens], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(some))))
    assert len(pack(some, order, device=CPU).token_ids) == len(whole(some).token_ids)


@law
@given(pairs, st.integers(1, 60), st.data())
def test_grouping_keeps_every_pair_in_order_within_the_budget_and_fills_each_group(
    some: list[PairTokens], budget: int, data: st.DataObject
) -> None:
    def size(group: Sequence[int]) -> int:
        return len(pack(some, group, device=CPU).token_ids)

    order = data.draw(st.permutations(range(len(some))))
    groups = grouped(some, order, tokens_per_step=budget)
    assert [index for group in groups for index in group] == order
    for group in groups:
        assert len(group) == 1 or size(group) <= budget
    for group, following in itertools.pairwise(groups):
        assert size([*group, following[0]]) > budget


@for_any_pack
def test_pairs_make_one_group_just_where_the_budget_holds_their_packs_tokens(
    some: list[PairTokens],
) -> None:
    size = len(whole(some).token_ids)
    for budget, fits in ((size, True), (size - 1, len(some) == 1)):
        groups = grouped(some, range(len(some)), tokens_per_step=budget)
        assert (groups == [list(range(len(some)))]) == fits


def test_no_pairs_make_no_group() -> None:
    assert grouped(APART, [], tokens_per_step=9) == []
