"""Bodies of requests, on their way to the disk: bounded in bytes, in time and in number."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from starlette.requests import Request

from streamenc.serve.guard import Refused
from streamenc.serve.limits import Limits

# A body that comes more slowly than this on average, beyond its first `idle_seconds`, is given up.
LEAST_BYTES_PER_SECOND = 4096
WRITE_BYTES = 2**20
RETRY_SECONDS = 2


class Desk:
    """How many files are at hand; beyond `most`, who comes is refused with 503."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises Refused."""
        if self.taken >= self.most:
            raise Refused(
                503,
                "full",
                f"{self.most} files are at hand, as many as are taken at once; try again soon",
                {"Retry-After": str(RETRY_SECONDS)},
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


@asynccontextmanager
async def spooled(request: Request, limits: Limits) -> AsyncIterator[str]:
    """The body as a file, by its path, which is gone afterwards.

    Raises:
        Refused: Where it is too long, too slow, or empty.
        ClientDisconnect: Where the client went away.
    """
    most = limits.max_body_bytes
    if _length(request) > most:
        raise _too_big(most)
    file = await asyncio.to_thread(tempfile.NamedTemporaryFile, prefix="streamenc-")
    try:
        await _receive(request, file, limits)
        yield file.name
    finally:
        file.close()


async def _receive(request: Request, file: Any, limits: Limits) -> None:
    began, came, waiting = time.monotonic(), 0, bytearray()
    idle_seconds = limits.idle_seconds or None
    body = request.stream()
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(body, b"")
        except TimeoutError:
            raise _too_slow(came) from None
        waiting += chunk
        came += len(chunk)
        if came > limits.max_body_bytes:
            raise _too_big(limits.max_body_bytes)
        if not chunk or len(waiting) >= WRITE_BYTES:
            await asyncio.to_thread(file.write, bytes(waiting))
            waiting.clear()
        if not chunk:
            break
        late = time.monotonic() - began - came / LEAST_BYTES_PER_SECOND
        if idle_seconds is not None and late > idle_seconds:
            raise _too_slow(came)
    if not came:
        raise Refused(400, "bad_request", "the body is empty; send the file itself as the body")
    await asyncio.to_thread(file.flush)


def _length(request: Request) -> int:
    said = request.headers.get("content-length", "")
    return int(said) if said.isdecimal() and len(said) < 20 else 0


def _too_big(most: int) -> Refused:
    return Refused(
        413, "too_big", f"at most {most} bytes are taken; cut the file, or stream it to /v1/stream"
    )


def _too_slow(came: int) -> Refused:
    return Refused(408, "idle", f"after {came} bytes too little came for too long; send it again")
