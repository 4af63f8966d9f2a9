"""Service: what one I/O process of a server holds: its engines, its streams, its limits."""

from __future__ import annotations

from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.io.network.websocket.livemessages import Open, Resume
from streamenc.serve.limits import Limits
from streamenc.serve.livestream import LiveStream


class Service:
    """The streams of one process, on the engines at `addresses`; used from one event loop.

    Attributes:
        draining: Why no new streams are taken; "" while they are.
        ready: Whether all engines answer, with warm models.
        limits: What clients may ask.
    """

    limits: Limits
    draining: str
    ready: bool

    def __init__(self, addresses: list[str], limits: Limits, *, store: str | None = None) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Connects to the engines, in the background, and again whenever one is gone."""

    async def aclose(self) -> None:
        """Ends all; streams that are live are written to the store."""

    def models(self) -> list[RemoteModel]:
        """What can be asked for now."""
        raise NotImplementedError

    def model(self, name: str, *, decode: bool = False) -> RemoteModel:
        """Raises UsageError where it is not there."""
        raise NotImplementedError

    async def open(self, asked: Open, owner: str = "") -> LiveStream:
        """A new stream.

        Args:
            owner: The name of the key that asks; "" for none.

        Raises:
            EngineFull: Where all places are taken.
            UsageError, InputError, FitError: Where what was asked for is not there.
            TransportError: Where no engine answers just now.
        """
        raise NotImplementedError

    async def resume(self, asked: Resume, owner: str = "") -> LiveStream:
        """A stream that lost its client, of this process or from the store.

        Raises:
            UsageError: Where there is none of this token any more.
        """
        raise NotImplementedError

    async def drain(self, seconds: float) -> None:
        """Takes no new streams, tells all clients to go, and writes what is left to the store."""
