"""Any file or URL that PyAV (FFmpeg) opens, as audio."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import av
import numpy as np

from streamenc import options
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiotime import ContainerTime, times
from streamenc.io.media.container import Address
from streamenc.io.media.containersource import ContainerSource, Track
from streamenc.io.media.incoming.intake import Intake

# What PyAV hands to numpy; anything else goes through its converter.
NUMPY_FORMATS: dict[str, np.dtype[Any]] = {
    "u8": np.dtype(np.uint8),
    "s16": np.dtype(np.int16),
    "s32": np.dtype(np.int32),
    "flt": np.dtype(np.float32),
    "dbl": np.dtype(np.float64),
}
# A frame of more than 1/10 s is split into pieces of at most 1/20 s.
LONGEST_PER_SECOND = 10
PIECES_PER_SECOND = 20
Samples = np.ndarray[Any, Any]
# Rate in Hz, layout and format of a frame, as PyAV names them.
_Form = tuple[int, str, str]


class MediaSource(ContainerSource):
    """The audio of a file or URL, in its own sample rate and channels.

    Yields audio, float32 (channels, samples) in [-1, 1], in frames as they were encoded, about 20
    to 100 ms; longer ones are split. The time base is 1 / sample rate. The first pts is the
    container's, then samples are counted: timestamps that are rounded or jitter make no gaps. A
    hole or a jump backward gives a discontinuous frame; see ContainerTime for what is one, and for
    how long a frame may wait for that. Lossy formats may overshoot [-1, 1] a little, as in any
    player; they are not clamped. Silence that an encoder put around the sound is left out where the
    container tells of it. Where the format changes in the middle (a playlist, a broadcast), it is
    converted to that of the beginning, and the first frame of it is flagged. Packets that cannot be
    decoded are skipped, counted in `lost`, and flagged.

    stream           Which one of the audio streams, from 0; by default the best one.
    channel          Which channel is taken, from 0, or which ones, such as 0,1; all if not given.
    scale            What samples are multiplied by, such as 1/32768 for integers that were written
                     as floats.
    open_timeout_s   How long a network address may take to open.
    read_timeout_s   How long it may send nothing before that is an error.
    reconnect        Whether an address that breaks off is opened again, also where it ends without
                     having said how long it is; by default what is live is opened again where it
                     fails, and cameras and broadcasts also where they end. The first frame after it
                     is flagged.
    reconnect_max_s  The longest pause between two attempts; they begin with 0.5 s and double.
    reconnect_for_s  How long attempts may fail before that is an error.
    live             Whether nobody waits for us, so that frames may be left out; by default rtsp,
                     rtmp, srt, udp and rtp are live, and over HTTP what says no length.
    rtsp_transport   Of rtsp: "tcp", "udp", "udp_multicast" or "http"; by default tcp, and another
                     where the server has no tcp.
    insecure         Takes any certificate, of https, rtmps and rtsps, also a stranger's.
    ca_file          The file of certificates that are trusted; by default those of the system.
    """

    def __init__(
        self,
        address: str,
        stream: str | int | None = None,
        channel: str | int | None = None,
        scale: str | float = 1.0,
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
        checked = Address.checked(
            address, open_timeout_s, read_timeout_s, reconnect, reconnect_max_s, reconnect_for_s,
            live, rtsp_transport, insecure, ca_file,
        )  # fmt: skip
        track = AudioTrack(self.stream, Intake(channel, scale), checked.shown)
        super().__init__(checked, [track], live=checked.live, in_own_thread=checked.remote)
        self._track = track

    def gather(self) -> None:
        """Before `open`: frames are of a second or more, as far as sound goes on unbroken."""
        self._track.gathers = True

    @property
    def channels(self) -> int:
        """How many the stream has, also where `channel` takes but some; 0 before `open`."""
        return self._track.channels


class AudioTrack(Track):
    """Frames of bounded length, in the rate and channels of the first, on one timeline.

    The time base is 1 / sample rate. Of a live stream, no frame waits long for those after it.

    channels  How many there are, of which the intake takes some.
    gathers   Frames are of a second or more, but where sound breaks off; set before `begin`.
    """

    kind: ClassVar[Literal["audio"]] = "audio"
    gathers: bool = False

    def __init__(self, index: int | None, intake: Intake | None = None, name: str = "") -> None:
        super().__init__(index)
        self.channels = 0
        self._intake, self._name = intake or Intake(), name

    def begin(self, stream: Any, first: Any) -> StreamInfo:
        self._rate, self._layout = first.sample_rate, first.layout
        self._time = ContainerTime(self._rate, self.live)
        self._waiting: deque[_Decoded] = deque()
        self._edges = Edges(stream, first, self._rate)
        self._last: tuple[_Decoded, int, bool] | None = None
        self._converter: Any = None
        self._form: _Form | None = None
        self._converts = False
        self._has_changed = False
        self._next = 0
        self._seq = 0
        self._flag = False
        self._arrived_ns = 0
        self._gathered: list[Samples] = []
        self._samples = 0  # gathered
        self.channels = self._layout.nb_channels
        return StreamInfo(
            kind="audio",
            time_base=Fraction(1, self._rate),
            rate=Fraction(self._rate),
            shape=(self._intake.channels(self.channels, self._name), None),
            dtype="float32",
        )

    def push(
        self,
        decoded: Any,
        position: Fraction | int | None,
        tick: Fraction | int,
        broken: bool,
        arrived_ns: int,
    ) -> Generator[Frame, None, None]:
        if position is not None:
            position = self._edges.position(position)
        samples: Fraction | int = decoded.samples
        if decoded.sample_rate != self._rate:
            samples = times(decoded.samples, Fraction(self._rate, decoded.sample_rate))
        # What MP4 calls a duration is the time until the next packet, also where one is missing.
        lasts = 0 if self._edges.is_told else times(decoded.duration or 0, tick)
        surplus = self._edges.behind(decoded, samples, tick)
        self._waiting.append(_Decoded(decoded, arrived_ns, surplus))
        yield from self._place(self._time.push(position, tick, samples, lasts, broken))

    def flush(self) -> Generator[Frame, None, None]:
        yield from self._place(self._time.flush())
        if self._last is not None:
            (heard, pts, flag), self._last = self._last, None
            yield from self._emit(heard, pts, flag, ends=True)
        yield from self._drain()
        yield from self._given()

    def _place(self, placed: list[tuple[int, bool]]) -> Generator[Frame, None, None]:
        for pts, flag in placed:
            heard = self._waiting.popleft()
            if not self._edges.is_told:
                yield from self._emit(heard, pts, flag)
                continue
            # Only the last one ends in padding.
            before, self._last = self._last, (heard, pts, flag)
            if before is not None:
                yield from self._emit(*before)

    def _emit(self, heard: _Decoded, pts: int, flag: bool, ends: bool = False) -> list[Frame]:
        """`heard` in the rate and channels of the beginning, as float32."""
        made: list[Frame] = []
        decoded = heard.audio
        form = (decoded.sample_rate, decoded.layout.name, decoded.format.name)
        changed = form != self._form
        if changed or flag:
            made += self._drain()
        if flag:
            made += self._given()
        if changed:
            if self._form is not None and form[:2] != self._form[:2]:
                made += self._given()
                flag = True
                self._tell_of_change(self._form, form)
            self._form, self._converts = form, self._needs_converter(decoded)
        if self._converter is None and self._converts:
            self._converter = av.AudioResampler("fltp", self._layout, self._rate)
        if not self._gathered:
            if flag or not self._seq:
                self._next = pts
            self._flag = flag
        self._arrived_ns = heard.arrived_ns
        if self._converter is None:
            parts = [to_float(decoded)]
        else:
            parts = [to_float(audio) for audio in self._converter.resample(decoded)]
        if ends and heard.surplus:
            parts += self._rest()
            data = np.concatenate(parts, axis=1)
            parts = [data[:, : max(0, data.shape[1] - heard.surplus)]]
        for data in parts:
            made += self._cut(data)
        return made

    def _tell_of_change(self, before: _Form, after: _Form) -> None:
        if not self._has_changed:
            self._has_changed = True
            self.remarks.append(
                f"its sound changes from {before[0]} Hz {before[1]} to {after[0]} Hz {after[1]} at "
                f"{self._next / self._rate:.2f} s: it is converted to what it was at the beginning"
            )

    def _needs_converter(self, decoded: Any) -> bool:
        same = decoded.sample_rate == self._rate and decoded.layout == self._layout
        return not same or decoded.format.packed.name not in NUMPY_FORMATS

    def _drain(self) -> list[Frame]:
        """What the converter holds back: of the sound before a change, a gap or the end."""
        return [frame for data in self._rest() for frame in self._cut(data)]

    def _rest(self) -> list[Samples]:
        converter, self._converter = self._converter, None
        return [] if converter is None else [to_float(audio) for audio in converter.resample(None)]

    def _cut(self, data: Samples) -> list[Frame]:
        """Frames that follow on from those before, none of them too long."""
        data = self._intake.take(data)
        samples = data.shape[1]
        if not samples:
            return []
        if self.gathers:
            return self._gather(data)
        if samples <= self._rate // LONGEST_PER_SECOND:
            return [self._frame(data)]
        pieces = -(-samples // max(1, self._rate // PIECES_PER_SECOND))
        return [self._frame(part) for part in np.array_split(data, pieces, axis=1)]

    def _frame(self, data: Samples) -> Frame:
        """The next one; its data in their order in memory, however they came."""
        duration = data.shape[1]
        frame = Frame(
            np.ascontiguousarray(data),
            self._next,
            duration,
            self._seq,
            self._flag,
            self._arrived_ns,
        )
        self._flag = False
        self._next += duration
        self._seq += 1
        return frame

    def _gather(self, data: Samples) -> list[Frame]:
        """Keeps `data` until there is a second of it."""
        self._gathered.append(data)
        self._samples += data.shape[1]
        return self._given() if self._samples >= self._rate else []

    def _given(self) -> list[Frame]:
        """What was gathered, as one frame."""
        if not self._gathered:
            return []
        parts, self._gathered, self._samples = self._gathered, [], 0
        return [self._frame(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))]


@dataclass(slots=True)
class _Decoded:
    """A frame of PyAV, and how many of our samples at its end are padding if it is the last."""

    audio: Any
    arrived_ns: int
    surplus: int


class Edges:
    """Where a container's sound begins and ends: which of its times count, what is padding.

    is_told  Whether it tells where the last frame ends, and FFmpeg cuts off the beginning only:
             MP4 does, by the duration of the last packet or by its edit list, and Vorbis in an Ogg
             of one page, by that page.
    """

    def __init__(self, stream: Any, first: Any, rate: int) -> None:
        names = stream.container.format.name.split(",")
        # AVI holds no times; of sound that is no PCM, FFmpeg's are off by any factor.
        self._counts = "avi" in names
        self._before: Fraction | int = 0
        if "mp3" in names and first.pts is not None and first.time_base is not None:
            # It begins at 0 with what an encoder put before the sound, and that is cut off.
            self._before = times(first.pts, first.time_base * rate)
        # Of Vorbis, FFmpeg takes the first block for sound where no second page says otherwise.
        is_vorbis = "ogg" in names and stream.codec_context.name == "vorbis"
        of_one_page = is_vorbis and stream.start_time == 0 and (first.pts or 0) > 0
        if of_one_page and first.time_base is not None:
            self._before = times(first.pts, first.time_base * rate)
        self.is_told = "mp4" in names or of_one_page
        self._started = False
        self._millisecond = Fraction(rate, 1000)
        self._end: Fraction | None = None
        if self.is_told and stream.duration:
            self._end = ((stream.start_time or 0) + stream.duration) * stream.time_base * rate

    def position(self, position: Fraction | int) -> Fraction | int | None:
        """What is known of the time of a frame that a container puts at `position`."""
        if self._counts and self._started:
            return None
        self._started = True
        return position - self._before

    def behind(self, decoded: Any, samples: Fraction | int, tick: Fraction | int) -> int:
        """How many of `samples` are padding if `decoded` is the last frame."""
        if not self.is_told:
            return 0
        whole = lasts = samples
        if 0 < (decoded.duration or 0) * tick < samples - tick:
            whole = lasts = decoded.duration * tick
        if self._end is not None and decoded.pts is not None:
            # An edit list may count in milliseconds, packets do in samples.
            until = self._end - decoded.pts * tick + self._before
            if 0 < until < lasts and (lasts == samples or until < lasts - self._millisecond):
                whole = until
        return int(samples - whole)


def to_float(audio: Any) -> Samples:
    """A frame of PyAV, of one of NUMPY_FORMATS -> float32 (channels, samples); integers land in
    [-1, 1)."""
    format, count = audio.format, audio.samples
    dtype = NUMPY_FORMATS[format.packed.name]
    # PyAV's own array takes three times as long to make.
    if format.is_planar:
        planes = [np.frombuffer(plane, dtype, count) for plane in audio.planes]
        samples: Samples = np.array(planes, np.float32)
    else:
        channels = audio.layout.nb_channels
        raw = np.frombuffer(audio.planes[0], dtype, channels * count)
        samples = np.array(raw.reshape(count, channels).T, np.float32, order="C")
    if dtype.kind == "f":
        return samples
    if dtype.kind == "u":
        samples -= 128
    samples *= np.float32(2.0 ** (1 - 8 * dtype.itemsize))
    return samples
