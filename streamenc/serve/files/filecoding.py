"""FileCoding: one file on its way through a model of an engine, in steps of about a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any

from streamenc.coding import defaults
from streamenc.coding.chain import preparation
from streamenc.coding.decode import Decode
from streamenc.coding.encode import Encode
from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.errors import InputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource, Transform
from streamenc.nodes.codes.relayout import ToLayout
from streamenc.serve.files.filereading import FileReader
from streamenc.serve.limits import Limits


class FileCoding:
    """Reads a file in a thread and pushes it through a session; an async context manager.

    While others have sessions on the engine, it rests after each step for as long as that took: so
    live streams have at least half of it.

    Attributes:
        source: What is read.
        info: What comes out.
    """

    info: StreamInfo

    def __init__(
        self,
        engine: RemoteEngine,
        source: BlockingSource,
        node: Encode | Decode,
        behind: Transform | None = None,
    ) -> None:
        self._engine, self.source, self._node, self._behind = engine, source, node, behind

    async def __aenter__(self) -> FileCoding:
        """Raises MediaError, FitError, EngineFull, ..."""
        try:
            self.info = await self._node.open(await self.source.open())
            if self._behind is not None:
                self.info = self._behind.open(self.info)
        except BaseException:  # closed, and passed on
            await self._close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._close()

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """What the model makes of it. Raises MediaError, InputError, TransportError, ..."""
        async for frame in self.source.frames():
            began = time.monotonic()
            pushed = await self._node.push(frame)
            if self._shared:
                await asyncio.sleep(time.monotonic() - began)
            for made in self._through(pushed):
                yield made
        for made in self._through(await self._node.flush()):
            yield made
        for made in () if self._behind is None else self._behind.flush():
            yield made

    @property
    def _shared(self) -> bool:
        """Whether others have sessions: of this process, or, as of a second ago, of another one."""
        return self._engine.sessions > 1 or self._engine.statistics().sessions > 1

    def _through(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            yield from (frame,) if self._behind is None else self._behind.push(frame)

    async def _close(self) -> None:
        await self._node.aclose()
        self.source.stop()
        # Its thread may be in the middle of a read: that ends, also where this is cancelled.
        await asyncio.shield(self.source.aclose())


def encoding(
    engine: RemoteEngine, name: str, path: str, limits: Limits, options: dict[str, Any]
) -> FileCoding:
    """A file through an encoder, as `streamenc encode` does it.

    Args:
        options: codebooks, dtype, layout, hops, channel, size, fit, filter.

    Raises:
        UsageError, InputError: Where the model has no such option.
    """
    codec = engine.codec(name)
    spec = codec.spec
    hops = options.get("hops") or defaults.hops_in_step(spec, live=False)
    nodes = preparation(
        codec,
        hops=hops,
        conceal_ms=defaults.conceal_ms(spec),
        channel=options.get("channel"),
        size=options.get("size"),
        fit=options.get("fit"),
        filter=options.get("filter"),
    )
    if (kind := spec.input.kind) not in ("audio", "video", "text"):
        raise InputError(f"{name} takes {kind}, and no file holds that; use /v1/stream")
    encode = Encode(
        codec, engine, codebooks=options.get("codebooks"), hops=hops, dtype=options.get("dtype")
    )
    layout = options.get("layout") or "books"
    behind = None if layout == "books" else ToLayout(layout, options.get("codebooks"))
    return FileCoding(engine, FileReader(path, kind, nodes.values(), limits), encode, behind)


def decoding(engine: RemoteEngine, name: str, source: BlockingSource) -> FileCoding:
    """Codes, or latents, through a decoder. Raises UsageError."""
    codec = engine.codec(name)
    hops = defaults.hops_in_step(codec.decoder.spec, live=False)
    return FileCoding(engine, source, Decode(codec, engine, hops=hops))
