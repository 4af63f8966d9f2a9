"""What is in a file: a recording, an .ecdc, sound, or a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np

from streamenc import io
from streamenc.addresses import shown_address
from streamenc.checkpoints.checkpoint import PICKLED, open_checkpoint
from streamenc.cli.look.contactsheet import Moment, draw_sheet
from streamenc.cli.look.plot import plot_stream
from streamenc.coding.usage import perplexity_of
from streamenc.errors import MediaError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.containersource import ContainerSource
from streamenc.nodes.fit import Fit

if TYPE_CHECKING:
    from streamenc.codec import Codec

# A plot wider than this many frames shows every n-th one.
MAX_PLOTTED_FRAMES = 20_000
SHOWN_MOMENTS = 6
# Candidates for these, thinned as the stream goes on; the more, the more evenly they lie.
KEPT_MOMENTS = 8 * SHOWN_MOMENTS
# No codebook is larger; a header may say anything.
MAX_COUNTED_ENTRIES = 1 << 20

Rows = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Look:
    """What an image of encoded images shows beside their codes.

    original  The video that they were encoded from.
    decoder   Makes the reconstruction.
    fit       How the original was brought to size, see Fit.
    """

    original: str | None = None
    decoder: Codec | None = None
    fit: str = "crop"


def inspect_file(target: str, png: Path | None = None, look: Look | None = None) -> Rows:
    """Rows of (what, value). Raises MediaError, CheckpointError or UsageError."""
    suffix = PurePath(target).suffix.lower()
    is_folder = Path(target).is_dir()
    if suffix == ".safetensors" or suffix in PICKLED or is_folder:
        if png is not None:
            raise UsageError(f"{target} is a checkpoint; only recordings can be plotted")
        return _checkpoint(target)
    if not Path(target).exists():
        raise MediaError(f"{shown_address(target)} does not exist")
    source, info = _opened(target)
    try:
        rows, track = _stream(source, info, png)
    finally:
        source.close_blocking()
    if png is not None and len(track.info.shape) == 4:
        index = info.tracks.index(track.info) if info.tracks else 0
        draw_sheet(track.info, _moments(track, target, index, look or Look()), png)
    return rows


def _opened(target: str) -> tuple[BlockingSource, StreamInfo]:
    """The source of a file, open: of a film both its tracks."""
    for kind in ("av", "video", "audio"):
        source = io.source(target)
        if not isinstance(source, BlockingSource):
            shown = shown_address(target)
            raise UsageError(f"{shown} is a stream; record it: streamenc listen {shown} FILE")
        if isinstance(source, MediaSource):
            source = io.source(target, kind=kind)
        assert isinstance(source, BlockingSource)
        try:
            return source, source.open_blocking()
        except MediaError:
            source.close_blocking()
            if kind == "audio" or not isinstance(source, ContainerSource):
                raise
    raise AssertionError


def _stream(source: BlockingSource, info: StreamInfo, png: Path | None) -> tuple[Rows, _Track]:
    """Also the track that an image shows."""
    stats = [_Track(track) for track in (info.tracks or (info,))]
    while (frame := source.read()) is not None:
        stats[frame.track].add(frame)
    rows: Rows = []
    for index, track in enumerate(stats):
        if info.tracks:
            rows.append((f"track {index}", ""))
        rows += track.rows()
    if source.broken:
        rows.append(("broken", source.broken))
    # Of a film, the images.
    track = next((t for t in stats if len(t.info.shape) == 4), stats[0])
    if png is not None:
        if track.info.kind not in ("codes", "features"):
            raise UsageError(f"a plot shows codes or features; this is {info}")
        if len(track.info.shape) == 2:
            seconds = track.items / float(track.info.rate)
            gaps = track.gaps_seconds
            plot_stream(track.info, track.data(), png, seconds=seconds, gaps_seconds=gaps)
        rows.append(("plot", str(png)))
    return rows, track


class _Track:
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
        self.peak = 0.0
        self._first_pts: int | None = None
        self._kept: list[np.ndarray[Any, Any]] = []

    def add(self, frame: Frame) -> None:
        if self._first_pts is None:
            self._first_pts = frame.pts
        elif frame.discontinuity:
            self.gaps_seconds.append(self.items / float(self.info.rate))
        encoded = self.info.kind in ("codes", "features") and len(self.info.shape) == 4
        if encoded and self.frames % self._stride == 0:
            self.moments.append(frame)
            if len(self.moments) == 2 * KEPT_MOMENTS:
                self.moments, self._stride = self.moments[::2], 2 * self._stride
        self.frames += 1
        self.items += frame.data.shape[1]
        self.ticks += frame.duration
        if 0 < self.info.codebook_size <= MAX_COUNTED_ENTRIES and frame.data.size:
            self._count(frame.data)
        if self.info.kind == "audio":
            self.peak = max(self.peak, float(np.abs(frame.data).max(initial=0)))
        elif frame.data.ndim == 2:
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


def _moments(track: _Track, target: str, index: int, look: Look) -> list[Moment]:
    info, frames = track.info, track.moments
    if not frames:
        raise UsageError("there are no frames to plot")
    even = np.linspace(0, len(frames) - 1, min(SHOWN_MOMENTS, len(frames))).round()
    frames = [frames[int(place)] for place in even]
    moments = [
        Moment(float(frame.pts * info.time_base), frame.data[:, 0].astype(np.float64))
        if info.kind == "features"
        else Moment(float(frame.pts * info.time_base), frame.data[:, 0])
        for frame in frames
    ]
    size = None
    if look.decoder is not None:
        wanted = {frame.pts for frame in frames}
        images = anyio.run(_decoded, look.decoder, target, index, wanted)
        for moment, frame in zip(moments, frames, strict=True):
            moment.reconstruction = images.get(frame.pts)
        size = next((p.shape[:2] for p in images.values()), None)
    if look.original is not None:
        _add_originals(moments, look, size)
    return moments


async def _decoded(
    codec: Codec, target: str, index: int, wanted: set[int]
) -> dict[int, np.ndarray[Any, Any]]:
    """pts -> the image that begins there, (height, width, 3), for the `wanted` ones."""
    from streamenc.coding.decode import Decode
    from streamenc.engine.engine import Engine  # which brings torch

    source = io.source(target)
    assert isinstance(source, BlockingSource)
    found: dict[int, np.ndarray[Any, Any]] = {}

    def take(images: Iterable[Frame]) -> None:
        for image in images:
            if image.pts in wanted and image.pts not in found:
                pixels = image.data[:, 0].transpose(1, 2, 0)
                found[image.pts] = np.ascontiguousarray(pixels)

    with Engine() as engine:
        decode = Decode(codec, engine)
        try:
            await decode.open(source.open_blocking().track(index))
            while (frame := source.read()) is not None and len(found) < len(wanted):
                if frame.track == index:
                    take(await decode.push(frame))
            take(await decode.flush())
        finally:
            await decode.aclose()
            source.close_blocking()
    return found


def _add_originals(moments: list[Moment], look: Look, size: tuple[int, int] | None) -> None:
    """The image that is shown at each moment, at the size of the reconstruction."""
    source = io.source(look.original or "", kind="video")
    if not isinstance(source, BlockingSource):
        raise UsageError(f"{look.original} is live; name the file that was encoded")
    waiting = sorted(moments, key=lambda moment: moment.seconds)
    try:
        came = source.open_blocking()
        fit = _as_encoded(came, moments[0], look, size)
        info = fit.open(came)
        while waiting and (frame := source.read()) is not None:
            # From half an image before to the middle: times are rounded to ticks on the way.
            half = float(frame.duration * info.time_base) / 2
            start = float(frame.pts * info.time_base)
            while waiting and waiting[0].seconds < start + half:
                moment = waiting.pop(0)
                if moment.seconds >= start - half:
                    (fitted,) = fit.push(frame)
                    moment.original = np.ascontiguousarray(fitted.data[:, 0].transpose(1, 2, 0))
    finally:
        source.close_blocking()
    if all(moment.original is None for moment in moments):
        raise UsageError(
            f"{look.original} shows nothing at {moments[0].seconds:.2f} to "
            f"{moments[-1].seconds:.2f} s, where the codes are; name the film that was encoded"
        )


def _as_encoded(came: StreamInfo, moment: Moment, look: Look, size: tuple[int, int] | None) -> Fit:
    """What an encoder most likely did to bring images to `size`, without scaling if it could."""
    if size is None:
        return Fit(how=look.fit)
    unit = size[0] // moment.codes.shape[1]
    cut = tuple((side or 0) // unit * unit for side in came.shape[2:])
    if look.fit == "crop" and cut == size:
        return Fit(unit)
    model = None if look.decoder is None else look.decoder.decoder
    image = None if model is None else model.spec.output.image
    return Fit(size=size, how=look.fit, filter=image.filter if image else "bicubic")


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
