"""Channels and scale, as options of sources of sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamenc.errors import MediaError, UsageError
from streamenc.io.media.incoming.intake import Intake

DATA = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_nothing_wanted_is_nothing_done() -> None:
    intake = Intake()
    assert intake.take(DATA) is DATA
    assert intake.channels(3, "a") == 3


@pytest.mark.parametrize(("channel", "rows"), [(1, [1]), ("2", [2]), ("2,0", [2, 0])])
def test_channels(channel: Any, rows: list[int]) -> None:
    intake = Intake(channel, "1/2")
    assert intake.channels(3, "a") == len(rows)
    got = intake.take(DATA)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, DATA[rows] / 2)


def test_what_is_not_there() -> None:
    with pytest.raises(MediaError, match=r"'a' has no channel 1; it has one channel, channel=0"):
        Intake(1).channels(1, "a")
    with pytest.raises(MediaError, match=r"no channel 5; it has 4 channels, 0 to 3"):
        Intake("0,5").channels(4, "a")


@pytest.mark.parametrize(
    ("option", "value"),
    [("channel", "left"), ("channel", -1), ("channel", "0,0"), ("channel", ""), ("scale", "x"),
     ("scale", 0), ("scale", "1/0"), ("scale", "inf")],
)  # fmt: skip
def test_bad_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        Intake(**{option: value})
