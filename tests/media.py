"""Small sound files for tests."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np


def write_wav(path: Path, samples: np.ndarray[Any, Any], rate: int) -> Path:
    """samples: (channels, samples), float in [-1, 1]; written as 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(samples.T * 32767).astype("<i2").tobytes())
    return path
