"""Any file or URL that PyAV (FFmpeg) opens, as audio."""

from __future__ import annotations

import difflib
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from streamenc.errors import MediaError
from streamenc.frames import Frame, StreamInfo
from streamenc.io import options
from streamenc.io.containertime import ContainerTime
from streamenc.node import BlockingSource

log = logging.getLogger(__name__)

LIVE_SCHEMES = {"rtsp", "rtmp", "rtmps", "srt", "udp", "rtp"}
# What PyAV hands to numpy; anything else goes through its converter.
NUMPY_FORMATS = {"u8", "s16", "s32", "flt", "dbl"}
# A frame of more than 1/10 s is split into pieces of at most 1/20 s.
LONGEST_PER_SECOND = 10
PIECES_PER_SECOND = 20
MAX_ERRORS_IN_A_ROW = 1000
QUEUED_FRAMES = 16


class MediaSource(BlockingSource):
    """The audio of a file or URL, in its own sample rate and channels.

    Yields audio, float32 (channels, samples) in [-1, 1], in frames as they were encoded, about 20
    to 100 ms; longer ones are split. The time base is 1 / sample rate. The first pts is the
    container's, then samples are counted: rounded timestamps make no gaps. A hole or a jump
    backward in the container's timestamps gives a discontinuous frame with the container's pts.
    Lossy formats may overshoot [-1, 1] a little, as in any player; they are not clamped.
    Where the format changes in the middle (a playlist, a broadcast), it is converted to that of the
    beginning. Packets that cannot be decoded are skipped, counted in `lost`, and flagged.

    stream          Which one of the audio streams, from 0.
    open_timeout_s  How long a network address may take to open.
    read_timeout_s  How long it may send nothing before that is an error.

    duration_seconds  What the container says of its length, for a progress bar; None if unknown.
    """

    def __init__(
        self,
        address: str,
        stream: str | int = 0,
        open_timeout_s: str | float = 10,
        read_timeout_s: str | float = 10,
    ) -> None:
        self.address = address
        self.stream = options.integer("stream", stream, 0, 1000)
        self.open_timeout_seconds = options.number("open_timeout_s", open_timeout_s, 0.1, 3600)
        self.read_timeout_seconds = options.number("read_timeout_s", read_timeout_s, 0.1, 3600)
        scheme, separator, _ = address.partition("://")
        self._remote = bool(separator) and scheme.lower() != "file"
        self.live = bool(separator) and scheme.lower() in LIVE_SCHEMES
        self.lost = 0
        self.duration_seconds: float | None = None
        self._container: Any = None
        self._pump: _Pump | None = None
        self._frames: Generator[Frame, None, None] | None = None
        self._converter: Any = None
        self._form: tuple[int, str, str] | None = None
        self._broken = False

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where there is nothing to open, or no audio in it."""
        if not self._remote:
            _check_file(self.address)
        try:
            self._container = av.open(
                # With its scheme, a name such as "concat:a.wav" is a name.
                self.address if self._remote else f"file:{_local_path(self.address)}",
                timeout=(self.open_timeout_seconds, self.read_timeout_seconds),
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(self._why(error)) from error
        streams = self._container.streams.audio
        if self.stream >= len(streams):
            held = ", ".join(s.type for s in self._container.streams) or "nothing"
            raise MediaError(
                f"{self.address!r} has no audio stream {self.stream}; "
                f"it holds {len(streams)} audio streams ({held})"
            )
        self._stream = streams[self.stream]
        if self._stream.codec_context is None:
            raise MediaError(f"{self.address!r}: this build of PyAV has no decoder for its audio")
        if self._container.duration is not None:
            self.duration_seconds = self._container.duration / 1_000_000
        decoded = self._decode()
        first = next(decoded, None)
        if first is None:
            raise MediaError(f"{self.address!r} opens as media, but no audio in it can be decoded")
        self._rate, self._layout = first.sample_rate, first.layout
        self._frames = self._cut(first, decoded)
        if self._remote:
            self._pump = _Pump(self._frames, self._close_container)
        return StreamInfo(
            kind="audio",
            time_base=Fraction(1, self._rate),
            rate=Fraction(self._rate),
            shape=(self._layout.nb_channels, None),
            dtype="float32",
        )

    def read(self) -> Frame | None:
        if self._pump is None:
            return None if self._frames is None else next(self._frames, None)
        while not self._stopped:
            try:
                return self._pump.get(timeout_seconds=0.2)
            except queue.Empty:
                continue
        return None

    def close_blocking(self) -> None:
        if self._pump is not None:
            self._pump.close()
            return
        if self._frames is not None:
            self._frames.close()
        self._close_container()

    def _close_container(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _decode(self) -> Iterator[Any]:
        """PyAV's frames, past whatever cannot be read or decoded."""
        errors = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    try:
                        frames = packet.decode()
                    except av.error.EOFError:
                        return
                    except av.error.FFmpegError as error:
                        errors = self._skip(error, errors)
                        continue
                    if frames:
                        errors = 0
                    yield from frames
                return
            except av.error.FFmpegError as error:
                if self._remote:
                    raise MediaError(self._why(error)) from error
                errors = self._skip(error, errors)

    def _skip(self, error: av.error.FFmpegError, errors: int) -> int:
        if not self.lost:
            log.warning("%s: skipping damaged audio (%s)", self.address, error.strerror)
        self.lost += 1
        self._broken = True
        if errors >= MAX_ERRORS_IN_A_ROW:
            raise MediaError(
                f"{self.address!r} is damaged: {errors} packets in a row cannot be decoded "
                f"({error.strerror})"
            ) from error
        return errors + 1

    def _cut(self, first: Any, rest: Iterator[Any]) -> Generator[Frame, None, None]:
        """Frames of bounded length, in one format, on one timeline."""
        timeline = ContainerTime(self._rate)
        longest, piece = self._rate // LONGEST_PER_SECOND, self._rate // PIECES_PER_SECOND
        seq = 0
        for decoded in itertools.chain((first,), rest):
            arrived_ns = self.clock.now_ns()
            tick = Fraction(decoded.time_base or self._stream.time_base) * self._rate
            position = None if decoded.pts is None else decoded.pts * tick
            for audio in self._convert(decoded):
                data = to_float(audio)
                samples = data.shape[1]
                pts, broken = timeline.place(position, tick, samples, self._broken)
                self._broken = False
                pieces = -(-samples // piece) if samples > longest else 1
                for part in np.array_split(data, pieces, axis=1):
                    duration = part.shape[1]
                    data = np.ascontiguousarray(part)
                    yield Frame(data, pts, duration, seq, broken, arrived_ns)
                    pts, seq, broken = pts + duration, seq + 1, False

    def _convert(self, decoded: Any) -> list[Any]:
        """`decoded` in the rate and channels of the beginning, and in a type that numpy knows."""
        form = (decoded.sample_rate, decoded.layout.name, decoded.format.name)
        if form != self._form:
            self._broken = self._form is not None
            self._form = form
            same = decoded.sample_rate == self._rate and decoded.layout == self._layout
            self._converter = None
            if not same or decoded.format.packed.name not in NUMPY_FORMATS:
                self._converter = av.AudioResampler("fltp", self._layout, self._rate)
        return [decoded] if self._converter is None else list(self._converter.resample(decoded))

    def _why(self, error: OSError | av.error.FFmpegError) -> str:
        if isinstance(error, (av.error.ExitError, av.error.TimeoutError)):
            seconds = max(self.open_timeout_seconds, self.read_timeout_seconds)
            return (
                f"{self.address!r} sent nothing for up to {seconds:g} s; check the address and the "
                "network, or raise open_timeout_s or read_timeout_s"
            )
        reason = error.strerror or str(error)
        if not self._remote:
            reason = _sniff(_local_path(self.address)) or reason
        return f"cannot read {self.address!r}: {reason}"


class _Pump:
    """Reads frames in a thread of its own, because a network read cannot be interrupted.

    The thread ends, and closes the container, as soon as it can after `close`: at the latest when
    the container's read timeout has passed.
    """

    def __init__(self, frames: Generator[Frame, None, None], close: Callable[[], None]) -> None:
        self._frames = frames
        self._close = close
        self._queue: queue.Queue[Frame | Exception | None] = queue.Queue(QUEUED_FRAMES)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streamenc-media", daemon=True)
        self._thread.start()

    def get(self, timeout_seconds: float) -> Frame | None:
        """The next frame, None at the end. Raises queue.Empty, or what the thread met."""
        item = self._queue.get(timeout=timeout_seconds)
        if not isinstance(item, Frame):
            self._queue.put_nowait(None)  # whoever asks again learns that it is over
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join(0.5)

    def _run(self) -> None:
        try:
            for frame in self._frames:
                self._put(frame)
                if self._closed.is_set():
                    break
            self._put(None)
        except Exception as error:  # raised again by `get`, in the reader's thread
            self._put(error)
        finally:
            self._frames.close()
            self._close()

    def _put(self, item: Frame | Exception | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


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


def _local_path(address: str) -> Path:
    return Path(address.removeprefix("file://").removeprefix("file:"))


def _check_file(address: str) -> None:
    """Says what is wrong with a path in plainer words than FFmpeg does."""
    path = _local_path(address)
    if path.is_dir():
        raise MediaError(f"{address!r} is a folder; name a file in it")
    if not path.exists():
        names = []
        if path.parent.is_dir():
            names = [entry.name for entry in itertools.islice(path.parent.iterdir(), 1000)]
        close = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
        raise MediaError(f"there is no file {address!r}{hint}")
    if path.is_file() and not path.stat().st_size:
        raise MediaError(f"{address!r} is empty (0 bytes)")


def _sniff(path: Path) -> str:
    """What a file that FFmpeg refused seems to be; "" where that cannot be told."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    if head[4:8] == b"ftyp":
        return (
            "the MP4 is damaged or has no index (moov); if its recording was cut short, record "
            "into .mkv, .wav or .flac, which stay readable"
        )
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "it holds text, not audio"
    return ""
