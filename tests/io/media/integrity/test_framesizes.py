"""Sizes of frames, against what FFmpeg's demuxers make of files."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.codec import codecs_available

from streamenc.io.media.integrity.framesizes import is_cut


@pytest.mark.parametrize("rate", [16_000, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("kilobits", [64, 160])
@pytest.mark.parametrize("format", ["mp3", "ac3", "eac3"])
def test_each_frame_is_as_long_as_it_says(
    tmp_path: Path, format: str, kilobits: int, rate: int
) -> None:
    codec = "libmp3lame" if format == "mp3" else format
    if codec not in codecs_available or (format != "mp3" and rate < 32_000):
        pytest.skip(f"no {codec} of {rate} Hz")
    path = tmp_path / f"a.{format}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 1000 * kilobits
        wave = np.sin(np.arange(rate // 4) / 9)[None].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame) + stream.encode(None))
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size]
    assert len(packets) > 3
    for packet in packets:
        assert not is_cut(format, packet)
        assert is_cut(format, packet[:-1]) and is_cut(format, packet[:5])


def test_what_says_no_size_is_not_cut() -> None:
    assert not is_cut("mp3", b"\xff\xfb\x00\x00\x00\x00")  # free format
    assert not is_cut("mp3", bytes(6)) and not is_cut("ac3", bytes(6))
