from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import pytest

from streamenc.io.media.audiotime import HEARD, MAX_POSITION, ContainerTime

# Where a frame truly is, in samples, and by how much its container is off, in ms.
Truth = Sequence[int]
Error = Callable[[int], float]

RATE = 48_000
MS = Fraction(RATE, 1000)


def place_all(
    positions: Iterable[Fraction | int | None],
    samples: int = 960,
    tick: Fraction | int = MS,
    rate: int = RATE,
    lasts: Fraction | int = 0,
    live: bool = False,
) -> list[tuple[int, bool]]:
    time = ContainerTime(rate, live)
    placed = []
    for position in positions:
        at = None if position is None else Fraction(position)
        placed += time.push(at, Fraction(tick), samples, lasts)
    return placed + time.flush()


def stamped(truth: Truth, error: Error) -> list[Fraction]:
    """The times of a container that counts in ms, as a browser's recorder does."""
    return [round((at + Fraction(error(n)) * MS) / MS) * MS for n, at in enumerate(truth)]


def without(lost: set[int], count: int = 400, samples: int = 960) -> list[int]:
    return [n * samples for n in range(count) if n not in lost]


def breaks(placed: list[tuple[int, bool]]) -> list[int]:
    return [index for index, (_, broken) in enumerate(placed) if broken]


@pytest.mark.parametrize("rate", [44100, 48000])
@pytest.mark.parametrize("samples", [120, 960, 1024, 4096])
def test_milliseconds_make_no_gaps(rate: int, samples: int) -> None:
    tick = Fraction(rate, 1000)
    positions = [round(i * samples / tick) * tick for i in range(3000)]
    assert place_all(positions, samples, tick, rate) == [(i * samples, False) for i in range(3000)]


@pytest.mark.parametrize("most_ms", [1, 4, 9, 15])
def test_jitter_makes_no_gaps(most_ms: int) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        positions = stamped(without(set(), 1000), lambda _, rng=rng: rng.uniform(-most_ms, most_ms))
        placed = place_all(positions)
        first = round(positions[0])
        assert placed == [(first + 960 * i, False) for i in range(1000)]


@pytest.mark.parametrize("live", [False, True])
def test_what_comes_late_and_catches_up_makes_no_gaps(live: bool) -> None:
    """A recorder that stalls for up to 180 ms stamps what it has late."""
    late = stamped(without(set()), lambda n: max(0.0, (n // 50) * 23 - 20.0 * (n % 50)))
    assert not breaks(place_all(late, live=live))


def test_a_time_that_the_next_frame_takes_back_is_no_gap() -> None:
    """Vorbis: a long block, then short ones, the first dated by half a block too late."""
    time, at, placed = ContainerTime(44_100), 0, []
    wanted = []
    for block in range(300):
        samples = 1024 if block % 10 < 7 else 576 if block % 10 == 7 else 128
        late = 448 if samples == 576 else 0
        placed += time.push(Fraction(at + late), Fraction(1), samples, samples - late)
        wanted.append((at, False))
        at += samples
    assert placed + time.flush() == wanted


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("most_ms", [0, 4, 9])
def test_lost_packets_are_found_once_at_their_place_under_jitter(most_ms: int, live: bool) -> None:
    for seed in range(8):
        rng = random.Random(seed)
        lost = {40 + 45 * n + rng.randrange(20) for n in range(8)} | {201, 202, 203}
        truth = without(lost)
        positions = stamped(truth, lambda _, rng=rng: rng.uniform(-most_ms, most_ms))
        placed = place_all(positions, live=live)
        first = placed[0][0]
        assert breaks(placed) == [n for n in range(1, len(truth)) if truth[n] - truth[n - 1] != 960]
        assert [pts - first for pts, _ in placed] == truth


def test_losses_close_together_are_found_one_by_one() -> None:
    lost = {30, 32, 50, 51, 53, 70, 72, 74}
    truth = without(lost, 100, 1024)
    placed = place_all(truth, 1024, 1, 44_100)
    assert [pts for pts, _ in placed] == truth
    assert breaks(placed) == [n for n in range(1, len(truth)) if truth[n] - truth[n - 1] != 1024]


def test_the_first_position_is_the_containers() -> None:
    assert place_all([Fraction(-1105, 2)], tick=1) == [(-552, False)]
    assert place_all([None], tick=1) == [(0, False)]


@pytest.mark.parametrize("step", [960, -1920, 48000 * 3600, -48000, 7777])
def test_a_step_breaks_once(step: int) -> None:
    positions = [960 * i + (step if i >= 5 else 0) for i in range(10)]
    placed = place_all(positions)
    assert [pts for pts, _ in placed] == pytest.approx(positions, abs=18)  # 7777 is 8.1 packets
    assert breaks(placed) == [5]


def test_one_bad_time_is_none() -> None:
    positions = [960 * i + (10**9 if i == 50 else 0) for i in range(100)]
    assert place_all(positions) == [(960 * i, False) for i in range(100)]


def test_a_clock_that_stands_still_tells_nothing() -> None:
    assert place_all([100] * 50) == [(100 + 960 * i, False) for i in range(50)]


def test_where_the_containers_own_account_has_no_hole_none_is_made_up() -> None:
    """Raw AAC whose rate changes: FFmpeg dates each packet by the first one's rate."""
    time, counted = ContainerTime(24_000), Fraction(0)
    for n in range(300):
        samples = Fraction(1024 if n < 100 else Fraction(1024 * 24_000, 44_100))
        ((pts, broken),) = time.push(Fraction(1024 * n), Fraction(1), samples, 1024)
        assert (pts, broken) == (round(counted), False)
        counted += samples


def test_packets_dated_too_close_until_the_next_time_make_no_gap() -> None:
    """HE-AAC in MPEG-TS: until it is known, those of a group seem to last half as long."""
    time, placed = ContainerTime(44_100), []
    for n in range(200):
        lag = 1024 * (n % 6) if n < 6 else 0
        placed += time.push(Fraction(2048 * n - lag), Fraction(1), 2048, 1024 if n < 6 else 2048)
    assert placed + time.flush() == [(2048 * n, False) for n in range(200)]
    # What is lost later is still found, and so is a jump back.
    for jump in (2048, -20_480):
        time.push(Fraction(2048 * 200 + jump), Fraction(1), 2048, 2048)
        for n in range(1, 40):
            placed = time.push(Fraction(2048 * (200 + n) + jump), Fraction(1), 2048, 2048)
        assert placed == [(2048 * 239 + jump, False)]
        time = ContainerTime(44_100)
        for n in range(200):
            time.push(Fraction(2048 * n), Fraction(1), 2048, 2048)


def test_the_last_frame_is_believed_where_a_packet_is_missing_before_it() -> None:
    assert breaks(place_all([*range(0, 9600, 960), 9600 + 960])) == [10]
    assert not breaks(place_all([*range(0, 9600, 960), 9600 + 700]))


def test_how_long_a_frame_waits() -> None:
    """Nothing in place waits; of a live stream 0.2 s at most, else so many frames."""
    for live, most in ((True, 9), (False, HEARD - 1)):
        rng = random.Random(3)
        time, waiting, longest = ContainerTime(RATE, live), 0, 0
        for at in stamped(without({100, 150}), lambda _, rng=rng: rng.uniform(-9, 9)):
            waiting += 1 - len(time.push(at, MS, 960))
            longest = max(longest, waiting)
        assert longest == most
    time = ContainerTime(RATE)
    assert all(len(time.push(Fraction(960 * n), MS, 960)) == 1 for n in range(20))


@pytest.mark.parametrize("per_mille", [1, 10, 50])
def test_a_slow_drift_breaks_at_100_ms(per_mille: int) -> None:
    positions = [Fraction(960 * i) * (1000 + per_mille) / 1000 for i in range(6000)]
    placed = place_all(positions, tick=1)
    frames = 5000 / per_mille  # until it has come to 4800 samples
    assert breaks(placed)[0] == pytest.approx(frames, abs=40)
    assert len(breaks(placed)) == pytest.approx(6000 / frames, abs=1)
    for (pts, _), position in zip(placed, positions, strict=True):
        assert abs(pts - position) <= 4800 + 400


def test_what_the_container_does_not_know_is_counted() -> None:
    positions = [Fraction(100), None, Fraction(MAX_POSITION * 2), Fraction(100 + 3 * 960)]
    assert place_all(positions, tick=1) == [(100 + 960 * i, False) for i in range(4)]


def test_what_is_known_to_be_missing_is_flagged() -> None:
    time, placed = ContainerTime(48000), []
    for position, missing in ((0, False), (1920, True), (None, True), (3841, True), (4800, False)):
        at = None if position is None else Fraction(position)
        placed += time.push(at, Fraction(1), 960, 960, missing)
    assert placed + time.flush() == [
        (0, False),
        (1920, True),
        (2880, True),
        (3840, True),
        (4800, False),
    ]
