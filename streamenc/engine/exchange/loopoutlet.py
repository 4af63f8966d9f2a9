"""LoopOutlet: answers to the coroutines of an event loop."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol
from weakref import WeakValueDictionary

from streamenc.engine.exchange.door import Answer
from streamenc.engine.exchange.outputs import Output, is_output, one_after_the_other


class Claims(Protocol):
    """A seat, as far as its outputs wait there: those of steps whose callers were cancelled."""

    unclaimed: list[Output]


class LoopOutlet:
    """Of one event loop, which is woken once for all answers of a turn. Tags are futures of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def future(self) -> asyncio.Future[Any]:
        """A tag, which is done once the answer is there."""
        return self.loop.create_future()

    def deliver(self, answers: list[Answer]) -> None:
        """See Outlet."""
        try:
            self.loop.call_soon_threadsafe(self.settle, answers)
        except RuntimeError:  # the loop was closed: nobody waits any more
            pass

    def settle(self, answers: list[Answer]) -> None:
        """Answers the callers; on the loop. Outputs that nobody waits for are kept."""
        for seat, done, result, error in answers:
            if error is None:
                answer(done, seat, result)
            elif not done.cancelled():  # a chunk that was refused left the stream as it was
                done.set_exception(error)


def answer(done: asyncio.Future[Any], seat: Claims | None, result: Any) -> None:
    """Gives a call's result to who awaits it. An output that nobody waits for is kept at the seat,
    and comes in front of the next one."""
    if seat is None or not is_output(result):
        if not done.done():
            done.set_result(result)
    elif done.done():
        seat.unclaimed.append(result)
    elif seat.unclaimed:
        earlier, seat.unclaimed = seat.unclaimed, []
        done.set_result(one_after_the_other([*earlier, result]))
    else:
        done.set_result(result)


class LoopOutlets:
    """The outlets of an engine, one for each event loop that calls it."""

    def __init__(self) -> None:
        self._outlets: WeakValueDictionary[asyncio.AbstractEventLoop, LoopOutlet] = (
            WeakValueDictionary()
        )

    def here(self) -> LoopOutlet:
        """That of the running loop, kept by whoever uses it."""
        loop = asyncio.get_running_loop()
        outlet = self._outlets.get(loop)
        if outlet is None:
            outlet = self._outlets[loop] = LoopOutlet(loop)
        return outlet
