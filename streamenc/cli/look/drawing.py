"""What inspect draws of a file: a map over time of each stream that was encoded, or a sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
from PIL import Image

from streamenc import io
from streamenc.cli.look.contactsheet import Moment, draw_sheet
from streamenc.cli.look.page import write_page
from streamenc.cli.look.plot import Sound, plot_stream
from streamenc.errors import UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.container import Address
from streamenc.io.media.pictures import album
from streamenc.nodes.fit import Fit

if TYPE_CHECKING:
    from streamenc.cli.look.inspection import Track
    from streamenc.codec import Codec

SHOWN_MOMENTS = 6
# Of sound, the least and the largest sample of so many pieces a second are drawn.
ENVELOPE_PER_SECOND = 2000


@dataclass(frozen=True, slots=True)
class Look:
    """What an image shows beside codes.

    original  The sound or video that they were encoded from.
    decoder   Makes the reconstruction of images.
    fit       How the original was brought to size, see Fit.
    """

    original: str | None = None
    decoder: Codec | None = None
    fit: str = "crop"


def draw(tracks: Sequence[Track], target: str, png: Path, look: Look, overwrite: bool) -> list[str]:
    """Draws all streams of a file that are encoded, and says of the others why they are not there.

    Raises UsageError where there are none, or where what `look` names cannot be shown beside them.
    """
    encoded = [track for track in tracks if track.info.kind in ("codes", "features")]
    if not encoded:
        what = " and ".join(str(track.info) for track in tracks)
        raise UsageError(f"a plot shows codes or features; this is {what}")
    over_time = [track for track in encoded if len(track.info.shape) == 2]
    if look.decoder is not None and len(over_time) == len(encoded):
        raise UsageError(f"--model decodes images to stand in a sheet; {target} holds none")
    sound = None
    if look.original is not None and over_time:
        sound = _sound(look.original, needed=len(over_time) == len(encoded))
    drawings, left_out = [], []
    for index, track in enumerate(tracks):
        heading = f"track {index}: " if len(tracks) > 1 else ""
        if track not in encoded:
            left_out.append(f"track {index}, {track.info.kind}: it is not encoded")
        elif not track.frames:
            left_out.append(f"track {index}, {track.info.kind}: it has no frames")
        elif track in over_time:
            drawings.append(_plotted(track, sound, heading))
        else:
            moments = _moments(track, target, index, look)
            drawings.append(draw_sheet(track.info, moments, heading=heading))
    if not drawings:
        raise UsageError("there are no frames to plot")
    write_page(drawings, png, overwrite)
    return left_out


def kind_in(target: str) -> str:
    """Which kind of source plays all that is in a file of media: "av", "video" or "audio"."""
    address = Address.of_file(target)
    if album.recognises(address.path):
        return "video"
    with address.open() as container:
        covers = [s for s in container.streams.video if s.disposition & s.disposition.attached_pic]
        moves = len(container.streams.video) > len(covers)
        sounds = len(container.streams.audio) > 0
    return "av" if moves and sounds else "video" if moves else "audio"


def _plotted(track: Track, sound: Sound | None, heading: str) -> Image.Image:
    data, start, end = track.over_time()
    if sound is not None and not ((sound.seconds >= start) & (sound.seconds <= end)).any():
        raise UsageError(
            f"the original has no sound at {start:.2f} to {end:.2f} s, where the codes are; name "
            "the file that was encoded"
        )
    return plot_stream(
        track.info,
        data,
        sound=sound,
        start_seconds=start,
        seconds=end - start,
        gaps_seconds=track.gaps_seconds if track.info.rate else (),
        heading=heading,
    )


def _sound(original: str, needed: bool) -> Sound | None:
    """The outline of a file's sound, all channels as one; None where it has none."""
    if not needed and isinstance(io.source(original), MediaSource):
        if kind_in(original) == "video":
            return None
    source = io.source(original, kind="audio")
    if not isinstance(source, BlockingSource):
        raise UsageError(f"{original} is live; name the file that was encoded")
    seconds, values = [], []
    try:
        info = source.open_blocking()
        piece = max(1, int(info.rate) // ENVELOPE_PER_SECOND)
        while (frame := source.read()) is not None:
            mixed = frame.data.mean(axis=0)
            starts = np.arange(0, len(mixed), piece)
            if len(starts):
                ends = [reduce.reduceat(mixed, starts) for reduce in (np.minimum, np.maximum)]
                values.append(np.stack(ends, axis=1).reshape(-1))
                times = float(frame.pts * info.time_base) + starts / float(info.rate)
                seconds.append(np.repeat(times, 2))
    finally:
        source.close_blocking()
    if not seconds:
        raise UsageError(f"{original} holds no samples; name the file that was encoded")
    return Sound(np.concatenate(seconds), np.concatenate(values))


def _moments(track: Track, target: str, index: int, look: Look) -> list[Moment]:
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
