"""Sound for a detector: resampled the same however it is cut, and close to soxr's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import soxr

from streamenc.errors import SnapshotError, UsageError
from streamenc.nodes.speech.narrowband import Narrowband
from tests.support.talking import pieces, talk

RATES = [8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 44_099, Fraction(48_000, 7)]


def resampled(node: Narrowband, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate([*map(node.push, parts), node.flush()])


@pytest.mark.parametrize("rate", RATES)
def test_cut_anyhow_and_restored_anywhere(rate: Fraction | int) -> None:
    sound = talk(8000)[: 8000 + 123]
    node = Narrowband(rate)
    whole = resampled(node, sound)
    assert len(whole) == int(Fraction(len(sound)) * node.out / Fraction(rate) + Fraction(1, 2))
    parts = []
    for piece in pieces(sound, 5, 700):
        parts.append(node.push(piece))
        state, node = node.state(), Narrowband(rate)
        node.restore(state)
        assert node.state() == state
    assert np.array_equal(np.concatenate([*parts, node.flush()]), whole)


@pytest.mark.parametrize("rate", [8000, 22_050, 24_000, 44_100, 48_000, 44_099])
def test_what_passes_is_where_it_was(rate: int) -> None:
    """A tone of 1 kHz, beside the same tone sampled at the other rate."""
    node = Narrowband(rate)
    seconds = np.arange(rate // 2) / rate
    made = resampled(node, np.sin(2000 * np.pi * seconds).astype(np.float32))
    wanted = np.sin(2000 * np.pi * np.arange(len(made)) / node.out)
    error = np.abs(made - wanted)[node.out // 20 : -node.out // 20]
    assert error.max() < (0 if rate == node.out else 1e-3) + 1e-6


def test_what_lies_beyond_does_not_come_back() -> None:
    for hertz in (9000, 12_000, 20_000):
        seconds = np.arange(24_000) / 48_000
        made = resampled(Narrowband(48_000), np.sin(2 * np.pi * hertz * seconds).astype("f4"))
        assert np.abs(made[800:-800]).max() < 1e-3


def test_speech_as_soxr_has_it() -> None:
    sound = talk(24_000)
    ours, theirs = resampled(Narrowband(24_000), sound), soxr.resample(sound, 24_000, 16_000)
    assert len(ours) == len(theirs)
    assert np.square(ours - theirs).mean() < 1e-3 * np.square(theirs).mean()


def test_how_much_is_held_back() -> None:
    node = Narrowband(48_000)
    assert len(node.push(np.zeros(1536 + 60, np.float32))) == 512
    assert len(resampled(node, np.zeros(0, np.float32))) == 20
    assert len(node.flush()) == 0


def test_what_does_not_fit() -> None:
    for rate in (999, 1_000_000):
        with pytest.raises(UsageError, match="768000"):
            Narrowband(rate)
    node = Narrowband(44_100)
    node.push(talk(8000)[:5000])
    state = node.state()
    with pytest.raises(SnapshotError, match="24000"):
        Narrowband(24_000).restore(state)
    random = np.random.default_rng(6)
    for _ in range(200):
        damaged = bytearray(state[: random.integers(0, len(state))])
        for at in random.integers(0, len(damaged), 3) if damaged else ():
            damaged[at] = random.integers(0, 256)
        with pytest.raises(SnapshotError):
            node.restore(bytes(damaged))
    assert node.state() == state
