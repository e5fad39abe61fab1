"""Turns of transfers: so many at a time, the others in the order they came."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from fedpdpo.common.errors import Busy, Superseded
from fedpdpo.server.threads import to_its_end
from fedpdpo.server.transfers import Transfers


class Hall:
    """Transfers with a clock of the test's own, and what happened in them."""

    def __init__(self, *, at_once: int, patience_s: float = 60.0) -> None:
        self.now_s = 0.0
        self.log: list[str] = []
        self.transfers = Transfers(at_once=at_once, patience_s=patience_s, clock=lambda: self.now_s)
        self.doors: dict[str, asyncio.Event] = {}

    def enter(self, name: str) -> asyncio.Task[None]:
        self.doors[name] = asyncio.Event()

        async def visit(door: asyncio.Event) -> None:
            async with self.transfers.turn(name):
                self.log.append(name)
                await door.wait()

        return asyncio.create_task(visit(self.doors[name]))


def in_a_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(main())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_turns_are_limited_and_go_in_order() -> None:
    async def scenario() -> None:
        hall = Hall(at_once=2)
        visits = {name: hall.enter(name) for name in "abcde"}
        await settle()
        assert hall.log == ["a", "b"]
        for leaving, expected in (("b", "abc"), ("a", "abcd"), ("d", "abcde")):
            hall.doors[leaving].set()
            await settle()
            assert hall.log == list(expected)
        for door in hall.doors.values():
            door.set()
        await asyncio.gather(*visits.values())

    in_a_loop(scenario)


def test_who_waited_in_vain_keeps_the_place_and_is_told_when_to_come_back() -> None:
    async def scenario() -> None:
        hall = Hall(at_once=1, patience_s=0.05)
        first = hall.enter("a")
        await settle()
        with pytest.raises(Busy, match="1 transfers are under way and 1 wait") as told:
            await hall.enter("b")
        assert told.value.again_in_s == 2.0
        later = hall.enter("c")
        again = hall.enter("b")
        await settle()
        hall.doors["a"].set()
        await settle()
        assert hall.log == ["a", "b"]
        for door in hall.doors.values():
            door.set()
        await asyncio.gather(first, again, later)
        assert hall.log == ["a", "b", "c"]

    in_a_loop(scenario)


def test_a_free_turn_is_not_kept_for_who_is_away_and_who_stays_away_is_forgotten() -> None:
    async def scenario() -> None:
        hall = Hall(at_once=1, patience_s=0.05)
        first = hall.enter("a")
        await settle()
        with pytest.raises(Busy):
            await hall.enter("b")
        hall.doors["a"].set()
        await first
        third = hall.enter("c")
        await settle()
        assert hall.log == ["a", "c"]
        hall.now_s = 1000.0
        fourth = hall.enter("d")
        back = hall.enter("b")
        await settle()
        for name in "cdb":
            hall.doors[name].set()
        await asyncio.gather(third, fourth, back)
        assert hall.log == ["a", "c", "d", "b"]

    in_a_loop(scenario)


def test_a_second_stream_of_a_client_ends_its_first() -> None:
    async def scenario() -> None:
        hall = Hall(at_once=1)
        first = hall.enter("a")
        await settle()
        second = hall.enter("a")
        await settle()
        with pytest.raises(Superseded, match="another stream of a"):
            await first
        assert hall.log == ["a", "a"]
        hall.doors["a"].set()
        await second

    in_a_loop(scenario)


def test_a_second_stream_does_not_wait_for_what_the_first_cannot_tell_a_dead_connection() -> None:
    async def scenario() -> None:
        transfers = Transfers(at_once=1, patience_s=5.0, clock=asyncio.get_running_loop().time)
        thawed = asyncio.Event()

        async def over_a_dead_connection() -> None:
            try:
                async with transfers.turn("a"):
                    await asyncio.Event().wait()
            except Superseded:
                await thawed.wait()

        first = asyncio.create_task(over_a_dead_connection())
        await settle()
        async with transfers.turn("a"):
            assert not first.done()
            assert transfers.under_way == 1
        thawed.set()
        await first

    in_a_loop(scenario)


def test_a_third_stream_waits_for_the_first_though_the_second_is_ended_too() -> None:
    async def scenario() -> None:
        transfers = Transfers(at_once=4, patience_s=5.0, clock=asyncio.get_running_loop().time)
        log: list[str] = []
        left = asyncio.Event()

        async def slow_to_leave() -> None:
            async with transfers.turn("a"):
                try:
                    await asyncio.Event().wait()
                finally:
                    await to_its_end(time.sleep, 0.2)
                    log.append("left")
                    left.set()

        async def quick() -> None:
            async with transfers.turn("a"):
                log.append("entered")

        first = asyncio.create_task(slow_to_leave())
        await settle()
        second = asyncio.create_task(quick())
        await settle()
        third = asyncio.create_task(quick())
        await third
        assert log == ["left", "entered"]
        for task in (first, second):
            with pytest.raises(Superseded):
                await task

    in_a_loop(scenario)


def test_what_goes_to_its_end_is_done_when_its_cancellation_is_raised() -> None:
    async def scenario() -> None:
        done: list[str] = []

        def work(fails: bool) -> str:
            time.sleep(0.2)
            done.append("done")
            if fails:
                raise ValueError("it failed")
            return "a result"

        assert await to_its_end(work, False) == "a result"
        with pytest.raises(ValueError, match="it failed"):
            await to_its_end(work, True)
        for fails in (False, True):
            task = asyncio.create_task(to_its_end(work, fails))
            await settle()
            for _ in range(3):
                task.cancel()
                await settle()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert done == ["done"] * 4

    in_a_loop(scenario)


@pytest.mark.parametrize("admitted", [False, True])
def test_who_goes_while_waiting_takes_no_turn_along(admitted: bool) -> None:
    async def scenario() -> None:
        hall = Hall(at_once=1)
        first = hall.enter("a")
        await settle()
        second = hall.enter("b")
        await settle()
        if admitted:
            hall.doors["a"].set()
            await first
        second.cancel()
        hall.doors["a"].set()
        third = hall.enter("c")
        await settle()
        assert hall.log[-1] == "c"
        hall.doors["c"].set()
        await third

    in_a_loop(scenario)
