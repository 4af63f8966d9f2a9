"""OpusInput: one Opus packet a message -> sound for a model."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from msgspec import Struct

from streamenc.errors import InputError, UsageError
from streamenc.io.media.audiosource import to_float
from streamenc.io.network.wire import Data
from streamenc.serve.inputs.inputbase import (
    Array,
    Chunk,
    Input,
    check_packet,
    damaged,
    packed,
    unpacked,
)
from streamenc.serve.inputs.replay import TOO_LONG, Kept
from streamenc.serve.inputs.soundinput import Sound, SoundState

RATE = 48_000
# RFC 6716: what a packet holds at most; and of a frame how long it is, by its mode.
MAX_SAMPLES = 5760
SILK, HYBRID, CELT = (480, 960, 1920, 2880), (480, 960), (120, 240, 480, 960)
MAX_PACKET_BYTES = 48 * 1277
# By which times of packets may be off: 2.5 ms, and half of a packet.
SLACK = 120
# From which a decoder finds its way: two seconds, mostly.
LAST_PACKETS = 100


class OpusState(Struct, array_like=True, frozen=True):
    """Of an OpusInput: `packets` since the decoder was new, or if not `whole`, the last ones."""

    packets: list[bytes]
    whole: bool
    sound: SoundState


class OpusInput(Input):
    """Format opus: the samples that are decoded, all of them.

    A packet whose pts is off by more than half of its length follows a gap: the model's stream
    ends, and a new one starts. The decoder runs on, as in any call; a flag makes it new.

    Args:
        channels: That are decoded to: 1 or 2.
        to, width: The model's rate and channels.

    Raises:
        UsageError: Where the model cannot take such sound.
    """

    format = "opus"

    def __init__(self, channels: int, to: Fraction, width: int) -> None:
        if channels > 2:
            raise UsageError(f"got channels {channels}; a packet of Opus has 1 or 2")
        self._sound = Sound(RATE, channels, to, width)
        self.rate, self.channels = float(RATE), channels
        self.time_base = self._sound.time_base
        self.delay_seconds = self._sound.delay_seconds
        self._kept = Kept(LAST_PACKETS)
        self._decoder = self._new_decoder()

    @property
    def next_pts(self) -> int:  # type: ignore[override]
        return self._sound.next_pts

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self._sound.exact and self._kept.whole

    @property
    def why(self) -> str:  # type: ignore[override]
        return self._sound.why if self._kept.whole else TOO_LONG

    def check(self, data: Data) -> None:
        check_packet(data, "uint8 (1, bytes) of an Opus packet", ("uint8",), 2)
        if data.data.shape[0] != 1 or data.data.size > MAX_PACKET_BYTES:
            raise InputError(f"got uint8 {data.data.shape}; wanted (1, bytes) of an Opus packet")
        packet_samples(data.data[0, :2].tobytes())

    def push(self, data: Data) -> list[Chunk]:
        self.check(data)
        payload = data.data.tobytes()
        if data.discontinuity:
            self._start()
        self._kept.add(payload)
        samples = self._decoded(payload)
        expected, pts = self._sound.next_pts, data.pts
        if not pts and not data.duration:
            pts = expected
        off = abs(pts - expected)
        gap = self._sound.begun and off > max(SLACK, samples.shape[1] // 2)
        return self._sound.push(samples, pts, data.discontinuity or gap, data.arrived_unix_ns)

    def flush(self) -> list[Chunk]:
        self._start()
        return self._sound.flush()

    def state(self) -> bytes | None:
        return packed(OpusState(self._kept.pieces, self._kept.whole, self._sound.state()))

    def restore(self, blob: bytes) -> None:
        state = unpacked(blob, OpusState)
        if any(not 0 < len(packet) <= MAX_PACKET_BYTES for packet in state.packets):
            raise damaged("packets that are none of Opus")
        self._sound.restore(state.sound)
        self._start()
        self._kept.restore(state.packets, state.whole)
        for packet in state.packets:
            try:
                self._decoded(packet)
            except InputError:
                continue  # as it was before

    def _start(self) -> None:
        self._decoder = self._new_decoder()
        self._kept.clear()

    def _new_decoder(self) -> Any:
        decoder: Any = av.CodecContext.create("libopus", "r")
        decoder.sample_rate = RATE
        decoder.layout = "mono" if self.channels == 1 else "stereo"
        return decoder

    def _decoded(self, payload: bytes) -> Array:
        """(channels, samples). Raises InputError."""
        try:
            frames = self._decoder.decode(av.Packet(payload))
        except av.error.FFmpegError as error:
            raise InputError(
                f"got {len(payload)} bytes that are no packet of Opus: {error.strerror}"
            ) from None
        parts = [to_float(frame) for frame in frames]
        return np.concatenate([np.zeros((self.channels, 0), np.float32), *parts], axis=1)


def packet_samples(head: bytes) -> int:
    """At 48 kHz, of a packet that begins with these two bytes; RFC 6716, section 3.

    Raises InputError where no packet does.
    """
    if not head:
        raise InputError("got no bytes; a packet of Opus has one at least")
    mode, code = head[0] >> 3, head[0] & 3
    if mode < 12:
        frame = SILK[mode & 3]
    elif mode < 16:
        frame = HYBRID[mode & 1]
    else:
        frame = CELT[mode & 3]
    if code == 3 and len(head) < 2:
        raise InputError("got a packet of Opus that breaks off behind its first byte")
    frames = (1, 2, 2, head[1] & 63 if code == 3 else 0)[code]
    if not 0 < frames * frame <= MAX_SAMPLES:
        raise InputError(f"got a packet of Opus with {frames} frames of {frame} samples")
    return frames * frame
