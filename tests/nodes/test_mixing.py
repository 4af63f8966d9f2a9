"""Mixing: what no sound has is bounded, channels are picked and mixed, and people are told."""

from __future__ import annotations

import av
import numpy as np
import pytest

from streamenc.errors import FitError
from streamenc.nodes.mixing import LIMIT, Mixing
from tests.support.drive import noise

RATE = 16_000


def mixed(data, channels=None, channel=None, block=320):
    node = Mixing(RATE, data.shape[0], channels, channel)
    out = [node.push(data[:, at : at + block]) for at in range(0, data.shape[1], block)]
    node.flush()
    return np.concatenate(out, axis=1), node


def test_what_is_within_the_bound_is_not_touched():
    data = noise(1000, 2)
    data[0, 5], data[1, 7] = LIMIT, -LIMIT
    node = Mixing(RATE, 2, 2, None)
    assert node.push(data) is data
    assert (node.clipped, node.remarks) == (0, [])


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        (1e30, "no sound is so loud: see what wrote them"),
        (-3e38, "no sound is so loud"),
        (16.5, "scale=1/32768"),
        (-32768.0, "scale=1/32768"),
        (8_388_607.0, "scale=1/8388608"),
        (2.1e9, "scale=1/2147483648"),
    ],
)
def test_what_is_beyond_is_clipped_and_counted(value, cure, caplog):
    data = noise(1000)
    clean = data.copy()
    data[0, [5, 700]] = value
    clean[0, [5, 700]] = np.sign(value) * LIMIT
    out, node = mixed(data)
    np.testing.assert_array_equal(out, clean)
    assert node.clipped == 2
    (remark,) = node.remarks
    assert remark.startswith("2 of 1000 samples lay beyond +-16 (24 dB over full scale), up to")
    assert cure in remark
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_for_the_model_to_refuse(value):
    data = noise(100)
    data[0, 5] = value
    np.testing.assert_array_equal(mixed(data)[0], data)


@pytest.mark.parametrize(
    ("phase", "seconds"), [(-1.0, 4), (-0.95, 4), (-0.5, 0), (0.0, 0), (1.0, 0)]
)
def test_channels_that_cancel_each_other_out(phase, seconds):
    left = noise(4 * RATE)
    out, node = mixed(np.concatenate([left, phase * left]), 1)
    assert out.shape == (1, 4 * RATE)
    if seconds:
        (remark,) = node.remarks
        assert "the 2 channels cancel each other out" in remark and "for 4 of 4 s" in remark
        assert "--channel 0" in remark and "?channel=0" in remark
    else:
        assert node.remarks == []


def test_a_second_of_opposite_phase_in_a_long_recording():
    data = noise(4 * RATE, 2)
    data[1, RATE : 2 * RATE] = -data[0, RATE : 2 * RATE]
    assert "for 1 of 4 s" in mixed(data, 1)[1].remarks[0]


@pytest.mark.parametrize("channels", [2, 8, 64])
def test_silence_and_different_sounds_do_not_cancel(channels):
    assert mixed(noise(RATE, channels), 1)[1].remarks == []
    assert mixed(np.zeros((channels, RATE), np.float32), 1)[1].remarks == []
    alone = np.zeros((channels, RATE), np.float32)
    alone[1] = noise(RATE)[0]
    assert mixed(alone, 1)[1].remarks == []


def test_what_is_short_counts_as_well():
    left = noise(RATE // 2)
    assert mixed(np.concatenate([left, -left]), 1)[1].remarks


@pytest.mark.parametrize("channel", [(0,), (1,), (3,), (3, 0)])
def test_channels_are_picked_before_they_are_mixed(channel):
    data = noise(1000, 4)
    np.testing.assert_array_equal(mixed(data, None, channel)[0], data[list(channel)])
    if len(channel) == 1:
        out, node = mixed(data, 2, channel)
        assert (node.channels, node.width, node.copies) == (2, 1, 2)
        np.testing.assert_array_equal(out, data[list(channel)])
    else:
        np.testing.assert_allclose(mixed(data, 1, channel)[0][0], data[list(channel)].mean(axis=0))


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("7.1", 8)])
def test_surround_to_stereo_is_that_of_ffmpeg_without_its_overshoot(layout, channels):
    data = noise(1000, channels)
    interleaved = np.ascontiguousarray(data.T).reshape(1, -1)
    sound = av.AudioFrame.from_ndarray(interleaved, "flt", layout)
    sound.sample_rate = RATE
    (expected,) = av.AudioResampler("fltp", "stereo", RATE).resample(sound)
    out, node = mixed(data, 2)
    gain = 1 / (1 + (channels // 2 - 1) * 0.5**0.5)
    np.testing.assert_allclose(out, gain * expected.to_ndarray(), atol=1e-6)
    full = mixed(np.ones((channels, 100), np.float32), 2)[0]
    np.testing.assert_allclose(full, 1, atol=1e-6)
    (remark,) = node.remarks
    assert f"{channels} channels were taken for {layout}" in remark and "--channel 0,1" in remark


@pytest.mark.parametrize(
    ("there", "channels", "channel", "message"),
    [
        (5, 2, None, "cannot mix 5 channels to 2.*--channel 0,1, or .channel=0,1 at the source"),
        (2, None, (2,), "there is no channel 2: they are counted from 0, and the sound has 2"),
        (6, 2, (0, 1, 2), "cannot mix 3 channels to 2"),
    ],
)
def test_channels_that_do_not_fit(there, channels, channel, message):
    with pytest.raises(FitError, match=message):
        Mixing(RATE, there, channels, channel)
