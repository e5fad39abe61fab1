"""Who is asked, and when a round may close."""

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpdpo.server.rounds import Turnout, num_asked, sample, staleness_weight

names = st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=12)


def draw(clients: Collection[str], fraction: float, *, seed: int, number: int) -> list[str]:
    num_drawn = num_asked(len(clients), fraction=fraction, number=0)
    return sample(clients, num_drawn=num_drawn, seed=seed, round_number=number)


@given(names, st.integers(1, 100), st.integers(0, 2**62), st.integers(1, 99))
def test_a_draw_is_a_sorted_subset_of_its_size_in_whatever_order_clients_come(
    clients: set[str], percent: int, seed: int, number: int
) -> None:
    drawn = draw(clients, percent / 100, seed=seed, number=number)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= clients
    assert len(drawn) == -(-percent * len(clients) // 100)
    assert drawn == draw(sorted(clients)[::-1], percent / 100, seed=seed, number=number)


def test_rounds_draw_differently() -> None:
    clients = [f"c{number}" for number in range(20)]
    draws = {tuple(draw(clients, 0.3, seed=1, number=number)) for number in range(20)}
    assert len(draws) > 10


@pytest.mark.parametrize(
    ("here", "number", "asked"), [(10, 0, 3), (10, 4, 4), (10, 40, 10), (1, 0, 1)]
)
def test_a_number_of_clients_stands_before_a_share(here: int, number: int, asked: int) -> None:
    assert num_asked(here, fraction=0.3, number=number) == asked


def test_a_delta_counts_less_the_older_its_adapter_is() -> None:
    assert [staleness_weight(age, power=0.5) for age in (0, 3, 8)] == [1.0, 0.5, 1 / 3]
    assert staleness_weight(5, power=0.0) == 1.0


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
    turnout = Turnout(frozenset("abcd"), frozenset(pushed), frozenset(gone), len(pushed))
    assert turnout.may_close(quorum=0.5, close_after=0, overdue=overdue) == closes


@pytest.mark.parametrize(("arrived", "closes"), [(1, False), (2, True), (3, True)])
def test_a_round_closes_after_so_many_deltas_late_ones_among_them(
    arrived: int, closes: bool
) -> None:
    turnout = Turnout(frozenset("abcd"), frozenset("a"), frozenset(), arrived)
    assert turnout.may_close(quorum=1.0, close_after=2, overdue=False) == closes


def test_those_awaited_are_the_asked_who_neither_answered_nor_left() -> None:
    assert Turnout(frozenset("cab"), frozenset("b"), frozenset("cx"), 1).awaited == ["a"]


@pytest.mark.parametrize(
    ("share", "number", "wanted"), [(0.07, 100, 7), (0.28, 25, 7), (0.3, 4, 2)]
)
def test_a_share_is_rounded_up_from_what_was_written_not_from_its_float(
    share: float, number: int, wanted: int
) -> None:
    clients = [f"c{index}" for index in range(number)]
    assert len(draw(clients, share, seed=0, number=1)) == wanted
    assert Turnout(frozenset(clients), frozenset(), frozenset(), 0).required(share) == wanted
