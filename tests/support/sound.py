"""Sound files in any codec and container, whole or with losses and odd times; and what is read."""

from __future__ import annotations

from collections.abc import Callable, Container
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiosource import MediaSource

LAYOUTS = {1: "mono", 2: "stereo"}


def noisy_tone(rate: int, channels: int, seconds: float) -> np.ndarray[Any, Any]:
    """(channels, samples): 220 Hz, 330 Hz ... under a little noise, so that frames differ."""
    at = np.arange(round(rate * seconds)) / rate
    waves = [0.3 * np.sin(2 * np.pi * (220 + 110 * c) * at) for c in range(channels)]
    noise = np.random.default_rng(0).standard_normal((channels, len(at)))
    return (np.stack(waves) + 0.03 * noise).astype(np.float32)


def write_sound(
    path: Path,
    codec: str,
    rate: int,
    channels: int = 1,
    seconds: float = 2.0,
    *,
    format: str | None = None,
    options: dict[str, str] | None = None,
    lost: Container[int] = (),
    late_seconds: Callable[[int], float] | None = None,
    block: int = 960,
) -> Path:
    """Encodes a noisy tone. lost: numbers of packets that are left out; late_seconds(number): what
    is added to a packet's time. Raises what PyAV does where the container takes no such sound.
    """
    samples = noisy_tone(rate, channels, seconds)
    layout = LAYOUTS[channels]
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        stream = container.add_stream(
            codec, rate=rate, layout=layout, options={"strict": "experimental"}
        )
        packets = []
        for at in range(0, samples.shape[1], block):
            piece = np.ascontiguousarray(samples[:, at : at + block])
            frame = av.AudioFrame.from_ndarray(piece, "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            packets += stream.encode(frame)
        for number, packet in enumerate(packets + stream.encode(None)):
            if late_seconds is not None:
                ticks = round(late_seconds(number) / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            if number not in lost:
                container.mux(packet)
    return path


def listen(path: Path, **options: Any) -> tuple[StreamInfo, list[Frame], MediaSource]:
    """All that a MediaSource gives."""
    source = MediaSource(str(path), **options)
    try:
        info = source.open_blocking()
        return info, list(iter(source.read, None)), source
    finally:
        source.close_blocking()


def samples_of(frames: list[Frame]) -> int:
    return sum(frame.duration for frame in frames)


def gaps(frames: list[Frame]) -> list[tuple[int, int]]:
    """(pts at which it begins, length in samples) of each break; all have to be flagged."""
    found = []
    for before, frame in zip(frames, frames[1:], strict=False):
        end = before.pts + before.duration
        if frame.pts != end or frame.discontinuity:
            assert frame.discontinuity
            found.append((end, frame.pts - end))
    return found


def packet_times(path: Path, rate: int) -> list[int]:
    """pts of the packets, in samples."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.pts is not None]
        return [round(packet.pts * packet.time_base * rate) for packet in packets]


def decoded_samples(path: Path) -> int:
    """What FFmpeg's own decoder gives of a file, in samples."""
    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(audio=0))
