"""PcmInput: samples into a model, equal however they are cut and wherever they are taken up."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.serve.inputs.inputbase import JumpError
from streamenc.spec import Port
from tests.serve.inputs.packets import again, array, joined, made, sound, sound_model, spec_of, told
from tests.support.profile import examples

RNG = np.random.default_rng(3)


def noise(samples, channels=1):
    return RNG.integers(-20_000, 20_000, (channels, samples)).astype(np.int16)


def floats(samples):
    return samples.astype(np.float32) / np.float32(32768)


@settings(max_examples=examples(60, fast=12), deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9000), min_size=1, max_size=30),
    restored=st.sets(st.integers(0, 29)),
    rates=st.sampled_from([(48000, 24000), (44100, 16000), (8000, 24000), (24000, 24000)]),
)
def test_cut_anyhow_and_taken_up_anywhere(lengths, restored, rates):
    rate, to = rates
    spec, asked = sound_model(to), {"format": "s16", "rate": rate}
    samples = noise(sum(lengths))
    input, chunks, at = made(spec, **asked), [], 0
    for number, length in enumerate(lengths):
        if number in restored:
            input = again(input, spec, **asked)
        chunks += input.push(sound(samples[:, at : at + length], 1000 + at))
        at += length
        assert input.next_pts == 1000 + at
    chunks += input.flush()
    if not at:
        assert not chunks
        return
    wanted = floats(samples)[0]
    if rate != to:
        wanted = soxr.resample(wanted, rate, to, quality="HQ")
    assert np.array_equal(joined(chunks)[0], wanted)
    assert chunks[0].pts == 1000
    ends = [chunk.pts + chunk.duration for chunk in chunks]
    assert ends[:-1] == [chunk.pts for chunk in chunks[1:]]
    assert abs(ends[-1] - 1000 - at) <= rate / to
    assert not any(chunk.discontinuity for chunk in chunks)


def test_at_the_models_rate_nothing_is_held_back():
    input = made(sound_model(24000), format="f32")
    samples = floats(noise(480))
    (chunk,) = input.push(sound(samples, 5))
    assert (chunk.items, chunk.pts, chunk.duration) == (480, 5, 480)
    assert chunk.data.shape == (1, 1, 480) and np.array_equal(chunk.data[0], samples)
    assert input.flush() == [] and input.delay_seconds == 0 and input.exact
    assert (input.rate, input.channels, input.time_base) == (24000, 1, Fraction(1, 24000))


@pytest.mark.parametrize(
    ("channels", "model", "expected"),
    [
        (2, 1, lambda x: x.mean(axis=0, keepdims=True, dtype=np.float32)),
        (5, 1, lambda x: x.mean(axis=0, keepdims=True, dtype=np.float32)),
        (1, 2, lambda x: np.repeat(x, 2, axis=0)),
        (2, 2, lambda x: x),
    ],
)
def test_channels(channels, model, expected):
    samples = noise(48000, channels)
    input = made(sound_model(24000, model), format="s16", rate=48000, channels=channels)
    out = joined(input.push(sound(samples, 0)) + input.flush())
    mixed = expected(floats(samples))
    wanted = soxr.resample(mixed.T, 48000, 24000, quality="HQ").T
    assert np.array_equal(out, wanted.reshape(model, -1))


def test_a_discontinuity_ends_the_stream_and_starts_another():
    spec, asked = sound_model(24000), {"format": "s16", "rate": 48000}
    first, second = noise(10_000), noise(12_000)
    alone = []
    for samples, pts in ((first, 0), (second, 90_000)):
        input = made(spec, **asked)
        alone.append(input.push(sound(samples, pts)) + input.flush())
    input = made(spec, **asked)
    out = input.push(sound(first, 0))
    out += input.push(sound(second, 90_000, cut=True))
    out += input.flush()
    flags = [chunk.discontinuity for chunk in out]
    assert flags.count(True) == 1
    at = flags.index(True)
    assert out[at].pts == 90_000
    for got, wanted in ((out[:at], alone[0]), (out[at:], alone[1])):
        assert np.array_equal(joined(got), joined(wanted))


def test_a_flag_waits_with_the_resampler_and_survives():
    spec, asked = sound_model(24000), {"format": "s16", "rate": 48000}
    input = made(spec, **asked)
    input.push(sound(noise(10_000), 0))
    tail = input.push(sound(noise(10), 50_000, cut=True))  # too little for any output
    assert tail and not any(chunk.discontinuity for chunk in tail)
    input = again(input, spec, **asked)
    out = input.push(sound(noise(5000), 50_010))
    assert out[0].discontinuity and out[0].pts == 50_000


def test_after_a_flush_it_starts_anew_at_any_time():
    spec, asked = sound_model(24000), {"format": "s16", "rate": 48000}
    samples = noise(9000)
    input = made(spec, **asked)
    once = input.push(sound(samples, 0)) + input.flush()
    assert input.next_pts == 9000
    input = again(input, spec, **asked)
    assert input.next_pts == 9000
    later = input.push(sound(samples, 77)) + input.flush()
    assert np.array_equal(joined(once), joined(later))
    assert later[0].pts == 77 and not any(chunk.discontinuity for chunk in later)


def test_what_does_not_fit_changes_nothing():
    spec, asked = sound_model(24000), {"format": "f32", "rate": 48000, "channels": 2}
    samples = floats(noise(9000, 2))
    input, other = made(spec, **asked), made(spec, **asked)
    chunks, wanted = [], other.push(sound(samples, 0))
    chunks += input.push(sound(samples, 0))
    bad = [
        sound(samples[:1], 9000),
        sound(noise(100, 2), 9000),
        sound(np.full((2, 4), np.nan, np.float32), 9000),
        array(np.zeros((2, 3, 4), np.float32), 9000),
        array(np.zeros((2, 4), np.float32), 2**60, cut=True),
    ]
    for data in bad:
        with pytest.raises(InputError):
            input.check(data)
        with pytest.raises(InputError):
            input.push(data)
    for pts in (8999, 9001, 0, 18_000):
        with pytest.raises(JumpError, match="flag a discontinuity"):
            input.push(sound(samples, pts))
    chunks += input.push(sound(samples, 9000)) + input.flush()
    wanted += other.push(sound(samples, 9000)) + other.flush()
    assert told(chunks) == told(wanted)


@pytest.mark.parametrize(
    "asked",
    [
        {"rate": 44100.5},
        {"rate": 10.0},
        {"rate": 1e6},
        {"format": "jpeg"},
        {"format": "codes"},
    ],
)
def test_what_cannot_be(asked):
    with pytest.raises(UsageError):
        made(sound_model(24000), **asked)


def test_channels_that_cannot_be_mixed():
    with pytest.raises(UsageError, match="send 2, or one"):
        made(sound_model(48000, 2), channels=3)
    with pytest.raises(UsageError, match="no whole number"):
        made(spec_of(Port("audio", Fraction(48001, 2), 1)), rate=48000)


def test_a_pair_that_is_not_exact_says_so():
    input = made(sound_model(48000), rate=8000)
    assert not input.exact and "8000 to 48000 Hz" in input.why


@pytest.mark.parametrize("rate", [24000, 48000])
def test_damaged_states(rate):
    spec, asked = sound_model(24000), {"format": "s16", "rate": rate}
    input = made(spec, **asked)
    input.push(sound(noise(20_000), 0))
    blob = input.state()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(blob[: rng.integers(len(blob) + 1)] if rng.random() < 0.5 else blob)
        for at in rng.integers(0, min(30, max(1, len(damaged))), 2):
            if damaged:
                damaged[at] = rng.integers(256)
        other = made(spec, **asked)
        try:
            other.restore(bytes(damaged))
        except SnapshotError:
            refused += 1
        else:
            other.push(sound(noise(5000), other.next_pts, cut=True))
            other.flush()
    assert refused > 20


def test_state_of_another_kind():
    blob = made(sound_model(24000), rate=48000).state()
    with pytest.raises(SnapshotError):
        made(sound_model(24000)).restore(b"\x90" + blob)
    with pytest.raises(SnapshotError):
        made(sound_model(24000)).restore(bytes(65 * 2**20))


def test_in_another_process_without_torch(tmp_path):
    samples = noise(100_000)
    spec, asked = sound_model(16000), {"format": "s16", "rate": 44100}
    input = made(spec, **asked)
    before = input.push(sound(samples[:, :60_001], 0))
    (tmp_path / "state").write_bytes(input.state())
    np.save(tmp_path / "rest.npy", samples[:, 60_001:])
    code = """
import sys, numpy as np
from pathlib import Path
from tests.serve.inputs.packets import joined, made, sound, sound_model
folder = Path(sys.argv[1])
input = made(sound_model(16000), format="s16", rate=44100)
input.restore((folder / "state").read_bytes())
rest = np.load(folder / "rest.npy")
np.save(folder / "out.npy", joined(input.push(sound(rest, input.next_pts)) + input.flush()))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    got = np.concatenate([joined(before), np.load(tmp_path / "out.npy")], axis=1)
    wanted = soxr.resample(floats(samples)[0], 44100, 16000, quality="HQ")
    assert np.array_equal(got[0], wanted)
