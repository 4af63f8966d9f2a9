"""Any file or URL that PyAV (FFmpeg) opens, as audio."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import Any, ClassVar, Literal

import av
import numpy as np

from streamenc import options
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiotime import ContainerTime
from streamenc.io.media.container import Address
from streamenc.io.media.containersource import ContainerSource, Track

# What PyAV hands to numpy; anything else goes through its converter.
NUMPY_FORMATS = {"u8", "s16", "s32", "flt", "dbl"}
# A frame of more than 1/10 s is split into pieces of at most 1/20 s.
LONGEST_PER_SECOND = 10
PIECES_PER_SECOND = 20


class MediaSource(ContainerSource):
    """The audio of a file or URL, in its own sample rate and channels.

    Yields audio, float32 (channels, samples) in [-1, 1], in frames as they were encoded, about 20
    to 100 ms; longer ones are split. The time base is 1 / sample rate. The first pts is the
    container's, then samples are counted: rounded timestamps make no gaps. A hole or a jump
    backward in the container's timestamps gives a discontinuous frame with the container's pts.
    Lossy formats may overshoot [-1, 1] a little, as in any player; they are not clamped.
    Where the format changes in the middle (a playlist, a broadcast), it is converted to that of the
    beginning. Packets that cannot be decoded are skipped, counted in `lost`, and flagged.

    stream           Which one of the audio streams, from 0; by default the best one.
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
        track = AudioTrack(self.stream)
        super().__init__(checked, [track], live=checked.live, in_own_thread=checked.remote)


class AudioTrack(Track):
    """Frames of bounded length, in the rate and channels of the first, on one timeline.

    The time base is 1 / sample rate.
    """

    kind: ClassVar[Literal["audio"]] = "audio"

    def begin(self, stream: Any, first: Any) -> StreamInfo:
        self._rate, self._layout = first.sample_rate, first.layout
        self._timeline = ContainerTime(self._rate)
        self._converter: Any = None
        self._form: tuple[int, str, str] | None = None
        self._seq = 0
        self._broken = False
        return StreamInfo(
            kind="audio",
            time_base=Fraction(1, self._rate),
            rate=Fraction(self._rate),
            shape=(self._layout.nb_channels, None),
            dtype="float32",
        )

    def push(
        self,
        decoded: Any,
        position: Fraction | None,
        tick: Fraction,
        broken: bool,
        arrived_ns: int,
    ) -> Generator[Frame, None, None]:
        longest, piece = self._rate // LONGEST_PER_SECOND, self._rate // PIECES_PER_SECOND
        self._broken = self._broken or broken
        for audio in self._convert(decoded):
            data = to_float(audio)
            samples = data.shape[1]
            pts, flag = self._timeline.place(position, tick, samples, self._broken)
            self._broken = False
            pieces = -(-samples // piece) if samples > longest else 1
            for part in np.array_split(data, pieces, axis=1):
                duration = part.shape[1]
                data = np.ascontiguousarray(part)
                yield Frame(data, pts, duration, self._seq, flag, arrived_ns)
                pts, flag = pts + duration, False
                self._seq += 1

    def _convert(self, decoded: Any) -> list[Any]:
        """`decoded` in the rate and channels of the beginning, and in a type that numpy knows."""
        form = (decoded.sample_rate, decoded.layout.name, decoded.format.name)
        if form != self._form:
            self._broken = self._broken or self._form is not None
            self._form = form
            same = decoded.sample_rate == self._rate and decoded.layout == self._layout
            self._converter = None
            if not same or decoded.format.packed.name not in NUMPY_FORMATS:
                self._converter = av.AudioResampler("fltp", self._layout, self._rate)
        return [decoded] if self._converter is None else list(self._converter.resample(decoded))


def to_float(audio: Any) -> np.ndarray[Any, Any]:
    """A frame of PyAV -> float32 (channels, samples); integers land in [-1, 1)."""
    raw = audio.to_ndarray()
    if not audio.format.is_planar:
        raw = raw.reshape(-1, audio.layout.nb_channels).T
    if raw.dtype.kind == "f":
        return np.ascontiguousarray(raw, np.float32)
    bits = 8 * raw.dtype.itemsize
    centred = raw.astype(np.float32) - (128 if raw.dtype.kind == "u" else 0)
    return np.ascontiguousarray(centred) * np.float32(2.0 ** (1 - bits))
