"""Small files of sound and images for tests."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import av
import numpy as np


def write_wav(path: Path, samples: np.ndarray[Any, Any], rate: int) -> Path:
    """samples: (channels, samples), float in [-1, 1]; written as 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(samples.T * 32767).astype("<i2").tobytes())
    return path


def write_film(
    path: Path,
    *,
    seconds: float = 2.0,
    width: int = 64,
    height: int = 48,
    fps: int = 25,
    rate: int = 16_000,
) -> Path:
    """A film of moving stripes and a rising tone, H.264 and AAC in what the ending says."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, width=width, height=height)
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=rate, layout="mono")
        for index in range(round(seconds * fps)):
            x = np.arange(width) + np.arange(height)[:, None] + 5 * index
            wave = 128 + 90 * np.sin(x[..., None] / np.array([5.0, 7.0, 11.0]))
            image = av.VideoFrame.from_ndarray(wave.astype(np.uint8), "rgb24")
            image.pts = index
            container.mux(video.encode(image))
        times = np.arange(round(seconds * rate)) / rate
        tone = (0.3 * np.sin(1500 * times**2)).astype(np.float32)[None]
        for start in range(0, tone.shape[1], 1024):
            block = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], "fltp", "mono")
            block.sample_rate, block.pts = rate, start
            container.mux(sound.encode(block))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path
