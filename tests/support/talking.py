"""Sound with speech in it, and without: for what detects speech."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from streamenc.nodes.speech import silero

Samples = np.ndarray[Any, Any]

CLIP = Path(__file__).parents[2] / "streamenc" / "verify" / "speech.flac"
ENGINES = ["energy", "silero"]
SILERO_MISSING = "Silero's detector is not installed (the extra `vad`)"


def engines() -> list[str]:
    return ENGINES if silero.is_installed() else ENGINES[:1]


@cache
def talk(rate: int, pause_seconds: float = 1.0) -> Samples:
    """A pause, 2.5 s of speech, a pause, 2 s of speech, and a pause; (samples,) float32.

    In the pauses is the noise of a quiet room.
    """
    clip, clip_rate = soundfile.read(CLIP, dtype="float32")
    speech = soxr.resample(clip, clip_rate, rate).astype(np.float32)
    pause = np.zeros(round(pause_seconds * rate), np.float32)
    first, second = speech[: round(2.5 * rate)], speech[round(2.5 * rate) : round(4.5 * rate)]
    whole = np.concatenate((pause, first, pause, second, pause))
    return whole + np.random.default_rng(0).normal(0, 3e-4, len(whole)).astype(np.float32)


def pieces(samples: Samples, seed: int, most: int = 5000) -> list[Samples]:
    """Cut anywhere, also into nothing; the second axis is time, or the only one."""
    random, cuts, at = np.random.default_rng(seed), [], 0
    while at < samples.shape[-1]:
        cuts.append(at)
        at += int(random.integers(0, 2) and random.integers(1, most))
    return np.split(samples, cuts[1:], axis=-1)
