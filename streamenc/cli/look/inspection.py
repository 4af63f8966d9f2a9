"""What is in a file: a recording, an .ecdc, sound, or a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from streamenc import io
from streamenc.addresses import check_name, shown_address
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.checkpoints.weightfiles import ENDINGS, exists
from streamenc.cli.look.drawing import SHOWN_MOMENTS, Look, draw, kind_in
from streamenc.coding.usage import perplexity_of
from streamenc.errors import MediaError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.media.audiosource import MediaSource
from streamenc.nodes.mixing import LIMIT

# A plot wider than this many frames shows every n-th one.
MAX_PLOTTED_FRAMES = 20_000
# Candidates for a sheet, thinned as the stream goes on; the more, the more evenly they lie.
KEPT_MOMENTS = 8 * SHOWN_MOMENTS
# Of all codebooks. None have more; a header may say anything.
MAX_COUNTED_ENTRIES = 1 << 20

Rows = list[tuple[str, str]]


def inspect_file(
    target: str, png: Path | None = None, look: Look | None = None, overwrite: bool = True
) -> Rows:
    """Rows of (what, value). Raises MediaError, CheckpointError or UsageError.

    overwrite  Whether a file at `png` is replaced; otherwise it is an OutputError.
    """
    suffix = PurePath(check_name(target)).suffix.lower()
    there = exists(Path(_path(target)))  # raises where that can be no name
    if suffix in ENDINGS or Path(target).is_dir():
        if png is not None:
            raise UsageError(f"{target} is a checkpoint; only recordings can be plotted")
        return _checkpoint(target)
    if not there:
        raise MediaError(f"{shown_address(target)} does not exist")
    source, info = _opened(target)
    try:
        rows, tracks = _stream(source, info)
    finally:
        source.close_blocking()
    if png is not None:
        left_out = draw(tracks, target, png, look or Look(), overwrite)
        rows += [("plot", str(png)), *(("not drawn", why) for why in left_out)]
    return rows


def _path(target: str) -> str:
    """The file that is meant: "talk.jsonl" of "text:talk.jsonl?partials=true"."""
    is_text = target.startswith("text:")
    return target.removeprefix("text:").partition("?")[0] if is_text else target


def _opened(target: str) -> tuple[BlockingSource, StreamInfo]:
    """The source of a file, open: of a film both its tracks."""
    source = io.source(target)
    if not isinstance(source, BlockingSource):
        shown = shown_address(target)
        raise UsageError(f"{shown} is a stream; record it: streamenc listen {shown} FILE")
    if isinstance(source, MediaSource):
        source = io.source(target, kind=kind_in(target))
    assert isinstance(source, BlockingSource)
    try:
        return source, source.open_blocking()
    except BaseException:  # closed, and passed on
        source.close_blocking()
        raise


def _stream(source: BlockingSource, info: StreamInfo) -> tuple[Rows, list[Track]]:
    tracks = [Track(track) for track in (info.tracks or (info,))]
    while (frame := source.read()) is not None:
        tracks[frame.track].add(frame)
    rows: Rows = []
    for index, track in enumerate(tracks):
        if info.tracks:
            rows.append((f"track {index}", ""))
        rows += track.rows()
    rows += [("remark", sentence) for sentence in source.remarks]
    if source.broken:
        rows.append(("broken", source.broken))
    return rows, tracks


class Track:
    """Counts one stream of a file; keeps codes and features for figures, not sound or images.

    moments  Of what lies on a grid: a few frames, evenly over the stream.
    """

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        self.moments: list[Frame] = []
        self._stride = 1
        self._counts: list[np.ndarray[Any, Any]] = []  # how often each entry came, by codebook
        self.frames = self.items = self.ticks = 0
        self.gaps_seconds: list[float] = []
        self.peak = 0.0  # of what is finite
        self.not_finite = self.clipped = 0
        self.revised = self.longest = 0  # segments, and the bytes of one
        self._first_pts: int | None = None
        self._kept: list[np.ndarray[Any, Any]] = []
        # Of each of their items, when it starts and how long it lasts.
        self._spans: list[np.ndarray[Any, Any]] = []
        self._end_seconds = self._shift_seconds = 0.0

    def add(self, frame: Frame) -> None:
        start, lasts = (float(n * self.info.time_base) for n in (frame.pts, frame.duration))
        if self._first_pts is None:
            self._first_pts = frame.pts
        elif frame.discontinuity:
            # A clock that jumped back goes on from where it was.
            self._shift_seconds += max(0.0, self._end_seconds - start - self._shift_seconds)
            self.gaps_seconds.append(start + self._shift_seconds)
        start += self._shift_seconds
        self._end_seconds = start + lasts
        encoded = self.info.kind in ("codes", "features") and len(self.info.shape) == 4
        if encoded and self.frames % self._stride == 0:
            self.moments.append(frame)
            if len(self.moments) == 2 * KEPT_MOMENTS:
                self.moments, self._stride = self.moments[::2], 2 * self._stride
        self.frames += 1
        self.items += frame.data.shape[1]
        self.ticks += frame.duration
        self.revised += frame.revised
        entries = self.info.codebook_size * (self.info.shape[0] or 1)
        if 0 < entries <= MAX_COUNTED_ENTRIES and frame.data.size:
            self._count(frame.data)
        if self.info.kind == "audio":
            sizes = np.abs(frame.data)
            finite = np.isfinite(sizes)
            self.peak = max(self.peak, float(sizes.max(initial=0, where=finite)))
            self.not_finite += sizes.size - int(finite.sum())
            self.clipped += int(np.count_nonzero(sizes[finite] > LIMIT))
        elif self.info.kind == "text":
            sizes = [len(text.encode(errors="replace")) for text in frame.data.flat]
            self.longest = max(self.longest, *sizes)
        elif frame.data.ndim == 2:
            items = frame.data.shape[1]
            each = lasts / max(1, items)
            self._kept.append(frame.data)
            self._spans.append(np.stack([start + each * np.arange(items), np.full(items, each)]))

    def over_time(self) -> tuple[np.ndarray[Any, Any], float, float]:
        """(codebooks or channels, frames), evenly over time, masked where nothing came, and not
        more than a plot can show; and the seconds where they start and end."""
        if not self.items:
            raise UsageError("there are no frames to plot")
        starts, lasting = np.concatenate(self._spans, axis=1)
        if not self.info.rate:  # segments, each until the next one: one after the other
            data = np.concatenate(self._kept, axis=1)[:, -MAX_PLOTTED_FRAMES:]
            return np.ma.masked_array(data), 0.0, float(data.shape[1])
        first, last = float(starts[0]), self._end_seconds
        columns = max(len(starts), round((last - first) * float(self.info.rate)))
        columns = min(columns, MAX_PLOTTED_FRAMES)
        middles = first + (np.arange(columns) + 0.5) * (last - first) / columns
        shown = np.maximum(np.searchsorted(starts, middles, "right") - 1, 0)
        rows = min(piece.shape[0] for piece in self._kept)
        data = np.concatenate([piece[:rows] for piece in self._kept], axis=1)[:, shown]
        # Times are rounded to ticks: a quarter of a frame is no gap.
        missing = middles > starts[shown] + 1.25 * lasting[shown]
        return np.ma.masked_array(data, np.broadcast_to(missing, data.shape)), first, last

    def rows(self) -> Rows:
        info = self.info
        start = "" if self._first_pts is None else f" from pts {self._first_pts}"
        rows = [
            ("kind", info.kind),
            ("model", info.model or "-"),
            ("time base", f"{info.time_base} s"),
            ("rate", f"{float(info.rate):g}/s" if info.rate else "in segments"),
            ("shape", f"{'x'.join('?' if n is None else str(n) for n in info.shape)} {info.dtype}"),
            ("duration", f"{float(self.ticks * info.time_base):.3f} s{start}"),
            ("packets", f"{self.frames} with {self.items} items"),
            ("gaps", str(len(self.gaps_seconds))),
        ]
        if info.kind == "audio":
            rows.append(("peak", f"{self.peak:.3f}" if self.peak < 1e6 else f"{self.peak:.3g}"))
            if self.not_finite:
                rows.append(("not finite", f"{self.not_finite} samples, which models refuse"))
            if self.clipped:
                said = f"{self.clipped} samples, clipped before a model; see scale"
                rows.append((f"beyond +-{LIMIT:g}", said))
        if info.segmented:
            rows.append(("revised", f"{self.revised} of {self.items} segments"))
        if info.kind == "text":
            rows.append(("longest", f"{self.longest} bytes"))
        if self._counts:
            rows += self._codes()
        return rows

    def _count(self, codes: np.ndarray[Any, Any]) -> None:
        """Of the codebooks that all frames have."""
        books = min(len(codes), len(self._counts) or len(codes))
        size = self.info.codebook_size
        if int(codes.max()) >= size:
            raise MediaError(f"got an entry {codes.max()}; the codebooks have {size} entries")
        found = [np.bincount(b.reshape(-1), minlength=size) for b in codes]
        earlier = self._counts or [np.zeros(1, np.int64)] * books
        self._counts = [a + b for a, b in zip(earlier[:books], found[:books], strict=True)]

    def _codes(self) -> Rows:
        books, positions = len(self._counts), math.prod(n or 1 for n in self.info.shape[2:])
        bits = math.log2(self.info.codebook_size) * positions * float(self.info.rate)
        return [
            ("codebooks", f"{books} of {self.info.codebook_size} entries"),
            ("bitrate", f"{books * bits / 1000:.2f} kbit/s"),
            ("perplexity", " ".join(f"{perplexity_of(counts):.0f}" for counts in self._counts)),
        ]


def _checkpoint(target: str) -> Rows:
    from streamenc.registry import family_of

    checkpoint = open_checkpoint(target)
    names = sorted(checkpoint.names)
    numbers = sum(math.prod(checkpoint.shape(name)) for name in names)
    return [
        ("family", family_of(checkpoint)),
        ("tensors", str(len(names))),
        ("parameters", f"{numbers / 1e6:.1f} M"),
        ("config", "yes" if checkpoint.config else "no config.json"),
        *((name, "x".join(map(str, checkpoint.shape(name)))) for name in names[:8]),
        *([("...", f"{len(names) - 8} more")] if len(names) > 8 else []),
    ]
