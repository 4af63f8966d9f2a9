"""Files read at once, without a graph: as arrays, as frames, and which streams one holds."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any

from streamenc import io
from streamenc.addresses import shown_address
from streamenc.errors import UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource, Source
from streamenc.io.files.tables.npz import read_npz
from streamenc.io.files.tables.stacked import Recording, Stack
from streamenc.nodes.resample import Resample
from streamenc.options import integer

RECORDINGS = (".arrows", ".parquet", ".npz")


def read(
    path: str | os.PathLike[str],
    *,
    kind: str = "",
    codebooks: int | None = None,
    sample_rate: int | None = None,
    channels: int | None = None,
    **options: Any,
) -> Recording:
    """A whole file as numpy arrays: tokens or features that were recorded, or sound.

    Args:
        path: A recording (`.arrows`, `.parquet`, `.npz`), an `.ecdc`, or any file that FFmpeg
            opens.
        kind: What is taken of the latter: "audio", as with "", its "video", "av", both, or its
            "text", see `text:`.
        codebooks: Takes the first so many of codes; where their number changes within the stream,
            it has to be said.
        sample_rate: Resamples sound to so many Hz, see Resample.
        channels: Mixes sound down to 1, or doubles it to 2.
        options: As `streamenc help` lists them for such a file.

    Returns:
        Its `data` (codebooks, frames), `times` in seconds, `gaps` and `info`; of a file with
        several streams, its `tracks` have them.

    Raises:
        MediaError: Where the file cannot be read.
        InputError: Where frames of one stream have several numbers of codebooks.
        FitError: Where what is no sound was to be resampled.
        UsageError: Where `path` is no file, as what is live: `streamenc.subscribe` takes streams.
    """
    target = os.fspath(path)
    if codebooks is not None:
        codebooks = integer("codebooks", codebooks, 1, 2**31 - 1)
    if PurePath(target).suffix.lower() == ".npz":
        if kind or options or (codebooks, sample_rate, channels) != (None, None, None):
            raise UsageError(f"{target} is read as it is: an .npz takes no options")
        return read_npz(target)
    source = _file(target, kind, **options)
    source.gather()
    try:
        info = _opened(source, target)
        resample = None
        if sample_rate is not None or channels is not None:
            wanted: Any = channels  # which Resample checks
            resample = Resample(sample_rate or int(info.rate), wanted)
            info = resample.open(info)
        stack = Stack(info, codebooks)
        while (frame := source.read()) is not None:
            for made in (frame,) if resample is None else resample.push(frame):
                stack.add(made)
        for made in () if resample is None else resample.flush():
            stack.add(made)
        return stack.recording(source.broken)
    finally:
        source.close_blocking()


def read_file(target: str) -> tuple[StreamInfo, list[Frame]]:
    """All frames of a file at once: for short ones, and for people who look at them."""
    source = _file(target)
    try:
        info = _opened(source, target)
        return info, list(iter(source.read, None))
    finally:
        source.close_blocking()


def tracks_of(target: str) -> tuple[StreamInfo, ...]:
    """The streams that are interleaved in a recording; () where it is one, or no recording."""
    if PurePath(target).suffix.lower() not in RECORDINGS:
        return ()
    source = _file(target)
    try:
        return source.open_blocking().tracks
    finally:
        source.close_blocking()


def _file(target: str, kind: str = "", **options: Any) -> BlockingSource:
    source = io.source(target, kind, **options)
    _refuse_live(source, target)
    assert isinstance(source, BlockingSource)
    return source


def _opened(source: BlockingSource, target: str) -> StreamInfo:
    info = source.open_blocking()
    _refuse_live(source, target)  # of some sources, only opening tells
    return info


def _refuse_live(source: Source, target: str) -> None:
    if not isinstance(source, BlockingSource) or source.live:
        shown = shown_address(target)
        raise UsageError(
            f"{shown} is a stream, not a file; streamenc.subscribe({shown!r}) gives what comes, "
            "piece by piece"
        )
