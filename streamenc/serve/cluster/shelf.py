"""Shelf: streams in memory, as they last were, and who has them: all of the store's actor.

It knows nothing of Ray, so that it can be tested without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

# A holder that has not asked for so long is taken for dead, and is not waited for.
SILENT_SECONDS = 5.0
# How long a holder may take to write a stream down that another one wants.
CLAIM_SECONDS = 3.0
# How long a holder's question stays open where nobody wants anything.
LISTEN_SECONDS = 2.0

Put = Literal["kept", "claimed", "full"]


@dataclass(slots=True)
class _Stream:
    epoch: int
    blob: bytes
    holder: str
    seen: float


@dataclass(slots=True)
class _Holder:
    seen: float
    wanted: set[str] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Shelf:
    """Streams by their keys, within a bound; used from one event loop.

    Whoever wants a stream that another process has gets it fresh: the holder is asked to write it
    down and to let it go. Where it does not answer, as it was killed, the stream is given as it was
    last written.

    Args:
        max_bytes: Of all streams together. What does not fit is not kept, and its holder is told:
            nothing is thrown out for it, as its clients count on it.
        clock: Seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._clock = max_bytes, clock
        self._streams: dict[str, _Stream] = {}
        self._nbytes = 0
        self._holders: dict[str, _Holder] = {}
        self._claims: dict[str, tuple[set[str], asyncio.Event]] = {}

    async def put(self, holder: str, key: str, epoch: int, blob: bytes) -> Put:
        known = self._streams.get(key)
        if known is not None and known.epoch > epoch:
            return "claimed"
        grows = len(blob) - (0 if known is None else len(known.blob))
        if self._nbytes + grows > self._max_bytes:
            return "full"
        self._nbytes += grows
        self._streams[key] = _Stream(epoch, blob, holder, self._clock())
        return "kept"

    async def claim(self, holder: str, key: str) -> tuple[int, bytes] | None:
        """The stream, and the epoch that `holder` has it in from now on; None where there is none.

        It waits for up to 3 s for another holder to write it down.
        """
        others = self._who_may_have(key) - {holder}
        if others:
            await self._ask(others, key)
        stream = self._streams.get(key)
        if stream is None:
            return None
        stream.epoch += 1
        stream.holder, stream.seen = holder, self._clock()
        return stream.epoch, stream.blob

    async def touch(self, key: str, epoch: int) -> bool:
        stream = self._streams.get(key)
        if stream is None:
            return True
        if stream.epoch > epoch:
            return False
        stream.seen = self._clock()
        return True

    async def drop(self, key: str, epoch: int) -> None:
        stream = self._streams.get(key)
        if stream is not None and stream.epoch <= epoch:
            self._forget(key)

    async def sweep(self, older_than_seconds: float) -> int:
        before = self._clock() - older_than_seconds
        old = [key for key, stream in self._streams.items() if stream.seen < before]
        for key in old:
            self._forget(key)
        return len(old)

    async def wanted(self, holder: str, let_go: Sequence[str]) -> list[str]:
        """The keys of streams that others want of `holder`, which asks this again and again.

        Args:
            let_go: What it was told last, and does not have any more (or never had).
        """
        here = self._holders.setdefault(holder, _Holder(self._clock()))
        here.seen = self._clock()
        for key in let_go:
            if key in self._claims:
                waited_for, done = self._claims[key]
                waited_for.discard(holder)
                if not waited_for:
                    done.set()
        try:
            await asyncio.wait_for(here.news.wait(), LISTEN_SECONDS)
        except TimeoutError:
            pass
        here.seen = self._clock()
        keys = list(here.wanted)
        here.wanted.clear()
        here.news.clear()
        return keys

    async def leave(self, holder: str) -> None:
        """`holder` listens no more, and has no stream."""
        self._holders.pop(holder, None)

    async def statistics(self) -> dict[str, int]:
        return {"streams": len(self._streams), "bytes": self._nbytes, "max_bytes": self._max_bytes}

    def _who_may_have(self, key: str) -> set[str]:
        now = self._clock()
        for name in [n for n, h in self._holders.items() if now - h.seen > SILENT_SECONDS]:
            del self._holders[name]
        stream = self._streams.get(key)
        # A stream that was never written yet may be with anybody.
        return set(self._holders) if stream is None else {stream.holder} & self._holders.keys()

    async def _ask(self, holders: set[str], key: str) -> None:
        waited_for, done = self._claims.setdefault(key, (set(), asyncio.Event()))
        waited_for |= holders
        for name in holders:
            self._holders[name].wanted.add(key)
            self._holders[name].news.set()
        try:
            await asyncio.wait_for(done.wait(), CLAIM_SECONDS)
        except TimeoutError:
            pass
        finally:
            self._claims.pop(key, None)

    def _forget(self, key: str) -> None:
        self._nbytes -= len(self._streams.pop(key).blob)
