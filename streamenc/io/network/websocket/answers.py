"""Answers: who waits for what a server says to an ordered message."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from streamenc.errors import InputError, TransportError
from streamenc.io.network.websocket.livemessages import Marked


@dataclass(frozen=True, slots=True)
class _Waiting:
    kind: type[Any]
    id: str
    future: asyncio.Future[Any]


class Answers:
    """A message of one kind answers one of another, and they come in the order of those."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}

    async def wait(self, seq: int, kind: type[Any], id: str = "") -> Any:
        """The answer to message `seq`, which has this `id` where it is a mark.

        Raises:
            InputError: Where the server refused the message.
            TransportError: Where the answer is lost, or the stream.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting[seq] = _Waiting(kind, id, future)
        try:
            return await future
        finally:
            self._waiting.pop(seq, None)

    def give(self, answer: Any) -> None:
        """To the first who waits for such a one; those before it wait for what never came."""
        id = answer.id if isinstance(answer, Marked) else ""
        waiting = list(self._waiting.values())  # in the order of their numbers
        for at, each in enumerate(waiting):
            if each.kind is type(answer) and each.id == id:
                _fail(waiting[:at], TransportError("the answer to this never came"))
                if not each.future.done():
                    each.future.set_result(answer)
                return

    def refuse(self, seq: int, message: str) -> bool:
        """The server did not take message `seq`. False where nobody waits for its answer."""
        waiting = self._waiting.get(seq)
        if waiting is not None:
            _fail([waiting], InputError(f"the server did not take this: {message}"))
        return waiting is not None

    def fail(self, why: BaseException) -> None:
        """No answer will come any more."""
        _fail(list(self._waiting.values()), why)


def _fail(waiting: list[_Waiting], why: BaseException) -> None:
    for each in waiting:
        if not each.future.done():
            each.future.set_exception(why)
