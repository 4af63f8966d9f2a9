"""Layouts in a graph: frames keep their times, there and back."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from streamenc.errors import FitError, InputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.codes.relayout import FromLayout, ToLayout
from streamenc.testing import drive

INFO = StreamInfo(
    "codes", Fraction(1, 24_000), Fraction(25, 2), (4, None), "uint16", "kyutai/mimi", 2048
)
LAYOUTS = ["books", "flat", "delay", "delay:0,1,1,1", "delay:2,0,5,1"]
LENGTHS = [1, 3, 1, 1, 7, 2, 1, 20, 1]


def frames(gap_before: int | None = None) -> list[Frame]:
    """Frames of some columns each, the last one cut short; something may be missing between."""
    random, made, pts = np.random.default_rng(0), [], 100
    for index, items in enumerate(LENGTHS):
        pts += 5000 * (index == gap_before)
        duration = 1920 * items - 700 * (index == len(LENGTHS) - 1)
        data = random.integers(0, 2048, (4, items)).astype(np.uint16)
        made.append(Frame(data, pts, duration, index, index == gap_before, index))
        pts += duration
    return made


def facts(frames: list[Frame]) -> list[tuple]:
    return [
        (f.pts, f.duration, f.seq, f.discontinuity, f.data.dtype.name, f.data.tolist())
        for f in frames
    ]


@pytest.mark.parametrize("gap_before", [None, 4])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(layout: str, told: bool, gap_before: int | None) -> None:
    given = frames(gap_before)
    made = ToLayout(layout).open(INFO)
    tokens = drive(ToLayout(layout), INFO, given)
    assert all(made.fits(frame.data) for frame in tokens)
    assert max(int(frame.data.max()) for frame in tokens) < made.codebook_size
    assert [frame.seq for frame in tokens] == list(range(len(tokens)))
    node = FromLayout(layout if told else "", 2048)
    assert node.open(made) == INFO
    node = FromLayout(layout if told else "", 2048)
    assert facts(drive(node, made, tokens)) == facts(given)
    assert not node.remarks


def test_what_the_stream_says() -> None:
    flat = ToLayout("flat").open(INFO)
    assert (flat.shape, flat.rate, flat.codebook_size) == ((1, None), 50, 8192)
    late = ToLayout("delay").open(INFO)
    assert (late.shape, late.rate, late.codebook_size) == ((4, None), INFO.rate, 2049)
    two = ToLayout("flat", 2).open(INFO)
    assert (two.rate, two.codebook_size) == (25, 4096)
    assert FromLayout("", 2048).open(two) == replace(INFO, shape=(2, None))
    assert ToLayout("books", 2).open(INFO) == FromLayout("", 2048).open(INFO) == INFO


def test_the_tail_of_delayed_tokens_has_no_duration() -> None:
    given = frames()
    *rest, tail = drive(ToLayout("delay"), INFO, given)
    assert [(f.pts, f.duration) for f in rest] == [(f.pts, f.duration) for f in given]
    assert tail.data.shape == (4, 3) and not tail.discontinuity
    assert (tail.pts, tail.duration) == (given[-1].pts + given[-1].duration, 0)


def test_flat_tokens_one_by_one() -> None:
    """As a language model makes them: each with its share of the frame's time."""
    tokens = drive(ToLayout("flat"), INFO, frames())
    single = []
    for frame in tokens:
        count = frame.data.shape[1]
        ends = [frame.pts + frame.duration * i // count for i in range(count + 1)]
        for i, token in enumerate(frame.data[0]):
            data = np.array([[token]], np.uint16)
            single.append(Frame(data, ends[i], ends[i + 1] - ends[i], len(single)))
    back = drive(FromLayout("", 2048), ToLayout("flat").open(INFO), single)
    given = frames()
    assert len(back) == sum(LENGTHS) and all(f.data.shape == (4, 1) for f in back)
    assert np.array_equal(
        np.concatenate([f.data for f in back], axis=1),
        np.concatenate([f.data for f in given], axis=1),
    )
    assert back[0].pts == given[0].pts
    assert all(a.pts + a.duration == b.pts for a, b in zip(back, back[1:], strict=False))
    assert back[-1].pts + back[-1].duration == given[-1].pts + given[-1].duration


def test_tokens_that_end_early_are_told() -> None:
    tokens = drive(ToLayout("delay"), INFO, frames())
    node = FromLayout("", 2048)
    back = drive(node, ToLayout("delay").open(INFO), tokens[:-1])
    whole = np.concatenate([frame.data for frame in frames()], axis=1)
    assert np.array_equal(np.concatenate([f.data for f in back], axis=1), whole[:, :-3])
    assert node.remarks[0].startswith("3 frames were left out")
    node = FromLayout("flat", 2048)
    first = drive(ToLayout("flat"), INFO, frames())[0]
    assert drive(node, ToLayout("flat").open(INFO), [first.with_(data=first.data[:, :3])]) == []
    assert node.remarks[0].startswith("1 frames")


def test_one_who_joins_later() -> None:
    tokens = drive(ToLayout("delay"), INFO, frames())[3:]
    made = ToLayout("delay").open(INFO)
    with pytest.raises(InputError, match="joined in its middle"):
        drive(FromLayout("", 2048), made, tokens)
    back = drive(FromLayout("delay", 2048), made, tokens)
    assert [f.data.tolist() for f in back] == [f.data.tolist() for f in frames()[3:]]


def test_a_loss_on_the_way() -> None:
    """Packets 4 and 5 are lost: what was not whole before them is gone, too, and no more."""
    given, tokens = frames(), drive(ToLayout("delay"), INFO, frames())
    kept = [*tokens[:4], tokens[6].with_(discontinuity=True), *tokens[7:]]
    node = FromLayout("", 2048)
    back = drive(node, ToLayout("delay").open(INFO), kept)
    assert [f.data.tolist() for f in back] == [
        *(f.data.tolist() for f in given[:1]),
        given[1].data[:, :2].tolist(),
        *(f.data.tolist() for f in given[6:]),
    ]
    assert [f.pts for f in back if f.discontinuity] == [given[6].pts]
    assert node.remarks[0].startswith("3 frames")


def test_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="rows"):
        ToLayout("rows")
    with pytest.raises(UsageError, match="for 4 codebooks"):
        ToLayout("delay:0,1", 4)
    for wrong in (replace(INFO, kind="features"), replace(INFO, shape=(4, None, 3, 3))):
        with pytest.raises(FitError, match="codes of sound"):
            ToLayout("flat").open(wrong)
    for layout in ("flat", "delay"):
        with pytest.raises(FitError, match=f"layout={layout}"):
            FromLayout(layout, 2048).open(INFO)
    scaled = [frame.with_(scale=0.5) for frame in frames()]
    with pytest.raises(InputError, match="layout=flat"):
        drive(ToLayout("delay"), INFO, scaled)
    assert {frame.scale for frame in drive(ToLayout("flat"), INFO, scaled)} == {0.5}
    unseen = Frame(np.full((4, 2000), 2048, np.uint16), 0, 1, 0)
    with pytest.raises(InputError, match="but pads"):
        drive(FromLayout("", 2048), ToLayout("delay").open(INFO), [unseen])
