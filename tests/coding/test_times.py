"""Times of what comes out of models: counted for sound, carried over for images."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from streamenc.coding.times import CarriedTimes, CountedTimes, ImageTimes


def of_hops(hop: int, item: int) -> Fraction:
    """One input item for the first output, `hop` for each further one; as in Cosmos."""
    return Fraction(0 if item == 0 else 1 + (item - 1) * hop)


def test_counted_items_do_not_drift() -> None:
    times = CountedTimes(Fraction(25, 2), Fraction(1, 44100), covering=False)
    times.start(7)
    times.took(1, 7, 10**9)
    spans = [times.give(1, last=False) for _ in range(1000)]
    assert spans[0] == (7, 3528)
    assert spans[-1] == (7 + 999 * 3528, 3528)
    assert all(a + b == c for (a, b), (c, _) in zip(spans, spans[1:], strict=False))


def test_the_last_items_end_where_the_input_ends() -> None:
    for covering, wanted in ((False, 60), (True, 160)):
        times = CountedTimes(Fraction(10), Fraction(1, 1000), covering=covering)
        times.start(0)
        times.took(1, 0, 160)
        if not covering:
            assert (times.left, times.give(1, last=False)) == (2, (0, 100))
        assert times.give(1, last=True)[1] == wanted


@given(
    durations=st.lists(st.integers(1, 90), min_size=1, max_size=40),
    hop=st.integers(1, 8),
    pts=st.integers(-1000, 1000),
)
def test_carried_items_begin_and_end_with_their_images(
    durations: list[int], hop: int, pts: int
) -> None:
    """At an irregular rate, whenever they are asked for."""
    times = CarriedTimes(lambda item: of_hops(hop, item))
    times.start(pts)
    starts = [pts]
    given = []
    for index, duration in enumerate(durations):
        times.took(1, starts[-1], duration)
        starts.append(starts[-1] + duration)
        if index % hop == 0:
            given.append(times.give(1, last=False))
    if (len(durations) - 1) % hop:
        given.append(times.give(1, last=True))
    for item, (at, lasted) in enumerate(given):
        first, after = (min(int(of_hops(hop, i)), len(durations)) for i in (item, item + 1))
        assert (at, at + lasted) == (starts[first], starts[after])
    assert sum(lasted for _, lasted in given) == sum(durations)


def test_a_frame_of_several_images_shares_its_time_out() -> None:
    times = CarriedTimes(lambda item: Fraction(item))
    times.start(0)
    times.took(4, 0, 10)
    assert [times.give(1, last=False) for _ in range(4)] == [(0, 2), (2, 3), (5, 3), (8, 2)]


def image_times(hop: int, ticks: int) -> ImageTimes:
    def first_input(item: int) -> Fraction:
        return Fraction(0) if item == 0 else 1 + Fraction(item - 1, hop)

    times = ImageTimes(first_input, Fraction(ticks))
    times.start(100)
    return times


def test_a_tail_shows_no_more_images_than_were_encoded() -> None:
    times = image_times(hop=4, ticks=40)
    times.took(1, 100, 40)
    assert list(times.show(["a"], last=False)) == [("a", 100, 40)]
    times.took(1, 140, 160)
    assert [at for _, at, _ in times.show("bcde", last=False)] == [140, 180, 220, 260]
    times.took(1, 300, 80)
    assert list(times.show("fghi", last=False)) == []
    assert list(times.show("", last=True)) == [("f", 300, 40), ("g", 340, 40)]


def test_what_seemed_a_tail_is_shown_where_the_stream_goes_on() -> None:
    """Of a camera that became faster, say."""
    times = image_times(hop=4, ticks=40)
    times.took(1, 100, 40)
    times.took(1, 140, 80)
    assert list(times.show("abcde", last=False)) == [("a", 100, 40)]
    times.took(1, 220, 160)
    shown = list(times.show("fghi", last=False))
    assert "".join(image for image, *_ in shown) == "bcdefghi"
    assert [at for _, at, _ in shown] == [140, 160, 180, 200, 220, 260, 300, 340]
    assert all(a + b == c for (_, a, b), (_, c, _) in zip(shown, shown[1:], strict=False))
