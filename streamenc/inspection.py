"""What is in a file: a recording, an .ecdc, sound, or a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from streamenc import io
from streamenc.checkpoints import PICKLED, open_checkpoint
from streamenc.errors import MediaError, UsageError
from streamenc.frames import Frame, StreamInfo
from streamenc.node import BlockingSource
from streamenc.plot import plot_stream

# A plot wider than this many frames shows every n-th one.
MAX_PLOTTED_FRAMES = 20_000

Rows = list[tuple[str, str]]


def inspect_file(target: str, png: Path | None = None) -> Rows:
    """Rows of (what, value). Raises MediaError, CheckpointError or UsageError."""
    suffix = PurePath(target).suffix.lower()
    is_folder = Path(target).is_dir()
    if suffix == ".safetensors" or suffix in PICKLED or is_folder:
        if png is not None:
            raise UsageError(f"{target} is a checkpoint; only recordings can be plotted")
        return _checkpoint(target)
    if not Path(target).exists():
        raise MediaError(f"{target} does not exist")
    source = io.source(target)
    if not isinstance(source, BlockingSource):
        raise UsageError(f"{target} is a stream; record it first: streamenc listen {target} FILE")
    try:
        info = source.open_blocking()
        return _stream(source, info, png)
    finally:
        source.close_blocking()


def read_file(target: str) -> tuple[StreamInfo, list[Frame]]:
    """All frames of a file at once: for short ones, and for people who look at them."""
    source = io.source(target)
    if not isinstance(source, BlockingSource):
        raise UsageError(f"{target} is a stream, not a file")
    try:
        info = source.open_blocking()
        return info, list(iter(source.read, None))
    finally:
        source.close_blocking()


def tracks_of(target: str) -> int:
    """How many streams are interleaved in a recording; 0 where it is one, or no recording."""
    if PurePath(target).suffix.lower() != ".arrows":
        return 0
    source = io.source(target)
    assert isinstance(source, BlockingSource)
    try:
        return len(source.open_blocking().tracks)
    finally:
        source.close_blocking()


def _stream(source: BlockingSource, info: StreamInfo, png: Path | None) -> Rows:
    stats = [_Track(track) for track in (info.tracks or (info,))]
    while (frame := source.read()) is not None:
        stats[frame.track].add(frame)
    rows: Rows = []
    for index, track in enumerate(stats):
        if info.tracks:
            rows.append((f"track {index}", ""))
        rows += track.rows()
    if getattr(source, "truncated", False):
        rows.append(("truncated", "yes: the end is missing, all whole batches were read"))
    if png is not None:
        if info.kind not in ("codes", "features"):
            raise UsageError(f"a plot shows codes or features; this is {info}")
        track = stats[0]
        seconds = track.items / float(info.rate)
        gaps = track.gaps_seconds
        plot_stream(info, track.data(), png, seconds=seconds, gaps_seconds=gaps)
        rows.append(("plot", str(png)))
    return rows


class _Track:
    """Counts one stream of a file; keeps codes and features for figures, not sound."""

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        self.frames = self.items = self.ticks = 0
        self.gaps_seconds: list[float] = []
        self.peak = 0.0
        self._first_pts: int | None = None
        self._kept: list[np.ndarray[Any, Any]] = []

    def add(self, frame: Frame) -> None:
        if self._first_pts is None:
            self._first_pts = frame.pts
        elif frame.discontinuity:
            self.gaps_seconds.append(self.items / float(self.info.rate))
        self.frames += 1
        self.items += frame.data.shape[1]
        self.ticks += frame.duration
        if self.info.kind == "audio":
            self.peak = max(self.peak, float(np.abs(frame.data).max(initial=0)))
        else:
            self._kept.append(frame.data)

    def data(self) -> np.ndarray[Any, Any]:
        """(codebooks or bins, frames), thinned to what a plot can show."""
        if not self._kept:
            raise UsageError("there are no frames to plot")
        rows = min(piece.shape[0] for piece in self._kept)
        data = np.concatenate([piece[:rows] for piece in self._kept], axis=1)
        return data[:, :: math.ceil(data.shape[1] / MAX_PLOTTED_FRAMES)]

    def rows(self) -> Rows:
        info = self.info
        start = "" if self._first_pts is None else f" from pts {self._first_pts}"
        rows = [
            ("kind", info.kind),
            ("model", info.model or "-"),
            ("time base", f"{info.time_base} s"),
            ("rate", f"{float(info.rate):g}/s"),
            ("shape", f"{'x'.join('?' if n is None else str(n) for n in info.shape)} {info.dtype}"),
            ("duration", f"{float(self.ticks * info.time_base):.3f} s{start}"),
            ("packets", f"{self.frames} with {self.items} items"),
            ("gaps", str(len(self.gaps_seconds))),
        ]
        if info.kind == "audio":
            rows.append(("peak", f"{self.peak:.3f}"))
        if info.codebook_size and self._kept:
            rows += self._codes()
        return rows

    def _codes(self) -> Rows:
        books = min(piece.shape[0] for piece in self._kept)
        codes = np.concatenate([piece[:books] for piece in self._kept], axis=1)
        bits = math.log2(self.info.codebook_size) * float(self.info.rate)
        used = [perplexity(book) for book in codes]
        return [
            ("codebooks", f"{books} of {self.info.codebook_size} entries"),
            ("bitrate", f"{books * bits / 1000:.2f} kbit/s"),
            ("perplexity", " ".join(f"{p:.0f}" for p in used)),
        ]


def perplexity(codes: np.ndarray[Any, Any]) -> float:
    """How many entries are in use, weighted: 2 to the power of the entropy."""
    counts = np.unique(codes, return_counts=True)[1]
    share = counts / counts.sum()
    return float(2 ** -(share * np.log2(share)).sum())


def _checkpoint(target: str) -> Rows:
    from streamenc.registry import family_of

    checkpoint = open_checkpoint(target)
    names = sorted(checkpoint.names)
    numbers = sum(math.prod(checkpoint.shape(name)) for name in names)
    return [
        ("family", family_of(checkpoint)),
        ("tensors", str(len(names))),
        ("parameters", f"{numbers / 1e6:.1f} M"),
        ("config", "yes" if checkpoint.config else "none, published values"),
        *((name, "x".join(map(str, checkpoint.shape(name)))) for name in names[:8]),
        *([("...", f"{len(names) - 8} more")] if len(names) > 8 else []),
    ]
