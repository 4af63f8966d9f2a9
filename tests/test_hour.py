"""Up to an hour of live sound through a graph, in virtual time: exact accounts, flat memory."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import anyio
import numpy as np
import pytest

import streamenc
from streamenc.coding.encode import Encode
from streamenc.engine.engine import Engine
from streamenc.graph.clock import VirtualClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import Source
from streamenc.io.files.null import NullSink
from streamenc.io.files.recording import RecordingSink
from streamenc.io.reading import read_file
from streamenc.nodes.chunker import Chunker
from streamenc.nodes.pace import Pace
from streamenc.nodes.resample import Resample

RATE = 16_000
BLOCK_SECONDS = 1
MELS = 50  # a second

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Noise(Source):
    """The same seconds of noise, over and over; notes the memory in use at each minute."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        generator = np.random.default_rng(0)
        self._data = (0.1 * generator.standard_normal((1, BLOCK_SECONDS * RATE))).astype(np.float32)
        self.memory: list[int] = []

    async def open(self) -> StreamInfo:
        return StreamInfo("audio", Fraction(1, RATE), Fraction(RATE), (1, None), "float32")

    async def frames(self) -> AsyncIterator[Frame]:
        for seq in range(self._seconds // BLOCK_SECONDS):
            if seq * BLOCK_SECONDS % 60 == 0:
                self.memory.append(resident_bytes())
            duration = BLOCK_SECONDS * RATE
            yield Frame(self._data, seq * duration, duration, seq)

    def stop(self) -> None: ...


@needs_proc
@pytest.mark.parametrize("minutes", [20, pytest.param(60, marks=pytest.mark.slow)])
def test_a_long_time(minutes: int, tmp_path: Path) -> None:
    seconds = 60 * minutes
    codec = streamenc.load("mel", rate=8000, n_fft=256, hop=8000 // MELS, bands=8)
    spec, hops = codec.spec, MELS * BLOCK_SECONDS
    deadline_ms = 2000 * BLOCK_SECONDS
    noise, counted = Noise(seconds), NullSink()

    async def main(engine: Engine) -> None:
        graph = Graph(clock=VirtualClock(), deadline_ms=deadline_ms)
        graph.source("noise", noise)
        graph.transform("paced", Pace(), "noise")
        graph.transform("resample", Resample(8000), "paced")
        graph.transform("chunk", chunker := Chunker(spec.lead, spec.hop * hops), "resample")
        graph.transform("mel", encode := Encode(codec, engine, hops=hops), "chunk")
        graph.sink("record", RecordingSink(str(tmp_path / "mel.arrows")), "mel")
        graph.sink("count", counted, "mel")
        report = await graph.run()
        assert report.outcome == "ended" and report.dropped == report.lost == 0
        assert report.wall_seconds == seconds
        for node in report.nodes:
            assert max(node.frames_in, node.frames_out) >= seconds // BLOCK_SECONDS
            assert node.in_flight == node.dropped == 0
        assert chunker.restarts == encode.restarts == 0
        for name in ("record", "count"):
            sink = report[name].sink
            assert sink is not None and sink.gaps == sink.deadline_misses == 0
            assert sink.media_seconds == pytest.approx(seconds, abs=1e-9)
            assert sink.realtime_factor == pytest.approx(1, abs=0.01)
            assert sink.end_to_end.count == report[name].frames_in
            assert 0 <= sink.end_to_end.p50_ms <= sink.end_to_end.max_ms <= deadline_ms
            assert math.isfinite(sink.end_to_end.p99_ms)

    with Engine() as engine:
        anyio.run(main, engine)
    assert counted.items == seconds * MELS + 1
    assert max(noise.memory) - noise.memory[10] < 20e6
    info, frames = read_file(str(tmp_path / "mel.arrows"))
    assert sum(frame.data.shape[-1] for frame in frames) == counted.items
    assert info.time_base == Fraction(1, RATE)
    end = 0
    for frame in frames:
        assert frame.pts == end and not frame.discontinuity
        end += frame.duration
    assert end == seconds * RATE
