"""Demuxer: the wanted streams of one container as decoded frames, past whatever is damaged."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
from av.stream import Discard

from streamenc.errors import MediaError
from streamenc.io.media.integrity.damage import Damage
from streamenc.io.media.integrity.framesizes import FORMATS, is_cut
from streamenc.io.media.oggchain import OTHER_FORM, OggChain

log = logging.getLogger(__name__)

MAX_ERRORS_IN_A_ROW = 1000
# Of one stream, while the first frame of another is awaited.
MAX_HELD_PACKETS = 2000
MAX_HELD_BYTES = 256 * 2**20
# What encoders and containers round away, or leave out at the end.
SLACK_SECONDS = 0.25
# As Matroska's writers tag it: 00:01:02.500000000.
DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
# What FFmpeg says where an Ogg file goes on in another form, or with another codec.
OTHER_LINK = (av.error.PatchWelcomeError, av.error.ArgumentError)
# Until a device is asked again that had nothing yet, and does not wait by itself.
RETRY_SECONDS = 0.005


class Demuxer:
    """Reads a container once, and decodes each of `streams`; the others are not even fetched.

    Where an Ogg file goes on with a stream of another form, `streams` are of that from then on.

    What cannot be decoded is skipped, and so are images that are not whole, see Damage. Sound that
    the decoder calls damaged is kept. Each such packet, image or sound is reported by a call of
    `lose`.

    halt    Ends it, also while a device has nothing yet.
    fatal   What an error means where reading itself fails: the exception that is raised, or None,
            the end. Without it, reading goes on, as what follows in a damaged file can be whole.

    broken  Per stream: something before its next frame is missing. Its reader clears it.
    heads   By number of a stream of images, its first packet.
    unread  Why what follows the end cannot be read, in words; "" where nothing follows.
    decode  By number of a stream, what decodes its packets in place of its own decoder.
    max_pixels  That decoders refuse to go beyond, where they are told to; else 0.
    """

    def __init__(
        self,
        name: str,
        container: Any,
        streams: Sequence[Any],
        lose: Callable[[], None],
        halt: threading.Event,
        fatal: Callable[[av.error.FFmpegError], Exception | None] | None,
        decode: Mapping[int, Callable[[Any], Sequence[Any]]] | None = None,
        max_pixels: int = 0,
    ) -> None:
        self.streams = list(streams)
        self.broken = [False] * len(self.streams)
        self._reaches: list[_Reach | None] = [None] * len(self.streams)
        self.unread = ""
        self._name = name
        self.container = container
        self._lose = lose
        self._halt = halt
        self._fatal = fatal
        self._decoders = decode or {}
        self._max_pixels = max_pixels
        self._came = [0] * len(self.streams)  # bytes, until its first frame
        self._numbers = {stream.index: number for number, stream in enumerate(self.streams)}
        self._chain: OggChain | None = None
        self._newest: Any = None  # packet
        self._packets = self._read()
        self._first: dict[int, list[Any]] = {}
        self.heads: dict[int, Any] = {}
        self._held: deque[tuple[int, Any]] = deque()
        self._errors = 0
        self._reason = ""
        self._damage = {
            number: Damage(stream)
            for number, stream in enumerate(self.streams)
            if stream.type == "video"
        }
        self._holes: list[set[int]] = [set() for _ in self.streams]  # pts of images that are lost
        self._suspects: dict[int, Any] = {}  # per stream of images, a packet that may be damaged
        for stream in container.streams:
            if stream.index not in self._numbers:
                stream.discard = Discard.all

    def first_frames(self) -> list[Any]:
        """The first frame of each stream; `frames` gives them again.

        Raises MediaError where there is none.
        """
        held_bytes = 0
        for number, packet in self._packets:
            if number in self._damage and packet.size:
                self.heads.setdefault(number, packet)
            if number in self._first:
                self._held.append((number, packet))
                held_bytes += packet.size
            elif frames := self._decode(number, packet):
                self._first[number] = frames
            else:
                self._came[number] += packet.size
            if len(self._first) == len(self.streams):
                break
            if len(self._held) > MAX_HELD_PACKETS or held_bytes > MAX_HELD_BYTES:
                break
        for number, stream in enumerate(self.streams):
            if number not in self._first:
                empty = not self._came[number] and not self._held
                raise MediaError(
                    f"{self._name!r} opens as media, but no {stream.type} in it can be decoded"
                    + (": it has a header, and holds no samples" if empty else "")
                    + (": it is damaged or cut short" if self._reason else "")
                    + (_limits(stream) or self._largest(stream))
                )
        return [self._first[number][0] for number in range(len(self.streams))]

    def _largest(self, stream: Any) -> str:
        if stream.type != "video" or not self._max_pixels:
            return ""
        return f", or its images have more than the {self._max_pixels} pixels that are taken"

    def frames(self) -> Iterator[tuple[int, Any]]:
        """(number of the stream, frame), to the end. Raises MediaError where that cannot be."""
        for number, decoded in self._first.items():
            yield from self._flagged(number, decoded)
        self._first = {}
        while self._held:
            number, packet = self._held.popleft()
            yield from self._flagged(number, self._decode(number, packet))
        for number, packet in self._packets:
            yield from self._flagged(number, self._decode(number, packet))

    def _flagged(self, number: int, frames: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Marks a hole where it is shown: images are decoded in another order."""
        if number not in self._damage:  # holes are of images
            for frame in frames:
                yield number, frame
            return
        for frame in frames:
            before = [pts for pts in self._holes[number] if frame.pts is None or pts < frame.pts]
            if before:
                self.broken[number] = True
                self._holes[number] -= {*before}
            yield number, frame

    def missing_seconds(self) -> tuple[float, float] | None:
        """(How far a stream that has ended reached, how long its header says it is), where that is
        less; None where it is not, and where no header says so.
        """
        for number, stream in enumerate(self.streams):
            promised, end = _promised_seconds(self.container, stream), self.ends(number)
            if promised is not None and end is not None:
                # Some count from the stream's own beginning, others from 0.
                reached = max(end[1], end[1] - end[0])
                exact = self.container.format.name == "flac"
                if promised - reached > (0 if exact else SLACK_SECONDS):
                    return float(reached), float(promised)
        return None

    def close(self) -> None:
        """Closes the container; may be called twice."""
        container, self.container = self.container, None
        if container is not None:
            container.close()

    def _read(self) -> Iterator[tuple[int, Any]]:
        while True:
            try:
                for packet in self.container.demux(self.streams):
                    number = self._numbers[packet.stream.index]
                    self._newest = packet
                    self._measure(number, packet)
                    yield number, packet
                return
            except av.error.BlockingIOError:
                if self._halt.wait(RETRY_SECONDS):
                    return
            except av.error.FFmpegError as error:
                if isinstance(error, OTHER_LINK) and (link := self._next_link()) is not None:
                    yield from self._held_back()
                    self._follow(*link)
                    continue
                if isinstance(error, av.error.PatchWelcomeError) and self._is_chain_elsewhere():
                    yield from self._held_back()
                    if self._fatal is not None:
                        raise MediaError(f"{self._name!r} {OTHER_FORM}") from error
                    self.unread = OTHER_FORM
                    return
                if self._fatal is None:
                    self._skip(error, range(len(self.streams)))
                elif (failure := self._fatal(error)) is not None:
                    raise failure from error
                else:
                    yield from self._held_back()
                    return

    def _measure(self, number: int, packet: Any) -> None:
        if packet.pts is None or not packet.size or packet.is_corrupt:
            return
        base, start = packet.time_base, packet.pts
        end = start + (packet.duration or 0)
        reach = self._reaches[number]
        if reach is None or reach.base != base:
            self._reaches[number] = reach = _Reach(base, start, end, self.ends(number))
        # In whole ticks: a fraction for each packet takes as long as decoding it.
        reach.first, reach.last = min(reach.first, start), max(reach.last, end)

    def ends(self, number: int) -> tuple[Fraction, Fraction] | None:
        """From where to where the packets of a stream reach, in seconds of the container's clock;
        None before the first."""
        reach = self._reaches[number]
        return None if reach is None else reach.seconds()

    def _held_back(self) -> Iterator[tuple[int, Any]]:
        """Packets that make decoders give what they still hold."""
        for number, stream in enumerate(self.streams):
            end = av.Packet()
            end.stream = stream
            yield number, end

    def _is_chain_elsewhere(self) -> bool:
        """Whether it is an Ogg that is no file, in which links could be looked for."""
        return self._chain is None and self.container.format.name == "ogg"

    def _next_link(self) -> tuple[Any, list[Any]] | None:
        """The next link of a chained Ogg and its streams; None where there is none to be read."""
        self._chain = self._chain or OggChain.of(self.container)
        if self._chain is None:
            return None
        position = 0 if self._newest is None else self._newest.pos
        try:
            link = self._chain.open_next(position or 0)
        except av.error.FFmpegError:
            return None
        if link is None:
            return None
        streams = []
        for stream in self.streams:
            kind = [s.index for s in self.container.streams if s.type == stream.type]
            offered = [s for s in link.streams if s.type == stream.type]
            streams += offered[kind.index(stream.index) :][:1]
        if len(streams) < len(self.streams):
            link.close()
            return None
        return link, streams

    def _follow(self, link: Any, streams: list[Any]) -> None:
        self.close()
        self.container, self.streams, self._newest = link, streams, None
        self._numbers = {stream.index: number for number, stream in enumerate(streams)}

    def _decode(self, number: int, packet: Any) -> list[Any]:
        if number not in self._damage:
            format = self.container.format.name
            if packet.size and format in FORMATS and is_cut(format, bytes(packet)):
                self._note_loss("incomplete sound", [number])
                return []
            return self._decoded(number, packet)
        before = self._suspects.pop(number, None)
        frames = [] if before is None else self._decoded(number, before, packet)
        if packet.size and packet.is_corrupt:
            self._suspects[number] = packet  # what it is, the next one tells
            return frames
        return frames + self._decoded(number, packet)

    def _decoded(self, number: int, packet: Any, follower: Any = None) -> list[Any]:
        damage = self._damage.get(number)
        if damage is not None:
            damage.feed(packet, follower)
        try:
            own = self._decoders.get(number)
            decoded = packet.decode() if own is None else own(packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            if damage is not None:
                damage.fail()
            self._skip(error, [number], packet.pts)
            return []
        if decoded:
            self._errors = 0
        if damage is None:
            for frame in decoded:
                if frame.is_corrupt:
                    self._note_loss("incomplete sound", [number])
                    break
            return list(decoded)
        whole = []
        for frame in decoded:
            if damage.is_whole(frame):
                whole.append(frame)
            elif not damage.has_failed(frame):  # or else it was counted already
                self._note_loss("incomplete image", [number], frame.pts)
        return whole

    def _skip(
        self, error: av.error.FFmpegError, numbers: Sequence[int], pts: int | None = None
    ) -> None:
        self._note_loss(error.strerror, numbers, pts)
        if self._errors >= MAX_ERRORS_IN_A_ROW:
            raise MediaError(
                f"{self._name!r} is damaged: {self._errors} packets in a row cannot be decoded "
                f"({error.strerror})"
            ) from error
        self._errors += 1

    def _note_loss(
        self, reason: str | None, numbers: Sequence[int], pts: int | None = None
    ) -> None:
        if not self._reason:
            self._reason = reason or "it is damaged"
            kinds = " and ".join(self.streams[number].type for number in numbers)
            log.warning("%s: skipping damaged %s (%s)", self._name, kinds, reason)
        self._lose()
        for number in numbers:
            if pts is None or number not in self._damage:
                self.broken[number] = True
            else:
                self._holes[number].add(pts)


@dataclass(slots=True)
class _Reach:
    """From where to where packets reach, in ticks of `base`, and those with another base before."""

    base: Fraction
    first: int
    last: int
    before: tuple[Fraction, Fraction] | None

    def seconds(self) -> tuple[Fraction, Fraction]:
        first, last = self.first * self.base, self.last * self.base
        if self.before is None:
            return first, last
        return min(first, self.before[0]), max(last, self.before[1])


def _limits(stream: Any) -> str:
    """What FFmpeg cannot decode of a format, although it opens it."""
    if stream.type != "video" or stream.codec_context.name != "tiff":
        return ""
    return (
        "; FFmpeg decodes no TIFF that is tiled or JPEG-compressed: if this is one, save it as PNG"
    )


def _promised_seconds(container: Any, stream: Any) -> Fraction | None:
    """How long the header says that a stream is. None where it does not, and where FFmpeg guesses
    from the size of what is there.
    """
    format = container.format.name
    for name, said in stream.metadata.items():
        if name.startswith("DURATION") and (match := DURATION.fullmatch(said)):
            hours, minutes, seconds = match.groups()
            return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    if format.startswith(("flac", "mov")) and stream.duration is not None:
        return Fraction(stream.duration * stream.time_base)
    alone = sum(s.type in ("audio", "video") for s in container.streams) == 1
    if format.startswith(("matroska", "flv")) and alone and container.duration is not None:
        return Fraction(container.duration, 1_000_000)
    return None
