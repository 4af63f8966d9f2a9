"""SoundPackets: sound as RTP brings it, decoded in order and without waiting longer than need be.

aiortc's own buffer holds four packets back, and after one that was lost up to fifteen, for good:
80 to 300 ms. Here a packet goes on at once where it is the next one; where one is missing, it is
waited for until three later ones are here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import av
import numpy as np

RATE, CHANNELS = 48_000, 2  # as Opus is decoded, whatever was sent
# Later packets that are held while an earlier one is missing.
HELD = 3
# By so many numbers a packet may come late, or be ahead; beyond that the sender began anew.
MAX_MISORDER, MAX_AHEAD = 100, 3000
MAX_PACKET_SAMPLES = 5760  # 120 ms


class SoundPackets:
    """Takes the place of an aiortc receiver's jitter buffer, by its method `add`.

    Args:
        deliver: Called with `pts` in samples from the first one on, int16 (2, samples), and whether
            something is missing before them.

    Attributes:
        lost, late: Packets that never came, and that came when they were given up.
    """

    def __init__(self, deliver: Callable[[int, np.ndarray[Any, Any], bool], None]) -> None:
        self._deliver = deliver
        self._held: dict[int, tuple[int, bytes]] = {}
        self._next: int | None = None  # sequence number, counted beyond 16 bits
        self._last_timestamp = self._ticks = 0
        self._end: int | None = None  # where what was delivered ends
        self._first = True
        self.lost = self.late = 0
        self._decoder = _opus()

    def add(self, packet: Any) -> tuple[bool, None]:
        """An RTP packet of Opus. Nothing is left to the receiver to decode."""
        number = packet.sequence_number
        if self._next is not None:
            ahead = (number - self._next + 2**15) % 2**16 - 2**15
            if -MAX_MISORDER <= ahead < 0:
                self.late += 1
                return False, None
            if ahead < 0 or ahead > MAX_AHEAD:
                self._held.clear()
                self._next = None
            else:
                number = self._next + ahead
        if self._next is None:
            self._next = number
        self._held[number] = packet.timestamp, bytes(packet._data)
        while self._held:
            if self._next not in self._held:
                if len(self._held) <= HELD:
                    break
                first = min(self._held)
                self.lost += first - self._next
                self._next = first
            self._decode(*self._held.pop(self._next))
            self._next += 1
        return False, None

    def _decode(self, timestamp: int, payload: bytes) -> None:
        if self._first:
            self._last_timestamp, self._first = timestamp, False
        self._ticks += (timestamp - self._last_timestamp + 2**31) % 2**32 - 2**31
        self._last_timestamp = timestamp
        if not payload:
            return
        try:
            frames = self._decoder.decode(av.Packet(payload))
        except av.FFmpegError:
            self.lost += 1
            return
        for frame in frames:
            samples = frame.to_ndarray().reshape(-1, CHANNELS).T
            pts, count = self._ticks, samples.shape[1]
            if count > MAX_PACKET_SAMPLES or (self._end is not None and pts < self._end):
                continue  # what was there before is not taken twice
            missing = self._end is not None and pts > self._end
            self._end = pts + count
            self._deliver(pts, np.ascontiguousarray(samples), missing)


def _opus() -> Any:
    decoder = av.CodecContext.create("libopus", "r")
    decoder.format, decoder.layout, decoder.sample_rate = "s16", "stereo", RATE
    return decoder
