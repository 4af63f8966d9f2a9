"""Gaps in the frame numbers of H.264, in streams as encoders make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.io.media.integrity.framenumbers import FrameNumbers
from tests.support.clips import write_clip


def packets_of(path: Path) -> tuple[bytes | None, list[Any]]:
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        extradata = stream.codec_context.extradata
        return extradata, [packet for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("ending", ["mp4", "ts"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_a_picture_that_is_missing_is_missed_once(
    tmp_path: Path, ending: str, pix_fmt: str
) -> None:
    path = write_clip(tmp_path / f"a.{ending}", count=40, keyframes=15, pix_fmt=pix_fmt)
    extradata, packets = packets_of(path)
    numbers = FrameNumbers(extradata)
    assert [numbers.misses(packet) for packet in packets] == [False] * 40
    for missing in (1, 7, 14, 20, 38):
        numbers = FrameNumbers(extradata)
        kept = [packet for index, packet in enumerate(packets) if index != missing]
        found = [index for index, packet in enumerate(kept) if numbers.misses(packet)]
        # Before a key picture it does no harm.
        assert found == ([] if missing == 14 else [missing])


@given(st.binary(max_size=80), st.none() | st.binary(max_size=80))
def test_nonsense_is_no_error(data: bytes, extradata: bytes | None) -> None:
    numbers = FrameNumbers(extradata)
    start = b"\0\0\0\1"
    for unit in (data, start + data, start + b"\x67" + data + start + b"\x41" + data):
        assert numbers.misses(unit) in (True, False)
