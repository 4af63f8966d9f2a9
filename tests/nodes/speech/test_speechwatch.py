"""When speech starts and stops, on the clock of the sound that came."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from streamenc.errors import InputError, SnapshotError
from streamenc.nodes.speech.speechwatch import SpeechTold, SpeechWatch
from tests.support.talking import engines, pieces, talk

ENGINES = engines()
TICKS = 90_000


def watch(rate: int, engine: str, ticks: int = TICKS) -> SpeechWatch:
    return SpeechWatch(rate, Fraction(1, ticks), engine=engine)


@pytest.mark.parametrize("rate", [8000, 24_000, 44_100])
@pytest.mark.parametrize("engine", ENGINES)
def test_times_are_those_of_the_sound(rate: int, engine: str) -> None:
    sound, ear = talk(rate), watch(rate, engine)
    assert ear.engine == engine
    told = ear.push(np.stack((sound, sound)), 7 * TICKS)
    assert not ear.speaking
    told += ear.flush()
    assert [event.event for event in told] == ["started", "stopped"] * 2
    seconds = [event.pts / TICKS - 7 for event in told]
    assert seconds == pytest.approx([1.0, 3.5, 4.5, 6.5], abs=0.35)
    for event in told:
        assert event.pts == 7 * TICKS + round(Fraction(event.sample * TICKS, rate))


@pytest.mark.parametrize("engine", ENGINES)
def test_cut_anyhow_and_restored_anywhere(engine: str) -> None:
    rate, sound = 24_000, talk(24_000)
    whole = watch(rate, engine)
    wanted = whole.push(sound[None], 500) + whole.flush()
    ear, told, at = watch(rate, engine), [], 0
    for piece in pieces(sound, 7):
        told += ear.push(piece[None, None], 500 + at * TICKS // rate)
        at += len(piece)
        state, ear = ear.state(), watch(rate, engine)
        ear.restore(state)
        assert ear.state() == state
    assert told + ear.flush() == wanted


def test_a_gap_ends_speech_and_starts_anew() -> None:
    rate, sound = 16_000, talk(16_000)
    first, rest = sound[None, : 2 * rate], sound[None, int(5.2 * rate) :]
    ear = watch(rate, "energy", rate)
    told = ear.push(first, 0)
    assert ear.speaking
    told += ear.push(rest, 10 * rate)
    assert told[1] == SpeechTold("stopped", 2 * rate, 2 * rate, 2 * rate)
    assert told[2].event == "started" and 10 * rate <= told[2].pts < 11 * rate
    told += ear.push(rest, 10 * rate + rest.shape[1], discontinuity=True) + ear.flush()
    assert [event.event for event in told] == ["started", "stopped"] * 3
    assert [event.pts for event in told] == sorted(event.pts for event in told)
    assert not ear.ends_at(5, True)


def test_what_is_not_finite_is_silence() -> None:
    sound = talk(16_000)[None].copy()
    clean, dirty = watch(16_000, ENGINES[-1]), watch(16_000, ENGINES[-1])
    sound[0, 100:110] = 0
    told = clean.push(sound, 0) + clean.flush()
    sound[0, 100:110] = np.nan, np.inf, -np.inf, *[np.nan] * 7
    assert dirty.push(sound, 0) + dirty.flush() == told


def test_what_does_not_fit() -> None:
    ear = watch(24_000, "energy")
    with pytest.raises(InputError, match="channels, samples"):
        ear.push(np.zeros(5, np.float32), 0)
    ear.push(talk(24_000)[None, :50_000], 3)
    state = ear.state()
    with pytest.raises(SnapshotError):
        watch(48_000, "energy").restore(state)
    with pytest.raises(SnapshotError, match="malformed"):
        ear.restore(state[:-1])
    assert ear.state() == state
