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
from streamenc.io.network.numbering import Numbering
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
# A publisher from which nothing came for so long may be followed by another one at its address.
SILENT_S = 3.0
# One of another kind of stream ends the reading: so not before the first has been silent for long.
CHANGED_S = 10.0
# Where several may publish, an end is believed when nothing goes on for as long as two frames last.
END_S = (0.3, 2.0)
MAX_STREAMS = 16
# Clocks of two machines drift apart: the shortest way is one of the last 5 to 10 minutes.
SHORTEST_OF_S = 300.0
# A way shorter than all others by more than this is a false time, unless the next confirms it.
FALSE_NS = 1_000_000_000


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
        self._doubted_ns = math.inf

    def left_ns(self, sent_ms: int | None, now_ns: int) -> int:
        """When the packet that is here now would have been here by the shortest way."""
        if sent_ms is None:
            return now_ns
        if now_ns >= self._turn_ns:
            self._turn_ns = now_ns + round(1e9 * SHORTEST_OF_S)
            self._shortest_ns = [self._shortest_ns[1], math.inf]
        way_ns = now_ns - 1_000_000 * sent_ms
        shortest_ns = min(self._shortest_ns)
        if way_ns < shortest_ns - FALSE_NS and math.isfinite(shortest_ns):
            confirmed = abs(way_ns - self._doubted_ns) <= FALSE_NS
            self._doubted_ns = way_ns
            if not confirmed:
                return now_ns
        self._shortest_ns[1] = min(self._shortest_ns[1], way_ns)
        return 1_000_000 * sent_ms + int(min(self._shortest_ns))


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

    @property
    def through(self) -> int:
        """Frames of the stream so far, all tracks together, as their numbers have it."""
        return sum(self._next_seqs)

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
    """

    stream: int
    info: StreamInfo
    joined: bool
    received: int = 0
    numbers: dict[int, Numbering] = field(default_factory=dict)
    flagged: set[int] = field(default_factory=set)
    transit: Transit = field(default_factory=Transit)

    def __post_init__(self) -> None:
        if not self.joined:
            self.flag()

    def flag(self) -> None:
        self.flagged = set(range(max(1, len(self.info.tracks))))

    def numbering(self, track: int) -> Numbering:
        return self.numbers.setdefault(track, Numbering(self.joined))


class PacketReader:
    """Packets of one stream to frames.

    shared     Whether strangers may publish at the same address: the first publisher is read until
               nothing comes from it, and an end is believed when nothing comes after it.
    lost       Frames that are missing between those that came, and up to the end.
    missed     Frames that had been sent before the first one that came.
    strangers  Frames of other publishers at the same address, which were left out.
    rivals     Other publishers that were met while the first one lived.
    malformed  Packets that were skipped, as they made no sense, and numbers that turned out false.
    ended      The publisher ended the stream.
    left_ns    When the last frame would have been here by the shortest way, in `time.monotonic_ns`.
    """

    def __init__(self, clock: Clock, shared: bool = False) -> None:
        self.lost = self.missed = self.strangers = self.rivals = self.left_ns = 0
        self.ended = False
        self._shared = shared
        self._broken = self._gone = ""
        self._clock = clock
        self._now: _Reading | None = None
        self._known: dict[int, _Reading] = {}
        self._heard_s = self._frame_s = 0.0
        self._ending: End | None = None
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
    def through(self) -> int:
        """Frames of this stream, all tracks together, that came, or were missing before those."""
        numbers = self._now.numbers.values() if self._now else ()
        return sum(numbering.due or 0 for numbering in numbers)

    @property
    def malformed(self) -> int:
        return self._malformed.count

    @property
    def broken(self) -> str:
        """Why what came is not the whole stream, in words; "" where it is, as far as is known."""
        return self._broken or self._gone

    @property
    def ends_in_s(self) -> float | None:
        """An end came, which `settle` makes true where nothing else comes for so long."""
        if self._ending is None or self._now is None:
            return None
        if not self._is_right(self._ending, self._now):
            return END_S[1]
        return min(max(2 * self._frame_s, END_S[0]), END_S[1])

    def settle(self) -> None:
        """Believes the end that came."""
        if self._ending is not None and self._now is not None:
            self._end(self._ending, self._now)

    def gone(self, why: str) -> None:
        """The publisher seems to be gone, until something comes from it again."""
        if self._now and not self.ended and self._ending is None:
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
            if isinstance(got, Info):
                self._agree(got)
            elif self._now and got.stream == self._now.stream:
                if self._shared:
                    self._ending = got
                else:
                    self._end(got, self._now)
        except WireError as error:
            self._malformed.warn(f"skipped a packet: {error}")
        return None

    def _agree(self, got: Info) -> None:
        known = self._known.get(got.stream)
        if known is not None:
            if known.info != got.info:
                raise WireError(f"got {got.info} for a stream that is {known.info}")
            if known is self._now:
                self._lives()
            elif self._may_follow(known):
                self._follow(known)
        elif self._now is None:
            logger.info("reading a stream: %s", got.info)
            self._turn_to(_Reading(got.stream, got.info, joined=True))
        else:
            found = _Reading(got.stream, got.info, joined=False)
            if self._may_follow(found):
                self._follow(found)
            else:
                self._remember(found)
                self.rivals += 1
                self._warn_of_two()

    def _may_follow(self, other: _Reading) -> bool:
        """Whether the stream that is read now may be left for `other`, of which something came."""
        assert self._now is not None
        if not self._shared and other.stream not in self._known:
            return True
        silent_s = time.monotonic() - self._heard_s
        if other.info == self._now.info:
            return bool(self._gone) or silent_s >= SILENT_S
        return silent_s >= (SILENT_S if self._gone else CHANGED_S)

    def _follow(self, other: _Reading) -> None:
        """Reads `other` from now on. Raises MediaError where it is another kind of stream."""
        assert self._now is not None
        if other.info != self._now.info:
            changes = _changes(self._now.info, other.info)
            raise MediaError(
                f"the publisher was restarted with another stream: {changes}; restart this end "
                "too, or give a second publisher an address of its own"
            )
        logger.warning("the publisher started a new stream; it goes on after a discontinuity")
        self._broken = "the publisher vanished without an end, and started a new stream"
        other.flag()
        self._turn_to(other)

    def _turn_to(self, reading: _Reading) -> None:
        self._now = reading
        self._lives()
        self._remember(reading)

    def _remember(self, reading: _Reading) -> None:
        self._known[reading.stream] = reading
        if len(self._known) > MAX_STREAMS:  # the early ones stay: a stranger has any number of them
            spare = [s for s in self._known if s not in (reading.stream, self.stream)]
            del self._known[spare[-1]]

    def _lives(self) -> None:
        self._heard_s, self._gone, self._ending = time.monotonic(), "", None

    def _warn_of_two(self) -> None:
        self._foreign.warn(
            "two publishers at one address; give each an address of its own: reading stream "
            f"{self.stream:x}"
        )

    def _is_read(self, known: _Reading, got: Data) -> bool:
        """Whether data of `known` are read now, of which some are here.

        One that was left for another and goes on is read again: two publish here, and the first
        stays until nothing comes from it.
        """
        assert self._now is not None
        if known is self._now:
            return True
        streams = list(self._known)
        numbering = known.numbering(got.track)
        if streams.index(known.stream) < streams.index(self._now.stream):
            if numbering.due is not None and not numbering.fits(got.seq):
                return False
            known.flag()
            self._turn_to(known)
            self._broken = ""
            self.rivals += 1
            self._warn_of_two()
            return True
        if self._may_follow(known):
            self._follow(known)
            return True
        return False

    def _data(self, got: Data) -> Frame | None:
        known = self._known.get(got.stream)
        if known is None:
            return None  # its info comes later, and its seq tells what is missing then
        if not self._is_read(known, got):
            self.strangers += 1
            return None
        known.received += 1
        data = fitted(got, known.info)
        step = known.numbering(got.track).take(got.seq, got.resent)
        if step is None:
            return None
        self._lives()
        self.lost += step.lost
        self.missed += step.missed
        if step.belied:
            self._malformed.warn(f"a packet had a false number: seq {got.seq} goes on before it")
        flagged = got.discontinuity or not step.follows or got.track in known.flagged
        known.flagged.discard(got.track)
        self.left_ns = known.transit.left_ns(got.sent_ms, time.monotonic_ns())
        self._frame_s = float(got.duration * known.info.track(got.track).time_base)
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

    def _is_right(self, got: End, now: _Reading) -> bool:
        """Whether an end comes just after what was read."""
        dues = [
            now.numbers[track].due if track in now.numbers else None
            for track in range(len(got.next_seqs))
        ]
        return all(due is None or due == seq for due, seq in zip(dues, got.next_seqs, strict=True))

    def _end(self, got: End, now: _Reading) -> None:
        for track, seq in enumerate(got.next_seqs):
            # Where we joined late, a track of which nothing came may have no gap.
            numbering = now.numbers.get(track)
            due = numbering.due if numbering else None
            self.lost += max(0, seq - (due if due is not None else seq if self.missed else 0))
        if got.broken:
            self._broken = f"the publisher's stream broke off: {plain_reason(got.broken)}"
        self._gone, self._ending = "", None
        self.ended = True


def _changes(old: StreamInfo, new: StreamInfo) -> str:
    names = (field.name for field in dataclasses.fields(StreamInfo))
    return ", ".join(
        f"{name} was {getattr(old, name)}, is {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    )
