"""A whole file through an encoder: decoded, mixed, resampled and cut by the nodes of any graph."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from streamenc.addresses import shown_address
from streamenc.errors import NodeError, UsageError
from streamenc.graph.graph import Graph
from streamenc.graph.node import Source
from streamenc.io.files.tables.stacked import Recording, Stack
from streamenc.nodes.function import FunctionSink
from streamenc.pipeline.builder import Pipeline

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.graph.frames import StreamInfo

# What Pipeline.encode says of the graph around it.
NO_OPTIONS = {"self", "name", "codec", "after", "track", "max_age_ms", "edge"}


def encode_file(
    codec: Codec, path: Any, source: Mapping[str, Any] | None = None, **options: Any
) -> Recording:
    """See Codec.encode_file."""
    known = [p for p in inspect.signature(Pipeline.encode).parameters if p not in NO_OPTIONS]
    for option in options:
        if option not in known:
            raise UsageError(f"encode_file has no option {option!r}; it has {', '.join(known)}")
    sink = _StackSink(str(path))
    with Pipeline() as pipeline:
        file = pipeline.source("file", str(path), kind=codec.spec.input.kind, **(source or {}))
        (sink.source,) = pipeline.sources
        sink.refuse_live()
        pipeline.sink("stack", sink, pipeline.encode("encode", codec, file, **options))
        _run(pipeline.graph)
    return sink.stack.recording(sink.source.broken)


class _StackSink(FunctionSink):
    """Stacks what comes of `source`."""

    source: Source

    def __init__(self, address: str) -> None:
        super().__init__(lambda frame: self.stack.add(frame))
        self._address = address

    async def open(self, info: StreamInfo) -> None:
        self.refuse_live()  # of some sources, only opening tells
        await super().open(info)
        self.stack = Stack(info)

    def refuse_live(self) -> None:
        if self.source.live:
            raise UsageError(
                f"{shown_address(self._address)} is live and has no end; build a Pipeline, or push "
                "what comes into codec.stream()"
            )


def _run(graph: Graph) -> None:
    """Also where an event loop runs already, as in a notebook: in another thread then."""
    run = partial(graph.run_blocking, handle_signals=False)
    try:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            run()
            return
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(run).result()
            except BaseException:  # Ctrl-C among them: what has not ended is cancelled
                graph.stop()
                graph.stop()
                raise
    except NodeError as error:
        raise error.reason from error
