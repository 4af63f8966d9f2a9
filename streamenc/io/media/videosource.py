"""Any file or URL that PyAV (FFmpeg) opens, as video."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import Any, ClassVar, Literal

from streamenc import options
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.container import Address
from streamenc.io.media.containersource import ARRIVAL_TICK, ContainerSource, Track
from streamenc.io.media.pixels import RgbPixels, form
from streamenc.io.media.videotime import Thinning, VideoTime

# Images per second where the stream does not say, and between which what it says is believed.
DEFAULT_RATE = Fraction(25)
PLAUSIBLE_RATES = (Fraction(1, 1000), Fraction(1000))
MIN_FPS, MAX_FPS = 0.001, 1000
MAX_PIXELS = 2**26


class VideoSource(ContainerSource):
    """The images of a file or URL, in their own size and at their own times.

    Yields video, uint8 RGB (3, 1, height, width), one image a frame; see RgbPixels for colours
    and turned images. pts are the container's, on its time base, also where they are irregular;
    the rate is nominal. A frame lasts until the next one; of live streams, which would have to wait
    for that, as long as the container says, or nominally. A hole or a jump backward is flagged (see
    VideoTime). Where the size changes in the middle, images are scaled to that of the beginning,
    and the first one is flagged. What cannot be decoded whole is skipped, counted in `lost`, and
    flagged.

    stream           Which one of the video streams, from 0; by default the best one. Covers of
                     songs do not count.
    fps              At most so many images a second are kept, evenly by their times; the others
                     are not converted, and not counted as lost.
    open_timeout_s, read_timeout_s, reconnect, reconnect_max_s, reconnect_for_s, live,
    rtsp_transport, insecure, ca_file  As of MediaSource.
    """

    queued_frames = 4

    def __init__(
        self,
        address: str,
        stream: str | int | None = None,
        fps: str | float | Fraction | None = None,
        open_timeout_s: str | float = 10,
        read_timeout_s: str | float = 10,
        reconnect: str | bool | None = None,
        reconnect_max_s: str | float = 10,
        reconnect_for_s: str | float = 60,
        live: str | bool | None = None,
        rtsp_transport: str = "",
        insecure: str | bool = False,
        ca_file: str = "",
    ) -> None:
        self.stream = None if stream is None else options.integer("stream", stream, 0, 1000)
        self.fps = None if fps is None else options.rate("fps", fps, MIN_FPS, MAX_FPS)
        checked = Address.checked(
            address, open_timeout_s, read_timeout_s, reconnect, reconnect_max_s, reconnect_for_s,
            live, rtsp_transport, insecure, ca_file,
        )  # fmt: skip
        track = VideoTrack(self.stream, self.fps)
        super().__init__(checked, [track], live=checked.live, in_own_thread=checked.remote)


class VideoTrack(Track):
    """Images in RGB, of one size, on the time base of the container.

    fps   At most so many a second; None keeps all.

    Live images are passed on at once; others wait for the next one, to know how long they last.
    """

    kind: ClassVar[Literal["video"]] = "video"

    def __init__(self, index: int | None, fps: Fraction | None = None) -> None:
        super().__init__(index)
        self._fps = fps
        self._waiting: Frame | None = None

    def begin(self, stream: Any, first: Any) -> StreamInfo:
        _check_size(first)
        time_base = Fraction(first.time_base or stream.time_base)
        if self.timeless:
            time_base = ARRIVAL_TICK
        low, high = PLAUSIBLE_RATES
        said = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        rate = next((Fraction(r) for r in said if r and low <= r <= high), DEFAULT_RATE)
        nominal = _ticks(rate, time_base)
        self._time = VideoTime(nominal)
        self._thinning = None
        if self._fps is not None and self._fps < rate:
            self._thinning = Thinning(self._fps, time_base, nominal)
            rate = self._fps
        self._nominal = _ticks(rate, time_base)
        self._pixels = RgbPixels(first)
        self._form = form(first)
        self._seq = 0
        self._broken = False
        shape = (3, None, self._pixels.height, self._pixels.width)
        return StreamInfo("video", time_base, rate, shape, "uint8")

    def push(
        self,
        decoded: Any,
        position: Fraction | None,
        tick: Fraction,
        broken: bool,
        arrived_ns: int,
    ) -> Generator[Frame, None, None]:
        _check_size(decoded)
        lasts = round((decoded.duration or 0) * tick)
        pts, jumped = self._time.place(None if position is None else round(position), lasts)
        changed = form(decoded) != self._form
        self._form = form(decoded)
        self._broken = self._broken or broken or jumped or changed
        if self._thinning is not None and not self._thinning.keeps(pts, self._broken):
            return
        if self._thinning is not None or lasts <= 0:
            lasts = self._nominal
        frame = Frame(self._pixels(decoded), pts, lasts, self._seq, self._broken, arrived_ns)
        self._seq += 1
        self._broken = False
        if self.live:
            yield frame
            return
        before, self._waiting = self._waiting, frame
        if before is not None:
            yield before if frame.discontinuity else before.with_(duration=pts - before.pts)

    def flush(self) -> Generator[Frame, None, None]:
        last, self._waiting = self._waiting, None
        if last is not None:
            yield last


def _check_size(image: Any) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(
            f"images of {image.width} x {image.height}; at most {MAX_PIXELS} pixels are "
            "taken, as 8192 x 8192: scale them down first"
        )


def _ticks(rate: Fraction, time_base: Fraction) -> int:
    return max(1, round(1 / (rate * time_base)))
