"""What is encoded: the speech clip of the examples, or something like it where that is missing."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

CLIP = Path(__file__).parent.parent / "examples" / "data" / "speech.flac"
SYNTHETIC_RATE = 22_050


def speech(rate: int, samples: int) -> np.ndarray[Any, Any]:
    """Mono, (samples,) float32 in [-1, 1] at `rate` Hz; a clip that is too short is repeated."""
    audio, clip_rate = _clip()
    if clip_rate != rate:
        import soxr

        audio = soxr.resample(audio, clip_rate, rate)
    return np.resize(audio, samples).astype(np.float32)


def write_wav(path: Path, seconds: float) -> Path:
    """The clip in its own sample rate, 16 bits, of `seconds`."""
    audio, rate = _clip()
    audio = np.resize(audio, round(seconds * rate))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((audio * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    return path


def _clip() -> tuple[np.ndarray[Any, Any], int]:
    if not CLIP.exists():
        return chirp_and_noise(13 * SYNTHETIC_RATE, SYNTHETIC_RATE), SYNTHETIC_RATE
    import av

    with av.open(str(CLIP)) as container:
        pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    audio = np.concatenate(pieces, axis=1).mean(axis=0)
    return (audio / (32768 if audio.max() > 1 else 1)).astype(np.float32), int(rate)


def chirp_and_noise(samples: int, rate: int) -> np.ndarray[Any, Any]:
    """A voice of sorts: harmonics of a gliding pitch, in syllables, over soft noise."""
    t = np.arange(samples) / rate
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * t)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * np.sin(2 * np.pi * 2 * t) ** 2
    noise = np.random.default_rng(0).normal(size=samples)
    return (0.2 * voice + 0.01 * noise).astype(np.float32)
