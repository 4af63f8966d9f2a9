from __future__ import annotations

import asyncio
import time
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from streamenc.graph.clock import MonotonicClock, VirtualClock

HOUR_NS = 3600 * 10**9


def test_the_monotonic_clock_waits() -> None:
    async def main() -> None:
        clock = MonotonicClock()
        start_ns = clock.now_ns()
        with clock.busy():
            await clock.sleep_until_ns(start_ns + 20_000_000)
        assert clock.now_ns() - start_ns >= 20_000_000
        await clock.sleep_until_ns(start_ns)

    anyio.run(main)


def test_jumps_to_the_earliest_sleeper_each_time() -> None:
    async def main() -> None:
        clock = VirtualClock(start_ns=5)
        order: list[tuple[str, int]] = []

        async def sleeper(name: str, *dues: int) -> None:
            for due in dues:
                await clock.sleep_until_ns(due)
                order.append((name, clock.now_ns()))

        async with anyio.create_task_group() as group:
            group.start_soon(sleeper, "a", 30, 40, HOUR_NS)
            group.start_soon(sleeper, "b", 10, 40, 50)
        assert order == [
            ("b", 10), ("a", 30), ("b", 40), ("a", 40), ("b", 50), ("a", HOUR_NS),
        ]  # fmt: skip

    start = time.monotonic()
    anyio.run(main)
    assert time.monotonic() - start < 30


def test_a_time_that_has_passed_does_not_wait_but_lets_others_run() -> None:
    async def main() -> None:
        clock = VirtualClock(start_ns=100)
        ran = asyncio.Event()
        asyncio.get_running_loop().call_soon(ran.set)
        await clock.sleep_until_ns(100)
        assert ran.is_set() and clock.now_ns() == 100

    anyio.run(main)


def test_stands_still_while_anything_runs() -> None:
    async def main() -> None:
        clock = VirtualClock()
        seen: list[int] = []

        async def work() -> None:
            for _ in range(1000):
                await anyio.lowlevel.checkpoint()
                seen.append(clock.now_ns())

        async with anyio.create_task_group() as group:
            group.start_soon(clock.sleep_until_ns, 10)
            group.start_soon(work)
        assert set(seen) == {0}
        assert clock.now_ns() == 10

    anyio.run(main)


@pytest.mark.parametrize("way", ["busy", "default limiter"])
def test_stands_still_while_a_thread_works(way: str) -> None:
    async def main() -> None:
        clock = VirtualClock()
        after_work: list[int] = []

        async def work() -> None:
            sleep = partial(time.sleep, 0.05)
            if way == "busy":
                with clock.busy():
                    await asyncio.get_running_loop().run_in_executor(None, sleep)
            else:
                await anyio.to_thread.run_sync(sleep)
            after_work.append(clock.now_ns())

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            group.start_soon(clock.sleep_until_ns, 10)
        assert after_work == [0]
        assert clock.now_ns() == 10

    anyio.run(main)


def test_a_sleeper_that_was_cancelled_is_not_jumped_to() -> None:
    async def main() -> None:
        clock = VirtualClock()
        async with anyio.create_task_group() as group:
            group.start_soon(clock.sleep_until_ns, HOUR_NS)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await clock.sleep_until_ns(7)
        assert clock.now_ns() == 7

    anyio.run(main)


def test_can_be_used_in_one_loop_after_another() -> None:
    clock = VirtualClock()
    anyio.run(clock.sleep_until_ns, 10)
    anyio.run(clock.sleep_until_ns, 20)
    assert clock.now_ns() == 20
