"""Any file or URL that PyAV (FFmpeg) opens, as video."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal

from streamenc import options
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.container import Address
from streamenc.io.media.containersource import ARRIVAL_TICK, ContainerSource, Track
from streamenc.io.media.pictures import album, peculiar
from streamenc.io.media.pictures.orientation import (
    Orientation,
    of_frame,
    of_picture_data,
    of_picture_file,
)
from streamenc.io.media.pictures.pixels import Form, RgbPixels
from streamenc.io.media.pump import Item
from streamenc.io.media.videotime import Thinning, VideoTime

# Images per second where the stream does not say, and between which what it says is believed.
DEFAULT_RATE = Fraction(25)
PLAUSIBLE_RATES = (Fraction(1, 1000), Fraction(1000))
MIN_FPS, MAX_FPS = 0.001, 1000
# Ends of the names of FFmpeg's formats of pictures: their pixels are square, whatever they say.
PICTURE_FORMATS = ("_pipe", "image2", "gif", "apng", "jpeg")
# More oblong pixels than these are a wrong number.
MAX_OBLONG = Fraction(4)


class VideoSource(ContainerSource):
    """The images of a file or URL, in their own size and at their own times.

    Yields video, uint8 RGB (3, 1, height, width), one image a frame; see RgbPixels for colours and
    images that are to be turned. pts are the container's, on its time base, also where they are
    irregular; the rate is nominal. A frame lasts until the next one; of live streams, which would
    have to wait for that, as long as the container says, or nominally. A hole or a jump backward is
    flagged (see VideoTime). Where the form changes in the middle, images are brought within the
    size of the beginning, and the first one is flagged. What cannot be decoded whole is skipped,
    counted in `lost`, and flagged. Files of HEIF, AVIF and animated WebP are read as Album reads
    them. What is peculiar about the images stands in `remarks`.

    stream           Which one of the video streams, from 0; by default the best one. Covers of
                     songs do not count.
    fps              At most so many images a second are kept, evenly by their times; the others
                     are not converted, and not counted as lost.
    square           Whether images whose pixels are not square are widened or narrowed until they
                     are, as players show them; single pictures count as square.
    open_timeout_s, read_timeout_s, reconnect, reconnect_max_s, reconnect_for_s, live,
    rtsp_transport, insecure, ca_file  As of MediaSource.
    """

    queued_frames = 4

    def __init__(
        self,
        address: str,
        stream: str | int | None = None,
        fps: str | float | Fraction | None = None,
        square: str | bool = True,
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
        self._track = VideoTrack(self.stream, self.fps, square=options.flag("square", square))
        super().__init__(checked, [self._track], live=checked.live, in_own_thread=checked.remote)

    def _play(self) -> Generator[Item, None, None]:
        if not self._address.is_file or not album.recognises(path := self._address.path):
            yield from super()._play()
            return
        with album.Album(path) as pictures:
            if self.stream:
                raise MediaError(f"{self.address!r} has no video stream {self.stream}, but one")
            self.remarks += pictures.remarks
            form = pictures.form
            album.check_size(form.width, form.height, self._address.max_pixels or album.MAX_PIXELS)
            self._track.info = self._track.start(
                pictures.time_base, pictures.rate, form, form.orientation
            )
            yield self._track.info
            for image in pictures:
                if self._halt.is_set():
                    return
                now = self.clock.now_ns()
                frames = self._track.push(image, Fraction(image.pts), Fraction(1), False, now)
                yield from self._deliver(0, frames)
            yield from self._deliver(0, self._track.flush())

    def _open_container(self) -> Any:
        try:
            return super()._open_container()
        except MediaError as error:
            if self.address.lower().endswith(album.ENDINGS):
                raise MediaError(f"{error}; {album.FROM_FILES}") from error
            raise


class VideoTrack(Track):
    """Images in RGB, of one size, on the time base of the container.

    fps     At most so many a second; None keeps all.
    square  Whether pixels that are not square become so.

    Live images are passed on at once; others wait for the next one, to know how long they last.
    """

    kind: ClassVar[Literal["video"]] = "video"

    def __init__(self, index: int | None, fps: Fraction | None = None, square: bool = True) -> None:
        super().__init__(index)
        self._fps = fps
        self._square = square
        self._waiting: Frame | None = None
        self._aspect = Fraction(1)
        self._codec: Any = None
        self._told: set[str] = set()

    def begin(self, stream: Any, first: Any) -> StreamInfo:
        album.refuse_here(stream.container.metadata.get("major_brand", ""))
        album.check_size(first.width, first.height)
        time_base = Fraction(first.time_base or stream.time_base)
        if self.timeless:
            time_base = ARRIVAL_TICK
        low, high = PLAUSIBLE_RATES
        said = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        rate = next((Fraction(r) for r in said if r and low <= r <= high), DEFAULT_RATE)
        name, format = stream.container.name, stream.container.format.name
        orientation, aspect = None, Fraction(stream.sample_aspect_ratio or 1)
        if format.endswith(PICTURE_FORMATS):
            aspect = Fraction(1)
            if name.startswith("file:"):
                orientation = of_picture_file(Path(name.removeprefix("file:")))
            elif self.head is not None:
                orientation = of_picture_data(BytesIO(bytes(self.head)))
        self._aspect = self._taken_aspect(aspect, first)
        codec = stream.codec_context
        self._codec_aspect = codec.sample_aspect_ratio
        # A broadcast changes it in mid-stream; what a container says is for the whole.
        if Fraction(self._codec_aspect or 1) == aspect:
            self._codec = codec
        form = self._form_of(first, orientation)
        ordered = not _dated_as_encoded(stream)
        if not ordered:
            self._tell("order", peculiar.dated_as_encoded(format, codec.name))
        return self.start(time_base, rate, form, orientation, ordered=ordered)

    def start(
        self,
        time_base: Fraction,
        rate: Fraction,
        form: Form,
        orientation: Orientation | None,
        *,
        ordered: bool = True,
    ) -> StreamInfo:
        """What comes out, of images that begin in that form.

        orientation  That of all images; None for what each says of itself.
        ordered      Whether they are dated as they are shown, not as they were encoded.
        """
        self._orientation = orientation
        nominal = _ticks(rate, time_base)
        self._time = VideoTime(nominal, ordered=ordered)
        self._thinning = None
        if self._fps is not None and self._fps < rate:
            self._thinning = Thinning(self._fps, time_base, nominal)
            rate = self._fps
        self._nominal = _ticks(rate, time_base)
        self._pixels = RgbPixels(form)
        self._form = form
        self._seq = 0
        self._broken = False
        shape = (3, None, self._pixels.height, self._pixels.width)
        return StreamInfo("video", time_base, rate, shape, "uint8")

    def push(
        self,
        decoded: Any,
        position: Fraction | int | None,
        tick: Fraction | int,
        broken: bool,
        arrived_ns: int,
    ) -> Generator[Frame, None, None]:
        album.check_size(decoded.width, decoded.height)
        lasts = round((decoded.duration or 0) * tick)
        pts, jumped = self._time.place(None if position is None else round(position), lasts)
        form = self._form_of(decoded, self._orientation)
        changed = form != self._form
        self._broken = self._broken or broken or jumped or changed
        if changed:
            self._tell_of_change(form, pts)
            self._form = form
        for what, sentence in peculiar.of_image(decoded):
            self._tell(what, sentence)
        if self._thinning is not None and not self._thinning.keeps(pts, self._broken):
            return
        if self._thinning is not None or lasts <= 0:
            lasts = self._nominal
        data = self._pixels(decoded, form)
        if self._pixels.transparent:
            self._tell("transparent", peculiar.TRANSPARENT)
        frame = Frame(data, pts, lasts, self._seq, self._broken, arrived_ns)
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

    def _form_of(self, image: Any, orientation: Orientation | None) -> Form:
        if orientation is None:
            orientation, doubt = of_frame(image)
            if doubt:
                self._tell("orientation", doubt)
        if self._codec is not None and self._codec.sample_aspect_ratio != self._codec_aspect:
            self._codec_aspect = self._codec.sample_aspect_ratio
            self._aspect = self._taken_aspect(Fraction(self._codec_aspect or 1), image)
        return Form(image.width, image.height, orientation, self._aspect)

    def _taken_aspect(self, aspect: Fraction, first: Any) -> Fraction:
        """How wide pixels are taken to be, where the stream says `aspect`."""
        said = Form(first.width, first.height, pixel_aspect=aspect)
        stored, square = (said.width, said.height), said.square
        if stored == square:
            return Fraction(1)
        if not self._square or not 1 / MAX_OBLONG <= aspect <= MAX_OBLONG:
            square = stored
        self._tell("oblong", peculiar.oblong(aspect, stored, square))
        return Fraction(1) if square == stored else aspect

    def _tell_of_change(self, form: Form, pts: int) -> None:
        if form.shown == self._form.shown:
            self._tell("turn", peculiar.TURNED)
            return
        seconds = float(pts * self.info.time_base)
        first = self._pixels.width, self._pixels.height
        within = self._pixels.within(form)
        self._tell("change", peculiar.changed(seconds, form.shown, first, within))

    def _tell(self, what: str, sentence: str) -> None:
        """A remark, the first time that something is so."""
        if what not in self._told:
            self._told.add(what)
            self.remarks.append(sentence)


def _dated_as_encoded(stream: Any) -> bool:
    """Whether the container knows only in which order images were encoded, not of their display."""
    unaware = {"avi", "asf", "mxf"} & {*stream.container.format.name.split(",")}
    context = stream.codec_context
    return bool(unaware) and context.name in ("h264", "hevc") and context.has_b_frames


def _ticks(rate: Fraction, time_base: Fraction) -> int:
    return max(1, round(1 / (rate * time_base)))
