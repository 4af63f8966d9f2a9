"""Sound and images of two devices in one graph, for up to an hour of a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from fractions import Fraction

import anyio
import numpy as np
import pytest

from streamenc.graph.clock import VirtualClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import Sink, Source, Transform
from streamenc.nodes.align import Align, Epoch
from streamenc.nodes.select import Select

RATE, BLOCK = 8000, 4000  # the microphone: blocks of half a second
FPS = 2
SOUND = StreamInfo("audio", Fraction(1, RATE), Fraction(RATE), (1, None), "float32")
VIDEO = StreamInfo("video", Fraction(1, 10**6), Fraction(FPS), (3, None, 2, 2), "uint8")


class Device(Source):
    """Frames that are complete at `ready` seconds and arrive some jitter later, in order."""

    live = True

    def __init__(self, info: StreamInfo, frames: list[tuple[float, Frame]], seed: int) -> None:
        late = np.minimum(np.random.default_rng(seed).exponential(0.008, len(frames)), 0.03)
        late[len(frames) // 3] = 0.5  # once, everything waits
        self._info, self._frames, self._late = info, frames, late

    async def open(self) -> StreamInfo:
        return self._info

    async def frames(self) -> AsyncIterator[Frame]:
        for (ready, frame), late in zip(self._frames, self._late, strict=True):
            await self.clock.sleep_until_ns(round(1e9 * (ready + late)))
            self.lost += frame.discontinuity
            yield frame

    def stop(self) -> None:
        self._frames = []


class Loudest(Transform):
    """Sound or images -> a feature each: the loudest sample of each 10 ms, the mean of pixels."""

    def open(self, info: StreamInfo) -> StreamInfo:
        self._items = int(info.rate / 100) if info.kind == "audio" else 1
        return replace(info, kind="features", shape=(1, None), dtype="float32")

    def push(self, frame: Frame) -> Iterable[Frame]:
        if frame.data.ndim == 4:
            return (frame.with_(data=frame.data.mean((0, 2, 3), dtype=np.float32)[None]),)
        usable = frame.data[:, : frame.data.shape[1] // self._items * self._items]
        return (frame.with_(data=np.abs(usable).reshape(1, -1, self._items).max(2)),)


class Collected(Sink):
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    async def open(self, info: StreamInfo) -> None:
        self.info = info

    async def write(self, frame: Frame) -> None:
        self.frames.append(frame)


def microphone(
    seconds: int, ppm: float, moments: np.ndarray, lost: slice
) -> list[tuple[float, Frame]]:
    rate = RATE * (1 + 1e-6 * ppm)
    data = np.zeros(int(seconds * rate) // BLOCK * BLOCK, np.float32)
    for sample in np.round(moments * rate).astype(int):
        data[sample : sample + 40] = 1
    blocks = [
        Frame(data[None, at : at + BLOCK], at, BLOCK, at // BLOCK)
        for at in range(0, len(data), BLOCK)
    ]
    blocks[lost.stop] = blocks[lost.stop].with_(discontinuity=True)
    return [((f.pts + BLOCK) / rate, f) for f in blocks[: lost.start] + blocks[lost.stop :]]


def camera(seconds: int, ppm: float, events: Iterable[int]) -> list[tuple[float, Frame]]:
    per_second = FPS * (1 + 1e-6 * ppm)
    dark, bright = np.zeros((3, 1, 2, 2), np.uint8), np.full((3, 1, 2, 2), 255, np.uint8)
    lit = {event * FPS for event in events}
    return [
        (n / per_second, Frame(bright if n in lit else dark, n * 10**6 // FPS, 10**6 // FPS, n))
        for n in range(int(seconds * per_second))
    ]


def events_of(frames: list[Frame], info: StreamInfo) -> np.ndarray:
    """Seconds at which something begins: a loud or bright item after a quiet one."""
    seconds, values = [], []
    for frame in frames:
        items = frame.data.shape[1]
        begin, lasts = (float(ticks * info.time_base) for ticks in (frame.pts, frame.duration))
        seconds += [begin + lasts * item / items for item in range(items)]
        values += frame.data[0].tolist()
    loud = np.array(values) > 0.5 * max(values)
    return np.array(seconds)[loud & ~np.roll(loud, 1)]


@pytest.mark.parametrize("minutes", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_two_devices_stay_together(minutes: int) -> None:
    seconds = 60 * minutes
    events = range(60, seconds - 60, 120)  # the image in which something also sounds, by second
    sound_ppm, video_ppm = 200.0, -200.0
    moments = np.array([n * FPS / (FPS * (1 + 1e-6 * video_ppm)) for n in events])
    # 5 s of sound, far from any event, and late enough for the clocks to be apart.
    lost = slice(end := 2 * (seconds // 240 * 120), end + 10)
    graph = Graph(clock=VirtualClock())
    epoch = Epoch()
    aligns = [Align(epoch), Align(epoch)]
    sources = [
        Device(SOUND, microphone(seconds, sound_ppm, moments, lost), 1),
        Device(VIDEO, camera(seconds, video_ppm, events), 2),
    ]
    ends = []
    for name, source, align in zip(("mic", "camera"), sources, aligns, strict=True):
        at = graph.transform(f"{name}.align", align, graph.source(name, source))
        ends.append(graph.transform(f"{name}.loudest", Loudest(), at))
    sink = Collected()
    graph.sink("out", sink, graph.merge("both", ends, max_wait_ms=2000))
    report = anyio.run(graph.run)

    tracks = [[f for f in sink.frames if f.track == track] for track in (0, 1)]
    times = [float(f.pts * sink.info.track(f.track).time_base) for f in sink.frames]
    # The merge does not wait longer than 2 s for what the resampler held back over the gap.
    assert sum(a > b for a, b in zip(times, times[1:], strict=False)) <= 1
    heard, seen = (events_of(frames, sink.info.track(i)) for i, frames in enumerate(tracks))
    assert len(heard) == len(seen) == len(events)
    # 10 ms of it are those of the feature.
    assert np.abs(heard - seen).max() < 0.02
    # What was lost is flagged on its own side only, and keeps its time.
    assert [sum(f.discontinuity for f in frames) for frames in tracks] == [1, 0]
    (after,) = [n for n, frame in enumerate(tracks[0]) if frame.discontinuity]
    before = tracks[0][after - 1]
    gap = (tracks[0][after].pts - before.pts - before.duration) / RATE
    assert gap == pytest.approx(5, abs=0.05)
    assert (report.dropped, report.lost) == (1, 0)
    # Without it, they would be 1.4 s apart at the end.
    assert aligns[0].drift_ppm - aligns[1].drift_ppm == pytest.approx(sound_ppm - video_ppm, abs=60)


def test_a_track_that_ends_early_holds_nothing_up() -> None:
    """The sound of a film goes on after its last image, longer than channels are."""
    film = StreamInfo("mux", Fraction(1, 24_000), Fraction(0), (), "", tracks=(SOUND, VIDEO))
    frames = [
        (f.pts / RATE, f) for _, f in microphone(120, 0, np.array([10.0]), slice(50, 50))[:200]
    ]
    frames += [(f.pts / 1e6, f.with_(track=1)) for _, f in camera(120, 0, [10])[:40]]
    graph = Graph(clock=VirtualClock())
    source = graph.source("film", Device(film, sorted(frames, key=lambda pair: pair[0]), 3))
    ends = [graph.transform(f"select{track}", Select(track), source) for track in (0, 1)]
    sink = Collected()
    graph.sink("out", sink, graph.merge("both", ends, max_wait_ms=1e9))
    report = anyio.run(graph.run)
    assert len(sink.frames) == 240 and report.wall_seconds < 101
    assert [f.seq for f in sink.frames if not f.track] == list(range(200))


def test_tracks_of_one_container_share_its_clock() -> None:
    """Shared out, encoded apart, and merged again: in order, each frame once."""
    film = StreamInfo("mux", Fraction(1, 24_000), Fraction(0), (), "", tracks=(SOUND, VIDEO))
    frames = [
        (f.pts / RATE, f) for _, f in microphone(120, 0, np.array([10.0]), slice(50, 50))[:100]
    ]
    frames += [(f.pts / 1e6, f.with_(track=1)) for _, f in camera(120, 0, [10])[:100]]
    graph = Graph(clock=VirtualClock())
    source = graph.source("film", Device(film, sorted(frames, key=lambda pair: pair[0]), 3))
    ends = []
    for track, name in enumerate(("sound", "images")):
        at = graph.transform(f"{name}.select", Select(track), source)
        ends.append(graph.transform(name, Loudest(), at))
    sink = Collected()
    graph.sink("out", sink, graph.merge("both", ends))
    anyio.run(graph.run)
    assert len(sink.frames) == 200
    times = [float(f.pts * sink.info.track(f.track).time_base) for f in sink.frames]
    assert times == sorted(times)
    heard, seen = (
        events_of([f for f in sink.frames if f.track == track], film.tracks[track])
        for track in (0, 1)
    )
    assert heard.tolist() == seen.tolist() == [10.0]
