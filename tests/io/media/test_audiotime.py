from __future__ import annotations

import random
from fractions import Fraction

import pytest

from streamenc.io.media.audiotime import MAX_POSITION, ContainerTime


def place_all(
    positions: list[Fraction | None], samples: int, rate: int, tick: Fraction
) -> list[tuple[int, bool]]:
    time = ContainerTime(rate)
    return [time.place(position, tick, samples) for position in positions]


@pytest.mark.parametrize("rate", [44100, 48000])
@pytest.mark.parametrize("samples", [120, 960, 1024, 4096])
def test_milliseconds_make_no_gaps(rate: int, samples: int) -> None:
    tick = Fraction(rate, 1000)
    positions = [round(i * samples / tick) * tick for i in range(3000)]
    assert place_all([*positions], samples, rate, tick) == [
        (i * samples, False) for i in range(3000)
    ]


def test_jitter_makes_no_gaps() -> None:
    rng = random.Random(0)
    tick = Fraction(48000, 1000)
    positions = [960 * i + rng.randint(-4, 4) * tick for i in range(3000)]
    placed = place_all([*positions], 960, 48000, tick)
    assert not any(broken for _, broken in placed)


def test_the_first_position_is_the_containers() -> None:
    assert place_all([Fraction(-1105, 2)], 960, 48000, Fraction(1)) == [(-552, False)]
    assert place_all([None], 960, 48000, Fraction(1)) == [(0, False)]


@pytest.mark.parametrize("step", [960, -960, 48000 * 3600, -48000])
def test_a_step_breaks_once(step: int) -> None:
    positions = [Fraction(960 * i + (step if i >= 5 else 0)) for i in range(10)]
    placed = place_all([*positions], 960, 48000, Fraction(48))
    assert [pts for pts, _ in placed] == positions
    assert [broken for _, broken in placed] == [i == 5 for i in range(10)]


def test_a_slow_drift_breaks_at_100_ms() -> None:
    positions = [Fraction(960 * i) * Fraction(1001, 1000) for i in range(6000)]
    placed = place_all([*positions], 960, 48000, Fraction(1))
    breaks = [i for i, (_, broken) in enumerate(placed) if broken]
    assert breaks == [5001]  # 4800 samples at 0.96 per frame
    for (pts, _), position in zip(placed, positions, strict=True):
        assert abs(pts - position) <= 4801


def test_what_the_container_does_not_know_is_counted() -> None:
    positions = [Fraction(100), None, Fraction(MAX_POSITION * 2), Fraction(100 + 3 * 960)]
    placed = place_all(positions, 960, 48000, Fraction(1))
    assert placed == [(100 + 960 * i, False) for i in range(4)]


def test_what_is_known_to_be_missing_is_flagged() -> None:
    time = ContainerTime(48000)
    assert time.place(Fraction(0), Fraction(1), 960) == (0, False)
    assert time.place(Fraction(1920), Fraction(1), 960, skipped=True) == (1920, True)
    assert time.place(None, Fraction(1), 960, skipped=True) == (2880, True)
    assert time.place(Fraction(3841), Fraction(1), 960, skipped=True) == (3840, True)
    assert time.place(Fraction(4800), Fraction(1), 960) == (4800, False)
