"""The detector that needs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from streamenc.errors import SnapshotError
from streamenc.nodes.speech.loudness import Loudness


def noise(level: float, windows: int, seed: int = 0) -> np.ndarray:
    sound = np.random.default_rng(seed).normal(0, level, (windows, 512))
    return sound.astype(np.float32)


def test_what_rises_above_the_noise() -> None:
    judge = Loudness(16_000)
    quiet = [judge.judge(window) for window in noise(0.002, 60)]
    assert max(quiet) < 0.2
    assert judge.judge(noise(0.002 * 10 ** (9 / 20), 1)[0]) == pytest.approx(0.5, abs=0.1)
    assert judge.judge(noise(0.02, 1)[0]) == 1.0
    # A noise that lasts becomes the floor, and when it ends, what was quiet is quiet again.
    loud = [judge.judge(window) for window in noise(0.02, 120)]
    assert loud[60] == 1.0 and max(loud[100:]) < 0.2
    assert max(judge.judge(window) for window in noise(0.002, 30)) == 0.0
    assert judge.judge(noise(0.02, 1)[0]) == 1.0


def test_silence_is_no_speech_and_neither_is_an_offset() -> None:
    judge = Loudness(16_000)
    assert judge.judge(np.zeros(512, np.float32)) == 0.0
    assert judge.judge(np.full(512, 0.5, np.float32)) == 0.0
    assert judge.judge(noise(5e-4, 1)[0]) == 0.0  # -66 dB
    assert judge.judge(noise(0.1, 1)[0]) == 1.0


def test_its_state_is_bounded() -> None:
    judge = Loudness(8000)
    for window in noise(0.01, 500):
        judge.judge(window[:256])
    state = judge.state()
    assert len(state) == 8 * 94
    other = Loudness(8000)
    other.restore(state)
    assert other.judge(noise(0.02, 1)[0, :256]) == judge.judge(noise(0.02, 1)[0, :256])
    for wrong in (state + state, state[:-1]):
        with pytest.raises(SnapshotError, match="levels of 94"):
            other.restore(wrong)
