"""LiveStream: one client's stream on a server, which outlives the connections of its client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamenc.graph.frames import Frame
from streamenc.io.network.websocket.livemessages import Numbered, Open, Opened, Ordered, Resumed
from streamenc.io.network.wire import Data

if TYPE_CHECKING:
    from streamenc.serve.service import Service


@dataclass(frozen=True, slots=True)
class Sent:
    """One numbered message to a client.

    Attributes:
        n: Its number.
        what: A frame of the output (whose `track` is 1 for sound of an echo), or an event.
        packet: As it goes over a socket: bytes, or JSON.
    """

    n: int
    what: Frame | Numbered
    packet: bytes | str


class Attachment:
    """A client at its stream; only one at a time. An async iterator of Sent, in order.

    It ends where the stream is closed, or another attachment takes over (`taken_over`).
    """

    taken_over: bool

    def credit(self, received: int, window: int) -> None:
        """The client has `received` numbered messages, and can hold `window` more."""
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[Sent]:
        raise NotImplementedError

    def detach(self) -> None:
        """The client is gone; the stream is kept for `resume_seconds`."""
        raise NotImplementedError


class LiveStream:
    """One stream: input that waits, the encoder (or decoder) on the engine, output that waits.

    Attributes:
        opened: What the client was told at first.
    """

    opened: Opened

    def __init__(self, service: Service, asked: Open) -> None:
        raise NotImplementedError

    async def put(self, message: Data | Ordered) -> None:
        """The client's next ordered message; waits where the policy is to block.

        Raises:
            InputError, WireError: Where it does not fit: the stream then stands as before.
        """
        raise NotImplementedError

    def attach(self, *, received: int = 0, window: int = 0) -> tuple[Attachment, Resumed]:
        """Sends from the `received`-th numbered message on, to nobody else any more."""
        raise NotImplementedError

    async def close(self) -> None:
        """Ends it: its places are given back, and nothing of it is kept."""
        raise NotImplementedError
