"""Plots: which values make the range, and what is left blank."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from streamenc.cli.look.plot import Sound, _beyond, _shown_range, plot_stream
from streamenc.graph.frames import StreamInfo

FEATURES = StreamInfo("features", Fraction(1, 100), Fraction(50), (16, None), "float32", "m")


def values(channels: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((channels, 400))


@pytest.mark.parametrize("channels", [3, 16, 768])
@pytest.mark.parametrize("loud", [300.0, -300.0])
def test_a_loud_channel_does_not_take_the_range(channels: int, loud: float) -> None:
    data = values(channels)
    low, high = _shown_range(data) or (0, 0)
    assert (low, high) == pytest.approx(np.percentile(data, (1, 99)))
    data[1] += loud
    assert _shown_range(data) == pytest.approx((low, high), abs=0.4)
    assert _beyond(data, low, high) == "both"


def test_what_is_no_number_is_left_out() -> None:
    data = values()
    wanted = _shown_range(data)
    data[3, 7], data[4, 8], data[5] = np.nan, np.inf, np.nan
    assert _shown_range(data) == pytest.approx(wanted, abs=0.1)
    assert _shown_range(np.full((2, 3), np.nan)) == (None, None)
    assert _beyond(data, None, None) == "neither"
    same = np.ones((4, 5))
    assert _shown_range(same) == (1.0, 1.0)
    assert _beyond(same, 1.0, 1.0) == "neither"


def test_blanks_and_sound_are_drawn() -> None:
    data = np.ma.masked_array(values(), np.zeros((16, 400), bool))
    whole = np.asarray(plot_stream(FEATURES, data, gaps_seconds=[2.0]))
    data.mask[:, 100:300] = True
    blank = np.asarray(plot_stream(FEATURES, data))
    white = [(page == 255).all(axis=2).sum() for page in (whole, blank)]
    assert white[1] > 1.5 * white[0]
    sound = Sound(np.linspace(0, 8, 800), np.sin(np.arange(800)))
    assert plot_stream(FEATURES, data, sound=sound).height > len(blank)
