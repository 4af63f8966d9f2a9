"""A whole file through an encoder: decoded, mixed, resampled and cut by the nodes of any graph."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from streamenc import io
from streamenc.addresses import shown_address
from streamenc.coding import defaults
from streamenc.coding.chain import add_encoder
from streamenc.engine.engine import Engine
from streamenc.errors import NodeError, UsageError
from streamenc.graph.graph import Graph
from streamenc.graph.node import Source
from streamenc.io.files.tables.stacked import Recording, Stack
from streamenc.nodes.function import FunctionSink

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.graph.frames import StreamInfo

# Those of `add_encoder` that are of no live stream.
OPTIONS = (
    "codebooks",
    "hops",
    "conceal_ms",
    "dtype",
    "runs",
    "layout",
    "channel",
    "size",
    "fit",
    "filter",
)


def encode_file(
    codec: Codec,
    path: str | os.PathLike[str],
    source: Mapping[str, Any] | None = None,
    **options: Any,
) -> Recording:
    """See Codec.encode_file."""
    for option in options:
        if option not in OPTIONS:
            raise UsageError(f"encode_file has no option {option!r}; it has {', '.join(OPTIONS)}")
    target, kind = os.fspath(path), codec.spec.input.kind
    if source and "kind" in source:
        raise UsageError(f"{codec.name} takes {kind} of a file; leave out kind={source['kind']!r}")
    file = io.source(target, kind, **(source or {}))
    sink = _StackSink(file, target)
    sink.refuse_live()
    graph = Graph()
    with Engine() as engine:
        made = add_encoder(
            graph,
            engine,
            "encode",
            codec,
            graph.source("file", file),
            waited_for=defaults.is_live(file, realtime=False),
            **options,
        )
        graph.sink("stack", sink, made)
        _run(graph)
    return sink.stack.recording(file.broken)


class _StackSink(FunctionSink):
    """Stacks what comes of `source`."""

    def __init__(self, source: Source, address: str) -> None:
        super().__init__(lambda frame: self.stack.add(frame))
        self._source, self._address = source, address

    async def open(self, info: StreamInfo) -> None:
        self.refuse_live()  # of some sources, only opening tells
        await super().open(info)
        self.stack = Stack(info)

    def refuse_live(self) -> None:
        if self._source.live:
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
