"""Both ends of a packet stream, whatever carries the packets: numbering, gaps, clocks, restarts."""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
import time
from dataclasses import dataclass, field

from streamenc.addresses import plain_reason
from streamenc.errors import MediaError, WireError
from streamenc.graph.clock import Clock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.wire import (
    Bye,
    Credit,
    Data,
    End,
    Info,
    StreamSnapshot,
    decode,
    encode_end,
    encode_frame,
    encode_info,
    fitted,
)

logger = logging.getLogger(__name__)

WARN_EVERY_S = 10.0
# A frame further ahead is believed when the next one confirms it: one packet with an absurd number
# would have a reader wait for the numbers after it. A frame further behind than any queue reaches
# is no repetition, and is believed in the same way.
MAX_SKIP, MAX_REPEAT = 2**12, 2**20
# A publisher from which nothing came for so long may be followed by another one at its address.
SILENT_S = 3.0
MAX_STREAMS = 16
# Clocks of two machines drift apart: the shortest way is one of the last 5 to 10 minutes.
SHORTEST_OF_S = 300.0


class Complaints:
    """Warnings that somebody else can provoke: one every 10 s at most, with the number so far."""

    def __init__(self) -> None:
        self.count = 0
        self._next = 0.0

    def warn(self, message: str) -> None:
        self.count += 1
        now = time.monotonic()
        if now >= self._next:
            self._next = now + WARN_EVERY_S
            logger.warning("%s (%d so far)", message, self.count)


class Transit:
    """How long packets were on their way, between two clocks of which nothing is known.

    The shortest way of the last minutes counts as none: a packet that took longer than that waited
    somewhere. What all of them wait is not seen.
    """

    def __init__(self) -> None:
        self._shortest_ns = [math.inf, math.inf]
        self._turn_ns = 0

    def left_ns(self, sent_ms: int | None, now_ns: int) -> int:
        """When the packet that is here now would have been here by the shortest way."""
        if sent_ms is None:
            return now_ns
        if now_ns >= self._turn_ns:
            self._turn_ns = now_ns + round(1e9 * SHORTEST_OF_S)
            self._shortest_ns = [self._shortest_ns[1], math.inf]
        sent_ns = 1_000_000 * sent_ms
        self._shortest_ns[1] = min(self._shortest_ns[1], now_ns - sent_ns)
        return sent_ns + int(min(self._shortest_ns))


class PacketWriter:
    """Frames to packets of one stream. Raises FitError where `info` cannot be sent.

    stream  The id of this stream.
    info    The packet that describes it, to be repeated for those who join late.
    """

    def __init__(self, info: StreamInfo, clock: Clock) -> None:
        self.stream = secrets.randbits(63) | 1  # never 0
        self.info = encode_info(info, self.stream, time.time_ns())
        self._opened_ns = time.monotonic_ns()
        self._info = info
        self._clock = clock
        self._frames = 0
        self._next_seqs = [0] * max(1, len(info.tracks))
        self._gaps: set[int] = set()

    def packet(self, frame: Frame) -> bytes:
        """The packet of the stream's next frame: to be followed by `sent` or `dropped`."""
        return self._packet(frame, frame.discontinuity or frame.track in self._gaps, 0)

    def after_gap(self, frame: Frame, waited_ns: int) -> bytes:
        """The packet of a frame that has waited, now that the one before it is lost."""
        return self._packet(frame, True, waited_ns)

    def _packet(self, frame: Frame, flagged: bool, waited_ns: int) -> bytes:
        arrived = frame.arrived_ns and frame.arrived_ns + time.time_ns() - self._clock.now_ns()
        sent_ms = (time.monotonic_ns() - waited_ns - self._opened_ns) // 1_000_000
        return encode_frame(
            frame, self._info, self.stream, max(0, arrived), flagged, max(0, sent_ms)
        )

    def sent(self, frame: Frame) -> None:
        self._count(frame)
        self._gaps.discard(frame.track)

    def dropped(self, frame: Frame) -> None:
        """The frame will never go out: the next one of its track gets flagged."""
        self._count(frame)
        self._gaps.add(frame.track)

    def lost(self, track: int) -> None:
        """A frame that was counted as sent is lost: the next one of its track gets flagged."""
        self._gaps.add(track)

    def end(self, broken: str = "") -> bytes:
        """The end packet. `broken` says why the stream ended before its end."""
        return encode_end(End(self.stream, self._frames, tuple(self._next_seqs), broken))

    def _count(self, frame: Frame) -> None:
        self._frames += 1
        self._next_seqs[frame.track] = frame.seq + 1


@dataclass(slots=True)
class _Reading:
    """How far one stream was read.

    flagged  Tracks whose next frame follows on from something else.
    joined   It was running when we came: what it sent before is no loss.
    doubted  By track, the number after the last one that was not believed.
    """

    stream: int
    info: StreamInfo
    joined: bool
    received: int = 0
    next_seqs: dict[int, int] = field(default_factory=dict)
    doubted: dict[int, int] = field(default_factory=dict)
    flagged: set[int] = field(default_factory=set)
    transit: Transit = field(default_factory=Transit)

    def __post_init__(self) -> None:
        if not self.joined:
            self.flag()

    def flag(self) -> None:
        self.flagged = set(range(max(1, len(self.info.tracks))))


class PacketReader:
    """Packets of one stream to frames.

    lost       Frames that are missing between those that came, and up to the end.
    missed     Frames that had been sent before the first one that came.
    strangers  Frames of other publishers at the same address, which were left out.
    malformed  Packets that were skipped, as they made no sense.
    ended      The publisher ended the stream.
    left_ns    When the last frame would have been here by the shortest way, in `time.monotonic_ns`.
    """

    def __init__(self, clock: Clock) -> None:
        self.lost = self.missed = self.strangers = self.left_ns = 0
        self.ended = False
        self._broken = self._gone = ""
        self._clock = clock
        self._now: _Reading | None = None
        self._known: dict[int, _Reading] = {}
        self._heard_s = 0.0
        self._malformed, self._foreign = Complaints(), Complaints()

    @property
    def info(self) -> StreamInfo | None:
        """What the stream is; None until its first info packet came."""
        return self._now.info if self._now else None

    @property
    def stream(self) -> int:
        """The id of the stream that is being read; 0 until then."""
        return self._now.stream if self._now else 0

    @property
    def received(self) -> int:
        """Data packets of this stream so far."""
        return self._now.received if self._now else 0

    @property
    def malformed(self) -> int:
        return self._malformed.count

    @property
    def broken(self) -> str:
        """Why what came is not the whole stream, in words; "" where it is, as far as is known."""
        return self._broken or self._gone

    def gone(self, why: str) -> None:
        """The publisher seems to be gone, until something comes from it again."""
        if self._now and not self.ended:
            self._gone = why

    def feed(self, packet: bytes) -> Frame | None:
        """The frame in `packet`, if it has one that is news.

        Raises MediaError where a restarted publisher sends another kind of stream.
        """
        try:
            got = decode(packet)
            if isinstance(got, Data):
                return self._data(got)
            if isinstance(got, Credit | Bye | StreamSnapshot):
                raise WireError(f"got {type(got).__name__}, which publishers do not send")
        except WireError as error:
            self._malformed.warn(f"skipped a packet: {error}")
            return None
        if isinstance(got, Info):
            self._agree(got)
        elif self._now and got.stream == self._now.stream:
            self._end(got, self._now)
        return None

    def _agree(self, got: Info) -> None:
        known = self._known.get(got.stream)
        if known is not None:
            self._reading(known)
        elif self._now is None:
            logger.info("reading a stream: %s", got.info)
            self._turn_to(_Reading(got.stream, got.info, joined=True))
        elif got.info == self._now.info:
            logger.warning("the publisher started a new stream; it goes on after a discontinuity")
            self._broken = "the publisher vanished without an end, and started a new stream"
            self._turn_to(_Reading(got.stream, got.info, joined=False))
        else:
            changes = _changes(self._now.info, got.info)
            raise MediaError(
                f"the publisher was restarted with another stream: {changes}; restart this end "
                "too, or give a second publisher an address of its own"
            )

    def _turn_to(self, reading: _Reading) -> None:
        self._now = self._known[reading.stream] = reading
        self._heard_s, self._gone = time.monotonic(), ""
        if len(self._known) > MAX_STREAMS:
            del self._known[next(stream for stream in self._known if stream != reading.stream)]

    def _reading(self, known: _Reading) -> bool:
        """Whether packets of `known` are read now, of which one is here.

        One that was left for another and lives is read again: two publish here, and the first stays
        until nothing comes from it.
        """
        now_s = time.monotonic()
        if known is not self._now:
            assert self._now is not None
            streams = list(self._known)
            first = streams.index(known.stream) < streams.index(self._now.stream)
            if not first and now_s < self._heard_s + SILENT_S:
                return False
            known.flag()
            self._turn_to(known)
            self._foreign.warn(
                "two publishers at one address; give each an address of its own: reading stream "
                f"{known.stream:x}"
            )
        self._heard_s, self._gone = now_s, ""
        return True

    def _data(self, got: Data) -> Frame | None:
        known = self._known.get(got.stream)
        if known is None:
            return None  # its info comes later, and its seq tells what is missing then
        if not self._reading(known):
            self.strangers += 1
            return None
        known.received += 1
        data = fitted(got, known.info)
        missing = self._missing(got, known)
        if missing is None:
            return None
        self.lost += missing
        flagged = got.discontinuity or missing > 0 or got.track in known.flagged
        known.next_seqs[got.track] = got.seq + 1
        known.flagged.discard(got.track)
        self.left_ns = known.transit.left_ns(got.sent_ms, time.monotonic_ns())
        now_ns = self._clock.now_ns()
        age_ns = max(0, time.time_ns() - got.arrived_unix_ns) if got.arrived_unix_ns else 0
        return Frame(
            data=data,
            pts=got.pts,
            duration=got.duration,
            seq=got.seq,
            discontinuity=flagged,
            arrived_ns=now_ns - age_ns,
            scale=got.scale,
            track=got.track,
            segment=got.segment,
            revised=got.revised,
        )

    def _missing(self, got: Data, known: _Reading) -> int | None:
        """How many frames are missing before this one; None where it is not to be delivered.

        Raises WireError where its number is not to be believed yet.
        """
        due = known.next_seqs.get(got.track)
        if due is None:
            if not known.joined:
                return got.seq if got.seq <= MAX_SKIP else 0
            self.missed += got.seq
            return 0
        skipped = got.seq - due
        if -MAX_REPEAT <= skipped < 0:
            return None  # a broker may deliver a packet twice
        if -MAX_REPEAT <= skipped <= MAX_SKIP:
            known.doubted.pop(got.track, None)
            return skipped
        doubted = known.doubted.get(got.track)
        if doubted is None or not 0 <= got.seq - doubted <= MAX_SKIP:
            known.doubted[got.track] = got.seq + 1
            raise WireError(f"got seq {got.seq} where {due} was due, and nothing confirms that yet")
        del known.doubted[got.track]
        known.flagged.add(got.track)
        self.missed = min(self.missed, got.seq)  # what the first number said was as absurd
        return max(1, skipped)

    def _end(self, got: End, now: _Reading) -> None:
        for track, seq in enumerate(got.next_seqs):
            # Where we joined late, a track of which nothing came may have no gap.
            due = now.next_seqs.get(track, seq if self.missed else 0)
            self.lost += max(0, seq - due)
        if got.broken:
            self._broken = f"the publisher's stream broke off: {plain_reason(got.broken)}"
        self._gone = ""
        self.ended = True


def _changes(old: StreamInfo, new: StreamInfo) -> str:
    names = (field.name for field in dataclasses.fields(StreamInfo))
    return ", ".join(
        f"{name} was {getattr(old, name)}, is {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    )
