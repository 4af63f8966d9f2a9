"""Select: a track of a mux as a stream of its own."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.select import Select
from tests.support.drive import audio_info, images, through, video_info

FILM = StreamInfo(
    "mux", Fraction(1, 24_000), Fraction(0), (), "", tracks=(audio_info(8000), video_info(8, 8))
)


def test_each_track_by_itself() -> None:
    sound = [Frame(np.zeros((1, 80), np.float32), 80 * i, 80, i) for i in range(3)]
    shown = [frame.with_(track=1, discontinuity=not frame.seq) for frame in images(3, 8, 8)]
    mixed = [frame for both in zip(sound, shown, strict=True) for frame in both]
    info, out = through(FILM, mixed, Select(0))
    assert info == FILM.tracks[0] and [f.seq for f in out] == [0, 1, 2]
    info, out = through(FILM, mixed, Select(1))
    assert info == FILM.tracks[1] and all(frame.track == 0 for frame in out)
    assert [frame.discontinuity for frame in out] == [True, False, False]
    assert all(a.data is b.data for a, b in zip(out, shown, strict=True))


def test_what_is_not_there() -> None:
    with pytest.raises(FitError, match="no track 2, counted from 0, in a mux of"):
        Select(2).open(FILM)
    with pytest.raises(FitError, match="takes a mux; got audio"):
        Select(0).open(audio_info(8000))
    for wrong in (-1, "0", True):
        with pytest.raises(UsageError, match="counted from 0"):
            Select(wrong)  # type: ignore[arg-type]
