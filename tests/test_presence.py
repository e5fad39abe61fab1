"""What is said of clients that are silent, stuck, flapping or wrong."""

import pytest

from fedpdpo.server.presence import Presence


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_honest_client_gets_no_remark(clock: Clock) -> None:
    presence = Presence(clock, timeout_s=100)
    presence.came("ada")
    for progress in (0.1, 0.5, 0.9):
        clock.now_s += 40
        presence.heard("ada", activity="training round 1", progress=progress)
        assert presence.remarks("ada", patience_s=50) == []


def test_a_silent_client_is_told_by_its_silence(clock: Clock) -> None:
    presence = Presence(clock, timeout_s=100)
    presence.came("ada")
    clock.now_s += 101
    assert presence.remarks("ada", patience_s=500) == ["silent for 101 s"]


def test_a_client_without_progress_is_stuck_only_while_it_says_that_it_works(clock: Clock) -> None:
    presence = Presence(clock, timeout_s=100)
    for activity, expected in (("training round 1", ["no progress for 60 s"]), ("", [])):
        presence.heard("ada", activity=activity, progress=0.5)
        clock.now_s += 60
        presence.heard("ada", activity=activity, progress=0.5)
        assert presence.remarks("ada", patience_s=50) == expected


def test_a_client_that_comes_and_goes_is_told_until_it_stays(clock: Clock) -> None:
    presence = Presence(clock, timeout_s=100)
    for _ in range(3):
        presence.came("ada")
        clock.now_s += 30
    assert presence.remarks("ada", patience_s=50) == []
    presence.came("ada")
    assert presence.remarks("ada", patience_s=50) == ["joined 4 times in 90 s"]
    clock.now_s += 600
    presence.heard("ada")
    assert presence.remarks("ada", patience_s=5000) == []


def test_what_was_refused_is_told_until_something_is_taken(clock: Clock) -> None:
    presence = Presence(clock, timeout_s=100)
    presence.refused("stranger", "x" * 1000)
    assert presence.remarks("stranger", patience_s=50) == []
    presence.came("ada")
    presence.refused("ada", "the payload holds NaN")
    assert presence.remarks("ada", patience_s=50) == ["refused: the payload holds NaN"]
    presence.refused("ada", "it says \x1b[2J \ud800")
    assert presence.remarks("ada", patience_s=50) == ["refused: it says [2J "]
    presence.clipped("ada", "a large delta")
    assert presence.remarks("ada", patience_s=50) == ["clipped: a large delta"]
    presence.refused("ada", "")
    assert presence.remarks("ada", patience_s=50) == []
