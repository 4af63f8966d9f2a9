"""Encode: codes as offline, dated exactly in the source's time base."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import anyio
import numpy as np
import pytest
import torch

from streamenc.codec import Codec
from streamenc.coding.encode import Encode
from streamenc.engine.engine import Engine
from streamenc.errors import FitError, InputError
from streamenc.graph.frames import Frame
from streamenc.models.model import Model
from streamenc.models.signal import Scaled
from streamenc.nodes.chunker import Chunker
from streamenc.nodes.gaps import Gaps
from streamenc.nodes.resample import Resample
from streamenc.spec import Port, Steps, StreamSpec
from tests.support import zoo
from tests.support.drive import (
    audio_info,
    flagged,
    joined,
    noise,
    opened,
    pushed,
    sound,
    through,
)

CODECS = ("mimi", "encodec", "encodec-48k", "mel")


def encoder(codec: Codec, engine: Engine, *, hops: int = 1, conceal_ms: float = 0) -> list[Any]:
    spec = codec.spec
    chunker = Chunker(spec.lead, spec.hop * hops)
    concealing = [Gaps(conceal_ms)] if conceal_ms else []
    return [*concealing, chunker, Encode(codec, engine, hops=hops)]


def offline(codec: Codec, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Codes or features of (channels, samples), run as a whole."""
    signal = codec.encode(data)
    whole = signal.codes if isinstance(signal, Scaled) else signal
    return np.asarray(whole[0])


def nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


@pytest.mark.parametrize("hops", [1, 5])
@pytest.mark.parametrize("name", CODECS)
def test_what_comes_out_is_the_offline_result(name: str, hops: int, engine: Engine) -> None:
    codec = zoo.codec(name)
    rate, channels = int(codec.spec.input.rate), codec.spec.input.channels
    data = noise(5 * codec.spec.lead + 7, channels)
    info, frames = through(
        audio_info(rate, channels), sound(data, 333), *encoder(codec, engine, hops=hops)
    )
    assert (info.kind, info.model) == (codec.spec.output.kind, codec.public_name)
    assert info.shape == (codec.spec.output.channels, None)
    assert {frame.data.dtype.name for frame in frames} == {info.dtype}
    want = offline(codec, data)
    if info.kind == "codes":
        assert info.codebook_size == 64
        np.testing.assert_array_equal(joined(frames), want)
    else:
        np.testing.assert_allclose(joined(frames), want, atol=1e-5)
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert not any(frame.discontinuity for frame in frames)
    assert frames[0].pts == 0 and frames[-1].pts + frames[-1].duration == data.shape[1]
    assert engine.sessions == 0


@pytest.mark.parametrize("name", ["mimi", "encodec", "mel"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_times_are_those_of_the_source(name: str, rate: int, engine: Engine) -> None:
    codec = zoo.codec(name)
    samples, start = rate // 10 + 13, 12_345
    nodes = [Resample(24_000), *encoder(codec, engine)]
    info, frames = through(audio_info(rate), sound(noise(samples), 441, pts=start), *nodes)
    assert info.time_base == Fraction(1, rate)
    per_item = Fraction(codec.spec.hop * rate, codec.spec.hop_out * 24_000)
    items = 0
    for frame, after in zip(frames, [*frames[1:], None], strict=True):
        assert frame.pts == start + nearest(items * per_item)
        items += frame.data.shape[-1]
        if after is not None:
            assert frame.duration == nearest(items * per_item) + start - frame.pts
    # A resampled stream is known to half a sample of the model's rate.
    end = frames[-1].pts + frames[-1].duration
    assert abs(end - start - samples) <= Fraction(rate, 2 * 24_000) + 1
    assert frames[-1].duration <= math.ceil(per_item * frames[-1].data.shape[-1])


class Counting(Model):
    """An encoder that costs nothing: frames of zeros, one for each 1,920 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anything", torch.zeros(1))
        self.spec = StreamSpec(
            name="counting",
            input=Port("audio", Fraction(24_000), 1),
            output=Port("codes", Fraction(25, 2), 1, "uint16"),
            steps=Steps(1920, 1920),
            equality="offline",
            codebook_size=2,
        )

    def step(self, x: torch.Tensor, state: Any, *, end: bool = False) -> Any:
        frames = math.ceil(x.shape[-1] / 1920)
        return torch.zeros(1, 1, frames, dtype=torch.long), x.new_zeros(1)


@pytest.mark.parametrize("rate", [44_100, 22_050, 48_000, 16_000])
def test_an_hour_does_not_drift(rate: int, engine: Engine) -> None:
    """No resampler in between: its output is made up, dated as it does."""
    codec = Codec("counting", Counting(), None)
    hour = 3600 * 24_000
    block = np.zeros((1, 24_007), np.float32)
    ends = [nearest(Fraction(k * rate, 24_000)) for k in range(0, hour, block.shape[1])]
    frames = []
    for seq, pts in enumerate(ends):
        size = min(block.shape[1], hour - seq * block.shape[1])
        end = nearest(Fraction((seq * block.shape[1] + size) * rate, 24_000))
        frames.append(Frame(block[:, :size], pts, end - pts, seq))
    info = audio_info(24_000)
    info = type(info)("audio", Fraction(1, rate), info.rate, info.shape, info.dtype)
    _, codes = through(info, frames, *encoder(codec, engine, hops=12))
    items = 0
    for frame in codes:
        assert frame.pts == nearest(items * Fraction(1920 * rate, 24_000))
        items += frame.data.shape[-1]
    assert items == 45_000
    assert sum(frame.duration for frame in codes) == 3600 * rate
    assert not any(frame.discontinuity for frame in codes)


@pytest.mark.parametrize("name", CODECS)
def test_a_gap_is_two_streams(name: str, engine: Engine) -> None:
    codec = zoo.codec(name)
    rate, channels = int(codec.spec.input.rate), codec.spec.input.channels
    first, second = (noise(2 * codec.spec.lead + n, channels, n) for n in (301, 97))
    later = 10 * rate
    whole = sound(first, 100) + flagged(sound(second, 100, pts=later, seq=77))
    chunker, encode = encoder(codec, engine)
    _, frames = through(audio_info(rate, channels), whole, chunker, encode)
    assert encode.restarts == chunker.restarts == 1
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    flags = [frame.seq for frame in frames if frame.discontinuity]
    assert len(flags) == 1
    before, after = frames[: flags[0]], frames[flags[0] :]
    assert after[0].pts == later
    assert before[-1].pts + before[-1].duration == first.shape[1]
    assert after[-1].pts + after[-1].duration == later + second.shape[1]
    for data, part, pts in ((first, before, 0), (second, after, later)):
        _, alone = through(
            audio_info(rate, channels), sound(data, 100, pts=pts), *encoder(codec, engine)
        )
        assert [f.pts for f in part] == [f.pts for f in alone]
        assert [f.duration for f in part] == [f.duration for f in alone]
        assert [f.scale for f in part] == [f.scale for f in alone]
        np.testing.assert_array_equal(joined(part), joined(alone))


def test_a_short_gap_is_concealed_by_silence(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    data = noise(4800)
    gap = slice(2000, 2600)
    kept = sound(data[:, :2000], 200) + flagged(sound(data[:, 2600:], 200, pts=2600))
    gaps, chunker, encode = encoder(codec, engine, conceal_ms=25)
    _, frames = through(audio_info(24_000), kept, gaps, chunker, encode)
    data[:, gap] = 0
    np.testing.assert_array_equal(joined(frames), offline(codec, data))
    assert not any(frame.discontinuity for frame in frames)
    assert (gaps.gaps_concealed, gaps.concealed_ms) == (1, 25)
    assert chunker.restarts == encode.restarts == 0


def test_a_concealed_gap_behind_a_resampler(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    gaps, chunker, encode = encoder(codec, engine, conceal_ms=50)
    kept = sound(noise(4800), 960) + flagged(sound(noise(4800), 960, pts=5760))
    _, frames = through(audio_info(48_000), kept, Resample(24_000), gaps, chunker, encode)
    assert encode.restarts == chunker.restarts == 0 and gaps.gaps_concealed == 1
    assert sum(frame.duration for frame in frames) == 10_560
    assert not any(frame.discontinuity for frame in frames)


def test_a_gap_behind_a_resampler_restarts_at_the_right_time(engine: Engine) -> None:
    codec = zoo.codec("encodec")
    chunker, encode = encoder(codec, engine)
    kept = sound(noise(4800), 960) + flagged(sound(noise(4800), 960, pts=31_000))
    _, frames = through(audio_info(48_000), kept, Resample(24_000), chunker, encode)
    (flag,) = [frame.seq for frame in frames if frame.discontinuity]
    assert encode.restarts == 1 and frames[flag].pts == 31_000
    assert sum(frame.duration for frame in frames[:flag]) == 4800
    assert sum(frame.duration for frame in frames[flag:]) == 4800


def test_a_stream_that_begins_flagged_is_no_restart(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    nodes = encoder(codec, engine)
    _, frames = through(audio_info(24_000), flagged(sound(noise(2400), 100)), *nodes)
    assert frames[0].discontinuity and nodes[1].restarts == 0


def test_codebooks_change_while_it_runs(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    data = noise(24 * 30)
    want = offline(codec, data)

    async def main() -> None:
        encode = Encode(codec, engine, codebooks=2)
        await opened(audio_info(24_000), encode)
        out = []
        for index, frame in enumerate(sound(data, 24)):
            if index in (10, 20):
                encode.codebooks = {10: 5, 20: None}[index]
            out += await encode.push(frame)
        await encode.aclose()
        assert [frame.data.shape[0] for frame in out] == [2] * 10 + [5] * 10 + [6] * 10
        for index, frame in enumerate(out):
            np.testing.assert_array_equal(frame.data[:, 0], want[: len(frame.data), index])

    anyio.run(main)


def test_codebooks_that_do_not_exist_are_refused_at_once(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    with pytest.raises(InputError, match="1 to 6 codebooks; 7"):
        Encode(codec, engine, codebooks=7)
    encode = Encode(codec, engine)
    with pytest.raises(InputError, match="1 to 6 codebooks; 0"):
        encode.codebooks = 0
    assert encode.codebooks is None


def test_each_segment_has_a_frame_and_a_scale_of_its_own(engine: Engine) -> None:
    codec = zoo.codec("encodec-48k")
    data = noise(5000, 2)
    data[:, 2500:] *= 0.01
    _, frames = through(audio_info(48_000, 2), sound(data, 480), *encoder(codec, engine, hops=3))
    assert [frame.pts for frame in frames] == [0, 1425, 2850, 4275]
    assert [frame.data.shape[-1] for frame in frames[:3]] == [180, 180, 180]
    assert sum(frame.duration for frame in frames) == 5000
    whole = codec.encode(data)
    want = np.concatenate([np.full(frame.data.shape[-1], frame.scale) for frame in frames])
    np.testing.assert_allclose(want, whole.scale[0, 0].numpy(), rtol=1e-6)
    assert frames[0].scale > 10 * frames[2].scale


def test_arrival_is_that_of_the_newest_input(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    frames = [f.with_(arrived_ns=1000 + f.seq) for f in sound(noise(240), 10)]
    _, out = through(audio_info(24_000), frames, *encoder(codec, engine))
    # Code k needs samples up to 24 * (k + 1), frame n brings those up to 10 * (n + 1).
    assert [f.arrived_ns for f in out] == [1000 + math.ceil(2.4 * (k + 1)) - 1 for k in range(10)]


@pytest.mark.parametrize(
    ("name", "rate", "channels", "words"),
    [
        ("mimi", 48_000, 1, r"encodes 24000 Hz audio of 1 channel; got audio .* at 48000/s"),
        ("mimi", 24_000, 2, r"put Resample\(24000, 1\) before it"),
        ("encodec-48k", 48_000, 1, r"48000 Hz audio of 2 channels.*Resample\(48000, 2\)"),
        ("mel", 16_000, 1, r"mel encodes 24000 Hz"),
    ],
)
def test_what_does_not_fit_says_how_it_would(
    name: str, rate: int, channels: int, words: str, engine: Engine
) -> None:
    with pytest.raises(FitError, match=words):
        through(audio_info(rate, channels), [], Encode(zoo.codec(name), engine))
    assert engine.sessions == 0


def test_codes_are_not_encoded_again(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    with pytest.raises(FitError, match="got codes of"):
        through(audio_info(24_000), [], Encode(codec, engine), Encode(codec, engine))


def test_nothing_in_nothing_out_and_a_flush_twice(engine: Engine) -> None:
    async def main() -> None:
        encode = Encode(zoo.codec("mimi"), engine)
        await encode.aclose()
        await opened(audio_info(24_000), encode)
        assert not await pushed([], encode)
        assert len(await pushed(sound(noise(10), 10), encode)) == 1
        assert not await pushed([], encode)
        await encode.aclose()
        await encode.aclose()

    anyio.run(main)


def test_two_streams_on_one_engine_do_not_mix(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    both = [noise(960, seed=seed) for seed in (1, 2)]

    async def one(data: np.ndarray[Any, Any], out: list[Frame]) -> None:
        encode = Encode(codec, engine)
        await opened(audio_info(24_000), encode)
        for frame in sound(data, 48):
            out += await encode.push(frame)
        await encode.aclose()

    async def main() -> None:
        outs: list[list[Frame]] = [[], []]
        async with anyio.create_task_group() as group:
            for data, out in zip(both, outs, strict=True):
                group.start_soon(one, data, out)
        for data, out in zip(both, outs, strict=True):
            np.testing.assert_array_equal(joined(out), offline(codec, data))

    anyio.run(main)
