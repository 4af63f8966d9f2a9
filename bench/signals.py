"""What is encoded: the speech clip of the examples, or something like it where that is missing, and
moving images.
"""

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


def video(
    frames: int, height: int, width: int, path: Path | None = None, *, seed: int = 0
) -> np.ndarray[Any, Any]:
    """Moving images, (3, frames, height, width) uint8.

    path  A clip, scaled to cover the size and cut to it; one that is too short runs back and forth.
          None makes them: a panning scene of textures at all scales, as natural images have them,
          in front of which objects with textures of their own move on curves; with grain.
    """
    if path is None:
        return _scene(frames, height, width, np.random.default_rng(seed))
    shots = _decoded(path, frames, height, width)
    turn = [*range(len(shots)), *range(len(shots) - 2, 0, -1)]
    return np.stack([shots[turn[i % len(turn)]] for i in range(frames)], axis=1)


def _decoded(path: Path, frames: int, height: int, width: int) -> list[np.ndarray[Any, Any]]:
    import av

    shots: list[np.ndarray[Any, Any]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = max(height / frame.height, width / frame.width)
            size = (
                max(height, round(frame.height * scale)),
                max(width, round(frame.width * scale)),
            )
            image = frame.reformat(size[1], size[0], format="rgb24").to_ndarray()
            top, left = (size[0] - height) // 2, (size[1] - width) // 2
            shots.append(image[top : top + height, left : left + width].transpose(2, 0, 1))
            if len(shots) == frames:
                break
    if not shots:
        raise ValueError(f"{path} has no frame")
    return shots


def _scene(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    tall, wide = height + height // 2 + 2, width + width // 2 + 2
    ground = _texture(tall, wide, rng)
    objects = []
    for _ in range(5):
        size = rng.uniform(0.08, 0.22) * min(height, width)
        turns = rng.uniform(0.003, 0.012, 2) * rng.choice([-1, 1], 2)
        skin = _texture(height, width, rng) * rng.uniform(0.5, 1, (3, 1, 1)).astype(np.float32)
        objects.append((size, turns, rng.uniform(0, 1, 2), rng.uniform(0.6, 1.6), skin))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    speed = rng.uniform(0.8, 2.0, 2) * max(1, min(height, width) / 256)
    out = np.empty((3, frames, height, width), np.uint8)
    for t in range(frames):
        # The camera goes back and forth, at a speed that is no whole number of pixels.
        at = [_bounced(t * v, room - 2) for v, room in zip(speed, (tall - height, wide - width))]  # noqa: B905
        image = _shifted(ground, at[0], at[1], height, width)
        for size, turns, phase, ratio, skin in objects:
            y, x = (0.5 + 0.42 * np.sin(2 * np.pi * (turns * t + phase))) * (height, width)
            distance = np.hypot(rows - y, (columns - x) / ratio)
            cover = np.clip((size - distance) / 1.5 + 0.5, 0, 1)
            image = image + cover * (np.roll(skin, (int(y), int(x)), (1, 2)) - image)
        light = 1 + 0.05 * np.sin(2 * np.pi * t / 97)
        grain = rng.normal(scale=1.2, size=image.shape)
        out[:, t] = (255 * light * image + grain).clip(0, 255).astype(np.uint8)
    return out


def _bounced(distance: float, room: int) -> float:
    """Along a way of length `room`, back and forth."""
    return room - abs(distance % (2 * room) - room) if room > 0 else 0.0


def _shifted(
    image: np.ndarray[Any, Any], y: float, x: float, height: int, width: int
) -> np.ndarray[Any, Any]:
    """The part of `image` from there on, between its pixels where need be."""
    top, left = int(y), int(x)
    below, beside = y - top, x - left
    part = image[:, top : top + height + 1, left : left + width + 1]
    part = part[:, :-1] * (1 - below) + part[:, 1:] * below
    return part[..., :-1] * (1 - beside) + part[..., 1:] * beside


def _texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(3, height, width) float32 in [0, 1]: amplitudes fall with frequency, as in nature."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falls = 1 / np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    shared = np.fft.rfft2(rng.normal(size=(height, width)))
    colours = np.fft.rfft2(rng.normal(size=(3, height, width)))
    waves = np.fft.irfft2((shared + 0.25 * colours) * falls**1.3, s=(height, width))
    waves /= waves.std(axis=(1, 2), keepdims=True)
    # Soft steps give edges, which a sum of waves alone has not.
    return (0.5 + 0.33 * np.tanh(1.5 * waves)).astype(np.float32)
