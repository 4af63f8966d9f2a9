"""Align: what two devices saw at one moment has one time, though their clocks drift apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.align import Align, Epoch
from streamenc.nodes.deviceclock import DeviceClock
from tests.support.drive import audio_info, joined, video_info

RATE, FPS = 8000, 10
SOUND, VIDEO = audio_info(RATE), video_info(1, 1, rate=FPS, ticks=1_000_000)
START_NS = 5_000_000_000  # the graph's clock says something at the start


def jitter(count: int, seed: int) -> np.ndarray:
    """Seconds that frames are late: some milliseconds, now and then half a second."""
    chance = np.random.default_rng(seed)
    late = np.minimum(chance.exponential(0.008, count), 0.03)
    stalls = chance.integers(0, count, max(1, count // 5000))
    late[stalls] = 0.5
    return late


def arrivals(complete: np.ndarray, late: np.ndarray) -> np.ndarray:
    """ns at which frames arrive that are complete then: in order, so a stall holds up the next."""
    return START_NS + (1e9 * np.maximum.accumulate(complete + late)).astype(np.int64)


def blocks(
    seconds: float, ppm: float, clicks: np.ndarray, block: int, seed: int
) -> Iterator[Frame]:
    """A microphone that is fast by `ppm`, with a click at each of `clicks` (seconds)."""
    rate = RATE * (1 + 1e-6 * ppm)
    count = int(seconds * rate) // block
    at = arrivals(np.arange(1, count + 1) * block / rate, jitter(count, seed))
    where = np.round(clicks * rate).astype(int)
    for index in range(count):
        data = np.zeros((1, block), np.float32)
        for click in where[(where > index * block - 64) & (where < (index + 1) * block + 64)]:
            away = np.arange(index * block, (index + 1) * block) - click
            data[0] += np.exp(-np.square(away / 8.0))
        yield Frame(data, index * block, block, index, arrived_ns=int(at[index]))


def shots(seconds: float, ppm: float, seed: int) -> Iterator[Frame]:
    """A camera that is fast by `ppm`; its images say nothing, as their number is their time."""
    per_second = FPS * (1 + 1e-6 * ppm)
    count = int(seconds * per_second)
    at = arrivals(np.arange(count) / per_second, jitter(count, seed))
    data = np.zeros((3, 1, 1, 1), np.uint8)
    for index in range(count):
        pts = round(index * 1_000_000 / FPS)
        yield Frame(data, pts, 100_000, index, arrived_ns=int(at[index]))


def click_times(frames: list[Frame], info: StreamInfo) -> np.ndarray:
    """Seconds of the middles of all clicks."""
    data = joined(frames)[0]
    tick = float(info.time_base)
    starts = [f.pts * tick + np.arange(f.data.shape[1]) / RATE for f in frames]
    times = np.concatenate(starts)
    loud = np.flatnonzero(data > 0.3)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > RATE) + 1)
    return np.array([np.average(times[group], weights=data[group]) for group in groups])


def run(node: Align, info: StreamInfo, frames: Iterator[Frame]) -> list[Frame]:
    node.open(info)
    out = [made for frame in frames for made in node.push(frame)]
    return [*out, *node.flush()]


@pytest.mark.parametrize("minutes", [8, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("sound_ppm", "video_ppm"), [(200, -200), (-200, 200)])
def test_drift_over_a_long_time(sound_ppm: float, video_ppm: float, minutes: int) -> None:
    seconds = 60.0 * minutes
    epoch = Epoch()
    microphone, camera = Align(epoch), Align(epoch)
    per_second = FPS * (1 + 1e-6 * video_ppm)
    flashes = np.arange(FPS, int(seconds * per_second) - FPS, 60 * FPS)
    moments = flashes / per_second
    images = run(camera, VIDEO, shots(seconds, video_ppm, seed=1))
    sound = run(microphone, SOUND, blocks(seconds, sound_ppm, moments, 1600, seed=2))

    shown = np.array([images[index].pts for index in flashes]) / 1e6
    heard = click_times(sound, SOUND)
    assert len(heard) == len(moments) == minutes
    assert np.abs(heard - shown).max() < 0.01
    # And both are where they were, by the clock: the epoch is the first arrival.
    assert np.abs(np.diff(shown - moments)).max() < 0.01
    assert microphone.drift_ppm == pytest.approx(sound_ppm, abs=60)
    assert camera.drift_ppm == pytest.approx(video_ppm, abs=60)

    # Nothing is lost, doubled or flagged; distances stay regular.
    assert len(images) == int(seconds * per_second)
    distances = np.diff([frame.pts for frame in images])
    assert distances.min() > 100_000 - 200 and distances.max() < 100_000 + 200
    assert sum(f.data.shape[1] for f in sound) == pytest.approx(seconds * RATE, abs=RATE * 0.2)
    assert all(a.pts + a.duration == b.pts for a, b in zip(sound, sound[1:], strict=False))
    assert not any(f.discontinuity for f in [*sound, *images])
    assert [f.seq for f in images[:3]] == [0, 1, 2]
    assert microphone.jumps == camera.jumps == 0


def test_a_gap_is_kept_and_flagged() -> None:
    """A second of sound was lost on the way; what follows is at its own time."""
    frames = list(blocks(20, 100, np.array([15.0]), 160, seed=3))
    kept = [f.with_(discontinuity=i == 500) for i, f in enumerate(frames) if not 450 <= i < 500]
    out = run(Align(Epoch()), SOUND, iter(kept))
    (flagged,) = [i for i, frame in enumerate(out) if frame.discontinuity]
    gap = out[flagged].pts - out[flagged - 1].pts - out[flagged - 1].duration
    assert gap == pytest.approx(RATE, abs=20)
    whole = run(Align(Epoch()), SOUND, iter(frames))
    assert click_times(out, SOUND) == pytest.approx(click_times(whole, SOUND), abs=2e-3)
    # A gap that nobody flagged shows in the times.
    silent = [frame.with_(discontinuity=False) for frame in kept]
    assert sum(f.discontinuity for f in run(Align(Epoch()), SOUND, iter(silent))) == 1


def test_a_gap_while_the_clock_is_learnt_is_kept_too() -> None:
    """A device that just started often loses its first blocks."""
    frames = list(blocks(4, 0, np.array([2.0]), 160, seed=3))
    kept = [f.with_(discontinuity=i == 15) for i, f in enumerate(frames) if not 10 <= i < 15]
    out = run(Align(Epoch()), SOUND, iter(kept))
    (flagged,) = [i for i, frame in enumerate(out) if frame.discontinuity]
    assert flagged > 0
    assert out[flagged].pts - out[flagged - 1].pts - out[flagged - 1].duration == pytest.approx(
        5 * 160, abs=20
    )
    whole = run(Align(Epoch()), SOUND, iter(frames))
    assert click_times(out, SOUND) == pytest.approx(click_times(whole, SOUND), abs=2e-3)


@pytest.mark.parametrize("info", [SOUND, VIDEO], ids=["sound", "video"])
@pytest.mark.parametrize("jump_seconds", [3600.0, -1.0])
def test_a_clock_that_jumps_is_learnt_anew(info: StreamInfo, jump_seconds: float) -> None:
    node = Align(Epoch())
    made = blocks(20, 0, np.zeros(0), 160, 4) if info is SOUND else shots(20, 0, 4)
    frames = list(made)
    half = len(frames) // 2
    jump = round(jump_seconds / float(info.time_base))
    moved = [f.with_(pts=f.pts + jump * (i >= half)) for i, f in enumerate(frames)]
    out = run(node, info, iter(moved))
    assert node.jumps == 1 and sum(frame.discontinuity for frame in out) == 1
    seconds = np.array([float(f.pts * info.time_base) for f in out])
    assert np.diff(seconds).min() > 0 and np.diff(seconds).max() < 0.2
    assert seconds[-1] - seconds[0] == pytest.approx(20, abs=0.2)


def test_the_resampler_keeps_the_sound() -> None:
    """A tone through a device that is off by 200 ppm comes out as that tone."""
    rate, ppm, seconds = 24_000, 200, 60
    node = Align(Epoch())
    node.open(audio_info(rate))
    true_rate = rate * (1 + 1e-6 * ppm)
    tone = np.sin(2 * np.pi * 1000 * np.arange(int(seconds * true_rate)) / true_rate)
    out: list[Frame] = []
    for start in range(0, len(tone), 480):
        piece = tone[None, start : start + 480].astype(np.float32)
        at = START_NS + int((start + piece.shape[1]) / true_rate * 1e9)
        out += node.push(Frame(piece, start, piece.shape[1], start // 480, arrived_ns=at))
    heard = joined(out)[0][-2 * rate :]
    times = np.arange(len(heard)) / rate
    snr_db = []
    for millionth in range(-10, 11):  # what is left of the drift after a minute
        turns = 2 * np.pi * 1000 * (1 + 1e-6 * millionth) * times
        waves = np.stack([np.sin(turns), np.cos(turns)], axis=1)
        _, (rest,), *_ = np.linalg.lstsq(waves, heard.astype(np.float64), rcond=None)
        snr_db.append(10 * np.log10(np.square(heard).sum() / rest))
    assert max(snr_db) > 60
    assert node.drift_ppm == pytest.approx(ppm, abs=5)
    # Held back: 240 samples, 10 ms; the latency counts it.
    held = seconds * rate - joined(out).shape[1]
    assert held == pytest.approx(240, abs=260)


def test_stereo_and_latency() -> None:
    frames = list(blocks(3, 0, np.array([2.0]), 160, seed=5))
    both = [f.with_(data=np.concatenate((f.data, 0.5 * f.data))) for f in frames]
    out = run(Align(Epoch()), replace(SOUND, shape=(2, None)), iter(both))
    whole = joined(out)
    assert whole.shape[0] == 2 and np.allclose(whole[1], 0.5 * whole[0], atol=1e-6)
    late = run(Align(Epoch(), latency_ms=100), SOUND, iter(frames))
    early = run(Align(Epoch()), SOUND, iter(frames))
    assert early[0].pts - late[0].pts == RATE // 10


def test_short_streams_come_out_whole() -> None:
    frames = list(blocks(0.3, 0, np.zeros(0), 160, seed=6))
    out = run(Align(Epoch()), SOUND, iter(frames))
    assert sum(f.data.shape[1] for f in out) == 160 * len(frames)
    assert run(Align(Epoch()), VIDEO, iter(())) == []


def test_text_ends_when_it_came() -> None:
    info = StreamInfo("text", Fraction(1, 1000), Fraction(0), (1, None), "str")
    epoch = Epoch()
    epoch.seconds(START_NS)
    node = Align(epoch, latency_ms=100)
    assert node.open(info) == info
    frame = Frame(np.array([["a"]]), 70, 300, 0, arrived_ns=START_NS + 2_000_000_000, segment=4)
    (out,) = node.push(frame)
    assert (out.pts, out.duration, out.segment) == (1600, 300, 4)
    (again,) = node.push(frame.with_(arrived_ns=frame.arrived_ns + 50_000_000, revised=True))
    assert (again.pts, again.revised, again.discontinuity) == (1650, True, False)
    assert list(node.flush()) == []


def test_what_it_does_not_take() -> None:
    with pytest.raises(FitError, match="Align takes audio, video or text"):
        Align(Epoch()).open(replace(SOUND, kind="codes"))
    with pytest.raises(UsageError, match="latency_ms"):
        Align(Epoch(), latency_ms=1e6)


def test_a_clock_follows_no_faster_than_its_limit() -> None:
    clock = DeviceClock()
    clock.arrive(0.0, 10.0)
    clock.anchor()
    for tenth in range(1, 400):
        clock.arrive(tenth / 10, 10.05 + tenth / 10)
        assert abs(clock.drift) <= 1000e-6
    assert 0.01 < clock.offset - 10 <= 0.0400
