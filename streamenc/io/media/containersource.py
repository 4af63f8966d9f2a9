"""What sources of audio, of video and of both have in common: tracks of one container."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Literal

import av.error

from streamenc.errors import MediaError, TransportError
from streamenc.graph.frames import Frame, StreamInfo, stream_fault
from streamenc.graph.node import BlockingSource
from streamenc.io.media.audiotime import MAX_POSITION, times
from streamenc.io.media.container import Address, Nature, local_path, pick_streams
from streamenc.io.media.demux import Demuxer
from streamenc.io.media.incoming.beginning import keep_whole
from streamenc.io.media.incoming.pipe import Pipe
from streamenc.io.media.incoming.wavehead import WaveHead, wave_decoder
from streamenc.io.media.integrity.extent import shortfall
from streamenc.io.media.pictures.album import MAX_PIXELS, check_size
from streamenc.io.media.pump import Item, Pump

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
POLL_SECONDS = 0.2
# FFmpeg's formats in which it finds a sample by its number.
EXACT = {"flac", "wav", "w64"}
# By a larger jump back, a sender betrays that it started anew where no connection tells it.
MAX_BACK_SECONDS = 0.25
NS = 1_000_000_000
# What times of arrival are counted in.
ARRIVAL_TICK = Fraction(1, 1_000_000)


class Track(ABC):
    """Makes frames of ours from those that PyAV decodes, of one stream, on one timeline.

    kind      What PyAV calls such streams.
    index     Which one of its kind, from 0; None for the best one.
    head      Of images, the first packet; set before `begin`.
    live      Nobody waits for us; set before `begin`, as is `timeless`.
    timeless  The stream has no times: what `push` gets as such is when it arrived, in ticks of
              ARRIVAL_TICK from the first frame on.
    info      What comes out; set by `begin`.
    remarks   As of a node; the source's own, which its tracks share.
    """

    kind: ClassVar[Literal["audio", "video"]]
    head: Any = None
    live: bool = False
    timeless: bool = False
    info: StreamInfo
    remarks: list[str]

    def __init__(self, index: int | None) -> None:
        self.index = index
        self.remarks = []

    @abstractmethod
    def begin(self, stream: Any, first: Any) -> StreamInfo:
        """Learns from the first frame of `stream` what will come; `push` gets it again."""

    @abstractmethod
    def push(
        self,
        decoded: Any,
        position: Fraction | int | None,
        tick: Fraction | int,
        broken: bool,
        arrived_ns: int,
    ) -> Iterable[Frame]:
        """Frames, on the time base of `info`.

        position  Where the container puts it, in ticks of `info`; None where it does not say.
        tick      The container's time base, in the same ticks.
        broken    Something before it is known to be missing.
        """

    def flush(self) -> Iterable[Frame]:
        """What is left where the stream ends or breaks off."""
        return ()


class ContainerSource(BlockingSource):
    """Frames of the tracks that are wanted from one container, which is read and decoded once.

    Files are read in this node's thread. A network address has one of its own, in which it is also
    opened again where its connection breaks: after pauses that grow, with some chance in them, so
    that a server that restarts does not meet all its clients at once. The first frame after that is
    flagged, and presented as much later than the last one as it came later on the graph's clock. A
    camera or a broadcast that ends has broken off, too, unless it said how long it is; so has one
    over UDP whose times jump back.

    Whether it is live is decided in one place, Address.nature, by what it is: a stream of images
    over HTTP is, and so is what says neither its size nor its length. Where a stream has no times,
    as that of a camera over HTTP, the time at which an image arrives is its time. There the newest
    images count: where the graph is late, the others are counted in `lost`, and the next one is
    flagged.

    address           What is opened, without its passwords and tokens.
    live              None before `open` where only opening tells.
    lost              Packets that could not be decoded, images that are not whole or that nobody
                      had time for, so far.
    reconnects        How often a connection was made again, so far.
    duration_seconds  What the container says of its length, for a progress bar; None if unknown.
    broken            How a file or address that ended is known to be cut short.
    exact             Whether its times are the numbers of its samples, in a file that can begin
                      anywhere: PCM in WAV or W64, and FLAC. False before `open`.

    Raises MediaError from `open` where an address cannot be opened or has no such stream, from
    `frames` where it breaks off, and TransportError where it cannot be reached again.
    """

    # Of decoded frames, between the thread that reads and the graph.
    queued_frames: ClassVar[int] = 16
    keep_newest: ClassVar[bool] = False

    def __init__(
        self, address: Address, tracks: Sequence[Track], *, live: bool | None, in_own_thread: bool
    ) -> None:
        self.address = address.shown
        self.live = live
        self.replayed = not live and address.is_file
        self.lost = 0
        self.reconnects = 0
        self._undecodable = 0
        self._damage = ""  # the remark that counts them
        self._nature = Nature(live=bool(live))
        self._address = address
        self._in_own_thread = in_own_thread
        self._tracks = list(tracks)
        self.remarks: list[str] = []
        for track in self._tracks:
            track.remarks = self.remarks
        self._ends: list[int | None] = [None] * len(self._tracks)  # of what was delivered, pts
        # The newest frame: its pts, the time base of that, and when it arrived.
        self._newest_pts, self._newest_base, self._newest_ns = 0, Fraction(1), 0
        # Of each track, the container's time base, and that in ticks of ours.
        self._ticks: list[tuple[Fraction, Fraction | int] | None] = [None] * len(self._tracks)
        self._origin_ns: int | None = None  # when the first frame arrived
        self._shift_seconds = Fraction(0)  # from the container's clock to ours
        self._rejoining = False
        # Tracks need not begin together: after a break, one can reach back to before it.
        self._overlaps = [False] * len(self._tracks)
        self._halt = threading.Event()
        self._demuxer: Demuxer | None = None
        self._items: Generator[Item, None, None] | None = None
        self._pump: Pump | None = None
        self._pipe: Pipe | None = None
        self._wave_head: WaveHead | None = None
        self.exact = False
        self._begin_seconds = Fraction(0)

    async def open(self) -> StreamInfo:
        if not self._in_own_thread and not self._address.is_pipe:
            return await super().open()
        return await self.open_abandonable(self._halt)

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where there is nothing to open, or not what is wanted in it."""
        self._items = self._play()
        if self._in_own_thread:
            self._pump = Pump(self._items, self._halt, self.queued_frames, self._keeps_newest)
        info = self._next()
        if not isinstance(info, StreamInfo):
            raise MediaError(f"{self.address!r} was closed while it was being opened")
        return info

    def read(self) -> Frame | None:
        try:
            item = self._next()
        finally:
            self.lost = self._undecodable + (0 if self._pump is None else self._pump.lost)
        assert not isinstance(item, StreamInfo)
        return item

    def _keeps_newest(self, number: int) -> bool:
        """Whether the oldest frames of a track give way to newer ones, where the graph is late."""
        return self.keep_newest or self._nature.timeless

    def stop(self) -> None:
        super().stop()
        self._halt.set()

    def close_blocking(self) -> None:
        self._halt.set()
        if self._pump is not None:
            self._pump.close()
        elif self._items is not None:
            self._items.close()

    def _next(self) -> Item | None:
        if self._pump is None:
            return None if self._items is None else next(self._items, None)
        since = time.monotonic()
        while not self._halt.is_set():
            try:
                return self._pump.get(POLL_SECONDS)
            except queue.Empty:
                self._check_silence(time.monotonic() - since)
        return None

    def _check_silence(self, seconds: float) -> None:
        """Called while nothing comes; may raise."""
        return None

    def _play(self) -> Generator[Item, None, None]:
        """What will come, and then it."""
        try:
            demuxer: Demuxer | None = self._connect()
            yield self._describe()
            while demuxer is not None:
                failure: MediaError | None = None
                try:
                    yield from self._frames(demuxer)
                except MediaError as error:
                    failure = error
                for number, track in enumerate(self._tracks):
                    yield from self._deliver(number, track.flush())
                if self._halt.is_set():
                    return
                if self._connects_again(failure):
                    demuxer = self._reconnect(failure)
                elif failure is not None:
                    raise failure
                else:
                    self.broken = self._shortfall(demuxer)
                    return
        finally:
            self._disconnect()

    def _connects_again(self, failure: MediaError | None) -> bool:
        if failure is None and self.duration_seconds:
            return False  # what said how long it would be has ended
        if self._address.reconnect is not None:
            return self._address.reconnect
        return self._nature.live if failure is not None else self._nature.endless

    def _shortfall(self, demuxer: Demuxer) -> str:
        """How what has ended is known to be less than the whole, in words."""
        if demuxer.unread:
            return f"{self.address} {demuxer.unread}"
        seconds = demuxer.missing_seconds()
        if seconds is not None:
            ended, promised = seconds
            return (
                f"{self.address} ends after {ended:.1f} s of the {promised:.1f} s that its header "
                "promises: it was cut short"
            )
        head = self._wave_head
        if self._address.remote and head is not None and head.data_at and head.data_bytes:
            size, promised_bytes = demuxer.container.size, head.data_at + head.data_bytes
            if 0 <= size < promised_bytes:
                return (
                    f"{self.address} holds {size:,} of the {promised_bytes:,} bytes that its "
                    "header promises: it was cut short"
                )
        reason = shortfall(local_path(self._address.name)) if self._address.is_file else ""
        return f"{self.address} {reason}" if reason else ""

    def _describe(self) -> StreamInfo:
        (track,) = self._tracks
        return track.info

    def take(self, pipe: Pipe, halt: threading.Event) -> None:
        """Before `open`: reads this pipe, at which somebody looked, and ends with its event."""
        self._pipe, self._halt = pipe, halt

    def distrust(self, max_pixels: int) -> None:
        """Before `open`: the file is a stranger's. Only containers of media are read, nothing is
        opened that it names, images are at most so large, and of FLAC the checksums are looked at:
        frames of it with a wrong one are left out, as what cannot be decoded is."""
        assert not self._address.remote
        self._address = replace(self._address, max_pixels=max_pixels)

    def begin_at(self, seconds: Fraction) -> None:
        """Before `open`: what lies before a time is left out, but for less than a frame, where the
        file is `exact`; the pts of the first frame say where it began."""
        self._begin_seconds = seconds

    def _open_container(self) -> Any:
        if self._pipe is None and self._address.is_pipe:
            self._pipe = Pipe(self.address, self._halt)
        if not self._address.remote:
            self._wave_head = self._address.beginning(self._pipe).wave_head()
        container = self._address.open(self._pipe)
        if self._address.remote:
            self._wave_head = self._address.remote_wave_head(container)
        return container

    def _failure(self, error: OSError | av.error.FFmpegError) -> Exception | None:
        """What an error means that ends reading; None for an end like others."""
        if self._address.is_end(error, self._demuxer and self._demuxer.container):
            return None
        return self._address.failure(error)

    def _connect(self) -> Demuxer:
        container = self._open_container()
        decode = {}
        try:
            wanted = [(track.kind, track.index) for track in self._tracks]
            streams = pick_streams(container, wanted, self.address)
            for number, stream in enumerate(streams):
                if stream.type == "audio":
                    keep_whole(stream)
                    if self._address.max_pixels and stream.codec_context.name == "flac":
                        stream.codec_context.options = {"err_detect": "crccheck+explode"}
                else:
                    most = self._address.max_pixels or MAX_PIXELS
                    check_size(stream.width, stream.height, most)
                    stream.codec_context.options = {"max_pixels": str(most)}
                wave = wave_decoder(self._wave_head, stream, self.address, self.remarks)
                if wave is not None:
                    decode[number] = wave.decode
            self.exact = _is_exact(streams) and not decode
            if self._begin_seconds and self.exact:
                _seek(container, streams[0], self._begin_seconds)
        except BaseException:  # closed, and passed on
            container.close()
            raise
        self._demuxer = Demuxer(
            self.address,
            container,
            streams,
            self._lose,
            self._halt,
            self._failure if self._in_own_thread else None,
            decode,
            self._address.max_pixels or MAX_PIXELS,
        )
        first = self._demuxer.first_frames()
        if not self.reconnects and not self._rejoining:
            self._learn(container)
            for number, (track, stream, frame) in enumerate(
                zip(self._tracks, streams, first, strict=True)
            ):
                track.head = self._demuxer.heads.get(number)
                track.live, track.timeless = bool(self.live), self._nature.timeless
                track.info = track.begin(stream, frame)
                if fault := stream_fault(track.info):
                    raise MediaError(f"cannot read {self.address!r}: {fault}")
        return self._demuxer

    def _learn(self, container: Any) -> None:
        """What the source is, now that it is open."""
        if container.duration is not None:
            self.duration_seconds = container.duration / 1_000_000
        if self._wave_head is not None and self._wave_head.codec and self._wave_head.seconds:
            self.duration_seconds = self._wave_head.seconds
        if not self._address.remote:  # a file, or a device of a subclass
            return
        self._nature = self._address.nature(container)
        if self.live is None and self._nature.live:
            self.remarks.append(
                f"{self.address} says no length and was taken for live: where the graph is late, "
                "frames are left out; the option live=no, in Python or in a pipeline file, reads "
                "all"
            )
        self.live = self._nature.live

    def _disconnect(self) -> None:
        demuxer, self._demuxer = self._demuxer, None
        if demuxer is not None:
            demuxer.close()
        if self._pipe is not None:
            self._pipe.close()

    def _reconnect(self, failure: MediaError | None) -> Demuxer | None:
        """The container, opened again; None where the source was stopped meanwhile."""
        began = time.monotonic()
        pause_seconds = FIRST_PAUSE_SECONDS
        log.warning("%s; connecting again", failure or f"{self.address!r} ended")
        self._rejoining = True
        while True:
            self._disconnect()
            if self._halt.wait(pause_seconds * random.uniform(0.5, 1)):
                return None
            try:
                demuxer = self._connect()
            except MediaError as error:
                silent_seconds = time.monotonic() - began
                if silent_seconds >= self._address.reconnect_for_seconds:
                    raise TransportError(
                        f"{self.address!r} broke off and could not be opened again for "
                        f"{silent_seconds:.1f} s ({error}); check the sender, or raise "
                        "reconnect_for_s"
                    ) from error
            else:
                self.reconnects += 1
                log.warning("%s: connected again", self.address)
                return demuxer
            pause_seconds = min(2 * pause_seconds, self._address.reconnect_max_seconds)

    def _frames(self, demuxer: Demuxer) -> Generator[Frame, None, None]:
        if self._rejoining:
            demuxer.broken = [True] * len(self._tracks)
            self._overlaps = [True] * len(self._tracks)
        jump_is_break = self._address.connectionless and self._address.reconnect is not False
        for number, decoded in demuxer.frames():
            if self._halt.is_set():
                return
            arrived_ns = self.clock.now_ns()
            track = self._tracks[number]
            tick = self._tick(number, decoded.time_base or demuxer.streams[number].time_base)
            pts: int | None = decoded.pts
            position = None if pts is None else times(pts, tick)
            if track.timeless:
                position, tick = self._arrival(arrived_ns), 1
            if position is not None and not -MAX_POSITION <= position <= MAX_POSITION:
                position = None
            if position is not None and not track.timeless:
                position = self._rejoined(position, track.info.time_base, arrived_ns)
                end = self._ends[number] or position
                if end > position and self._overlaps[number]:
                    self._lose()
                    continue
                if end > position and jump_is_break:
                    behind = (end - position) * track.info.time_base
                    if behind > MAX_BACK_SECONDS:
                        raise MediaError(f"{self.address!r} jumped back by {float(behind):.2f} s")
            self._overlaps[number] = False
            broken, demuxer.broken[number] = demuxer.broken[number], False
            yield from self._deliver(
                number, track.push(decoded, position, tick, broken, arrived_ns)
            )

    def _tick(self, number: int, time_base: Fraction) -> Fraction | int:
        """A tick of the container, in those of a track; whole where it can be."""
        known = self._ticks[number]
        if known is None or known[0] != time_base:
            tick = times(1, time_base / self._tracks[number].info.time_base)
            self._ticks[number] = known = time_base, tick
        return known[1]

    def _arrival(self, arrived_ns: int) -> Fraction | int:
        """Since the first frame, in ticks of ARRIVAL_TICK."""
        self._rejoining = False
        if self._origin_ns is None:
            self._origin_ns = arrived_ns
        return (arrived_ns - self._origin_ns) * ARRIVAL_TICK.denominator // NS

    def _rejoined(
        self, position: Fraction | int, time_base: Fraction, arrived_ns: int
    ) -> Fraction | int:
        """`position` on a clock that goes on where a connection was made again."""
        if self._rejoining:
            waited_seconds = Fraction(arrived_ns - self._newest_ns, NS)
            resumed_seconds = self._newest_pts * self._newest_base + waited_seconds
            self._shift_seconds = resumed_seconds - position * time_base
            self._rejoining = False
        return position + self._shift_seconds / time_base if self._shift_seconds else position

    def _deliver(self, number: int, frames: Iterable[Frame]) -> Generator[Frame, None, None]:
        time_base = self._tracks[number].info.time_base
        for frame in frames:
            self._ends[number] = frame.pts + frame.duration
            self._newest_pts, self._newest_base = frame.pts, time_base
            self._newest_ns = frame.arrived_ns
            yield frame.with_(track=number) if number else frame

    def _lose(self) -> None:
        self._undecodable += 1
        were = "piece was" if self._undecodable == 1 else "pieces were"
        sentence = f"{self._undecodable} {were} left out: damaged, or built on what is"
        if self._damage in self.remarks:
            self.remarks[self.remarks.index(self._damage)] = sentence
        else:
            self.remarks.append(sentence)
        self._damage = sentence


def _is_exact(streams: Sequence[Any]) -> bool:
    """Whether it is sound in packets that stand alone, each with a time that is exact."""
    if len(streams) != 1 or streams[0].container.format.name not in EXACT:
        return False
    codec = streams[0].codec_context.name
    return bool(codec == "flac" or codec.startswith("pcm_"))


def _seek(container: Any, stream: Any, seconds: Fraction) -> None:
    """To a frame that holds a time, or to one before it: some places near the end of a FLAC FFmpeg
    does not find."""
    for earlier in (0, 2, 10, seconds):
        try:
            container.seek(max(0, int((seconds - earlier) / stream.time_base)), stream=stream)
            return
        except av.error.FFmpegError:
            continue
