"""Who is asked, and when a round may close."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpdpo.server.rounds import Turnout, sample

names = st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=12)


@given(names, st.integers(1, 100), st.integers(0, 2**62), st.integers(1, 99))
def test_a_draw_is_a_sorted_subset_of_its_size_in_whatever_order_clients_come(
    clients: set[str], percent: int, seed: int, number: int
) -> None:
    fraction = percent / 100
    drawn = sample(clients, fraction=fraction, seed=seed, round_number=number)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= clients
    assert len(drawn) == -(-percent * len(clients) // 100)
    backwards = sample(sorted(clients)[::-1], fraction=fraction, seed=seed, round_number=number)
    assert drawn == backwards


def test_rounds_draw_differently() -> None:
    clients = [f"c{number}" for number in range(20)]
    draws = {
        tuple(sample(clients, fraction=0.3, seed=1, round_number=number)) for number in range(20)
    }
    assert len(draws) > 10


@pytest.mark.parametrize(
    ("pushed", "gone", "overdue", "closes"),
    [
        ("", "", True, False),
        ("a", "", False, False),
        ("a", "", True, False),
        ("ab", "", False, False),
        ("ab", "", True, True),
        ("ab", "cd", False, True),
        ("a", "bcd", False, False),
        ("abcd", "", False, True),
    ],
)
def test_a_round_of_four_with_a_quorum_of_half(
    pushed: str, gone: str, overdue: bool, closes: bool
) -> None:
    turnout = Turnout(frozenset("abcd"), frozenset(pushed), frozenset(gone))
    assert turnout.may_close(quorum=0.5, overdue=overdue) == closes


def test_those_awaited_are_the_asked_who_neither_answered_nor_left() -> None:
    assert Turnout(frozenset("cab"), frozenset("b"), frozenset("cx")).awaited == ["a"]


@pytest.mark.parametrize(
    ("share", "number", "wanted"), [(0.07, 100, 7), (0.28, 25, 7), (0.3, 4, 2)]
)
def test_a_share_is_rounded_up_from_what_was_written_not_from_its_float(
    share: float, number: int, wanted: int
) -> None:
    clients = [f"c{index}" for index in range(number)]
    assert len(sample(clients, fraction=share, seed=0, round_number=1)) == wanted
    assert Turnout(frozenset(clients), frozenset(), frozenset()).required(share) == wanted
