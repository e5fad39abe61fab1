from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpdpo.client.data.holdout import split
from fedpdpo.client.data.preferences import Message, Preference
from fedpdpo.common.errors import BadData

shares = st.floats(min_value=0.001, max_value=0.999)
many = st.lists(
    st.builds(
        lambda prompt, answer: Preference(f"prompt {prompt}", f"good {answer}", f"bad {answer}"),
        st.integers(0, 8),
        st.integers(0, 20),
    ),
    min_size=2,
    max_size=40,
)


def pairs(num_prompts: int, *, each: int) -> list[Preference]:
    return [
        Preference(f"prompt {prompt}", f"good {answer}", f"bad {answer}")
        for prompt in range(num_prompts)
        for answer in range(each)
    ]


def prompts(preferences: tuple[Preference, ...]) -> set[object]:
    return {preference.prompt for preference in preferences}


@given(many, shares)
def test_a_split_loses_nothing_and_doubles_nothing(
    preferences: list[Preference], share: float
) -> None:
    train, held = split(preferences, share=share)
    assert Counter(train + held) == Counter(preferences)


@given(many, shares)
def test_neither_side_is_empty_and_the_share_is_not_exceeded(
    preferences: list[Preference], share: float
) -> None:
    train, held = split(preferences, share=share)
    assert train
    assert 1 <= len(held) <= max(1, round(share * len(preferences)))


@given(many, shares, st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_the_files(
    preferences: list[Preference], share: float, random: Random
) -> None:
    shuffled = list(preferences)
    random.shuffle(shuffled)
    assert split(shuffled, share=share) == split(preferences, share=share)


@given(many, shares)
def test_both_sides_are_sorted_by_digest(preferences: list[Preference], share: float) -> None:
    for side in split(preferences, share=share):
        assert [pair.digest for pair in side] == sorted(pair.digest for pair in side)


@given(many, shares)
def test_no_prompt_is_on_both_sides_where_one_prompt_has_few_enough_pairs(
    preferences: list[Preference], share: float
) -> None:
    room = min(max(1, round(share * len(preferences))), len(preferences) - 1)
    train, held = split(preferences, share=share)
    if min(Counter(pair.prompt for pair in preferences).values()) <= room:
        assert not prompts(train) & prompts(held)


@given(many, shares)
def test_a_held_out_prompt_is_held_out_again_when_more_is_held_out_of_distinct_prompts(
    preferences: list[Preference], share: float
) -> None:
    distinct = list({pair.prompt: pair for pair in preferences}.values())
    if len(distinct) < 2:
        return
    _, less = split(distinct, share=share / 2)
    _, more = split(distinct, share=share)
    assert set(less) <= set(more)


def test_a_tenth_of_a_hundred_pairs_of_distinct_prompts_is_ten() -> None:
    train, held = split(pairs(100, each=1), share=0.1)
    assert (len(train), len(held)) == (90, 10)


def test_a_fifth_of_ten_prompts_of_three_pairs_is_two_whole_prompts() -> None:
    train, held = split(pairs(10, each=3), share=0.2)
    assert (len(train), len(held)) == (24, 6)
    assert len(prompts(held)) == 2


def test_a_prompt_too_large_for_the_room_is_passed_over_for_those_that_fit() -> None:
    large = [Preference("large", f"good {answer}", "bad") for answer in range(18)]
    train, held = split(large + pairs(2, each=1), share=0.1)
    assert prompts(train) == {"large"}
    assert len(held) == 2


def test_pairs_of_a_single_prompt_are_split_one_by_one() -> None:
    train, held = split(pairs(1, each=10), share=0.3)
    assert (len(train), len(held)) == (7, 3)


def test_equal_pairs_of_a_single_prompt_stay_together() -> None:
    train, held = split(pairs(1, each=10) * 2, share=0.3)
    assert (len(train), len(held)) == (14, 6)
    assert not set(train) & set(held)


def test_nothing_but_copies_of_one_pair_is_still_split() -> None:
    train, held = split(pairs(1, each=1) * 4, share=0.25)
    assert (len(train), len(held)) == (3, 1)


def test_two_preferences_leave_one_on_each_side_for_any_share() -> None:
    for share in (0.01, 0.5, 0.99):
        train, held = split(pairs(2, each=1), share=share)
        assert (len(train), len(held)) == (1, 1)


def test_prompts_of_messages_are_grouped_too() -> None:
    chat = [
        Preference(
            (Message("user", f"prompt {prompt}"),),
            (Message("assistant", f"good {answer}"),),
            (Message("assistant", "bad"),),
        )
        for prompt in range(4)
        for answer in range(2)
    ]
    train, held = split(chat, share=0.25)
    assert len(held) == 2
    assert not prompts(train) & prompts(held)


def test_fewer_than_two_preferences_cannot_be_split() -> None:
    with pytest.raises(BadData, match="0 preferences cannot be split"):
        split([], share=0.1)
    with pytest.raises(BadData, match="1 preferences cannot be split"):
        split(pairs(1, each=1), share=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan"), float("inf")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(
        BadData, match=f"the share held out is {share}; it must lie between 0 and 1"
    ):
        split(pairs(2, each=1), share=share)
