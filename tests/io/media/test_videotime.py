from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.io.media.videotime import Thinning, VideoTime


def placed(positions: list[int | None], nominal: int = 40, lasts: int = 0) -> tuple[list, list]:
    """pts, and the indices of those that break."""
    time = VideoTime(nominal)
    got = [time.place(position, lasts) for position in positions]
    return [pts for pts, _ in got], [i for i, (_, broken) in enumerate(got) if broken]


def test_the_containers_times_are_kept() -> None:
    assert placed([7, 47, 87, 127]) == ([7, 47, 87, 127], [])


def test_a_image_without_a_time_follows_on() -> None:
    assert placed([None, None, 80, None, 160]) == ([0, 40, 80, 120, 160], [])
    assert placed([0, None, 100], lasts=50) == ([0, 50, 100], [])


@pytest.mark.parametrize(
    ("positions", "breaks"),
    [
        ([0, 40, 160, 200], []),  # three nominal intervals are a pause
        ([0, 40, 161, 201], [2]),
        ([0, 100, 300, 500], []),  # slower than it says, evenly
        ([0, 110, 330, 771], [3]),
        ([400, 440, 0, 40], [2]),
        ([0, 40, 40, 80], [2]),
        ([0, 40, 10**9, 120, 160], [2, 3]),  # one bad time
    ],
)
def test_what_breaks(positions: list[int | None], breaks: list[int]) -> None:
    assert placed(positions) == (positions, breaks)


def breaks_at(intervals: list[int], lasts: int = 0) -> list[int]:
    """Before which intervals there is a break."""
    positions = [sum(intervals[:n]) for n in range(len(intervals) + 1)]
    return [index - 1 for index in placed(list(positions), lasts=lasts)[1]]


def test_where_all_are_alike_one_that_is_missing_is_noticed() -> None:
    assert breaks_at([40] * 10 + [80] + [40] * 20 + [80, 40]) == [10, 31]
    assert breaks_at([33, 33, 34] * 5 + [50] + [33, 34]) == []
    assert breaks_at([33, 33, 34] * 5 + [67] + [33, 34]) == [15]
    assert breaks_at([40] * 10 + [80] + [40] * 10, lasts=80) == []


def test_where_they_vary_a_pause_is_none() -> None:
    varied = [40, 60, 40, 33, 80]
    assert breaks_at(varied * 5 + [120] + varied) == []
    assert breaks_at(varied * 5 + [161] + varied) == [25]


def test_a_stream_that_becomes_slower_soon_is_whole_again() -> None:
    assert breaks_at([40] * 40 + [80] * 40) == [40]
    assert len(breaks_at([40] * 40 + [1000] * 40)) <= 4
    assert breaks_at([80] * 40 + [40] * 40) == []


def test_a_image_that_is_said_to_last_makes_no_hole() -> None:
    time = VideoTime(40)
    assert time.place(0, 1000) == (0, False)
    assert time.place(1000, 40) == (1000, False)
    assert time.place(2000, 40) == (2000, False)  # twice as long as the longest would be a hole
    assert time.place(4001, 40) == (4001, True)


# In the order in which they are shown, the numbers under which images were encoded.
ONE_BETWEEN = [0, *(n for at in range(1, 99, 2) for n in (at + 1, at))]
TWO_BETWEEN = [0, *(n for at in range(1, 99, 3) for n in (at + 1, at + 2, at))]
PYRAMID = [0, *(n for at in range(1, 97, 4) for n in (at + 2, at + 1, at + 3, at))]


@pytest.mark.parametrize("encoded", [ONE_BETWEEN, TWO_BETWEEN, PYRAMID])
@pytest.mark.parametrize("known", [True, False])
def test_images_dated_as_they_were_encoded_have_no_holes(encoded: list[int], known: bool) -> None:
    time = VideoTime(40, ordered=not known)
    placed = [time.place(40 * number) for number in encoded]
    assert not any(broken for _, broken in placed)
    pts = [pts for pts, _ in placed]
    assert pts[-50:] == list(range(pts[-50], pts[-50] + 50 * 40, 40))
    # Where it is found out only once it is seen, an image or two have taken a later one's time.
    assert 0 <= pts[-1] - 40 * (len(encoded) - 1) <= (0 if known else 80)


def test_a_clock_that_is_set_back_is_no_other_order() -> None:
    """Of a camera that gives an image each 60 to 70 ms, and says 40."""
    time, position, placed = VideoTime(40), 0, []
    for number in range(100):
        position += 60 + number * 7 % 11 - 100 * (number == 50)
        placed.append((position, *time.place(position)))
    assert [number for number, (_, _, broken) in enumerate(placed) if broken] == [66]
    assert all(pts == there for there, pts, _ in placed[:50] + placed[66:])


def test_what_is_left_out_of_images_dated_as_encoded_is_made_up_for() -> None:
    time = VideoTime(40, ordered=False)
    encoded = [0, *(n for at in range(1, 900, 3) for n in (at + 1, at + 2, at))]
    late = [number + (3 if number > 50 else 0) for number in encoded]
    placed = [time.place(40 * number) for number in late]
    assert not any(broken for _, broken in placed)
    assert [pts for pts, _ in placed[-90:]] == [40 * (n + 3) for n in range(811, 901)]
    assert time.place(40 * 10_000) == (40 * 10_000, True)
    assert time.place(40 * 10_001) == (40 * 10_001, False)


@given(
    fps=st.fractions(1, 120, max_denominator=1001),
    wanted=st.fractions(1, 120, max_denominator=1001),
    base=st.sampled_from([1000, 90_000, 1_000_000, 12_800]),
    start=st.integers(-(10**9), 10**12),
)
def test_thinning_keeps_the_rate_without_bursts(
    fps: Fraction, wanted: Fraction, base: int, start: int
) -> None:
    times = [start + int(n * base / fps) for n in range(300)]
    thinning = Thinning(wanted, Fraction(1, base), max(1, round(base / fps)))
    kept = [pts for pts in times if thinning.keeps(pts, False)]
    assert kept[0] == times[0]
    span_seconds = Fraction(times[-1] - times[0], base)
    assert len(kept) <= span_seconds * wanted + 2
    assert len(kept) >= min(len(times), int(span_seconds * min(fps, wanted))) - 1


def test_thinning_starts_anew_at_a_break() -> None:
    thinning = Thinning(Fraction(5), Fraction(1, 25), 1)
    assert [n for n in range(12) if thinning.keeps(n, n == 7)] == [0, 5, 7]


@given(
    positions=st.lists(st.none() | st.integers(-(2**60), 2**60) | st.integers(0, 500), max_size=60),
    lasts=st.integers(-5, 200),
)
def test_no_time_is_too_bad(positions: list[int | None], lasts: int) -> None:
    time = VideoTime(40)
    before = None
    for position in positions:
        pts, broken = time.place(position, lasts)
        assert type(pts) is int
        assert broken or before is None or pts > before
        before = pts
