"""Files read at once, without a graph: all frames of one, and which streams it holds."""

from __future__ import annotations

from pathlib import PurePath

from streamenc import io
from streamenc.addresses import shown_address
from streamenc.errors import UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource


def read_file(target: str) -> tuple[StreamInfo, list[Frame]]:
    """All frames of a file at once: for short ones, and for people who look at them."""
    source = io.source(target)
    if not isinstance(source, BlockingSource):
        raise UsageError(f"{shown_address(target)} is a stream, not a file")
    try:
        info = source.open_blocking()
        return info, list(iter(source.read, None))
    finally:
        source.close_blocking()


def tracks_of(target: str) -> tuple[StreamInfo, ...]:
    """The streams that are interleaved in a recording; () where it is one, or no recording."""
    if PurePath(target).suffix.lower() != ".arrows":
        return ()
    source = io.source(target)
    assert isinstance(source, BlockingSource)
    try:
        return source.open_blocking().tracks
    finally:
        source.close_blocking()
