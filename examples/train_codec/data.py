"""Speech to train on: folders of audio, decoded once and held in memory as 16-bit samples."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

SUFFIXES = {".flac", ".g722", ".m4a", ".mp3", ".ogg", ".opus", ".wav"}
# Crops that are quieter than this, RMS, teach little: most of them are drawn again.
QUIET = 10 ** (-55 / 20)


@dataclass(frozen=True)
class Source:
    """A folder of recordings, one after the other, and its share of each batch."""

    folder: Path
    share: float
    samples: np.ndarray
    rate: int

    @property
    def hours(self) -> float:
        return len(self.samples) / self.rate / 3600


def read(path: Path, rate: int) -> np.ndarray:
    """The recording as int16 at `rate`, mixed down to mono, (samples,)."""
    # Raw G.722 has no header that would tell its format.
    with av.open(str(path), format="g722" if path.suffix == ".g722" else None) as container:
        resampler = av.AudioResampler("s16", "mono", rate)
        parts = [
            out.to_ndarray()[0]
            for frame in container.decode(audio=0)
            for out in resampler.resample(frame)
        ]
        parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def recordings(folder: Path) -> list[Path]:
    """The audio files below `folder`, in a fixed order. Exits with a message where none is."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        sys.exit(f"{folder} holds no audio; wanted files ending in {', '.join(sorted(SUFFIXES))}")
    return found


def load_sources(folders: list[str], rate: int, held_out: int) -> tuple[list[Source], list[Path]]:
    """Reads `FOLDER` or `FOLDER=SHARE`; the first folder's last files are kept for validation.

    A share is a part of each batch. What the given ones leave, the other folders divide by their
    lengths.
    """
    read_ones, validation = [], []
    for number, text in enumerate(folders):
        path, given = _share(text)
        files = recordings(path)
        if number == 0 and held_out:
            if len(files) <= held_out:
                sys.exit(f"{path} has {len(files)} files; {held_out} are to be held out")
            files, validation = files[:-held_out], files[-held_out:]
        samples = np.concatenate([readable(file, rate) for file in files])
        if not len(samples):
            sys.exit(f"{path}: none of its {len(files)} files could be read")
        hours = len(samples) / rate / 3600
        print(f"{path}: {len(files)} files, {hours:.2f} h", file=sys.stderr, flush=True)
        read_ones.append((path, given, samples))
    lengths = [(given, len(samples)) for _, given, samples in read_ones]
    shares = divided(lengths)
    sources = [
        Source(path, share, samples, rate)
        for (path, _, samples), share in zip(read_ones, shares, strict=True)
    ]
    return sources, validation


def divided(lengths: list[tuple[float | None, int]]) -> list[float]:
    """Shares that sum up to 1, from what was asked for and, elsewhere, from lengths."""
    asked = sum(given for given, _ in lengths if given is not None)
    free = sum(length for given, length in lengths if given is None)
    if free and asked >= 1:
        sys.exit(f"the shares add up to {asked:g}: nothing is left for the folders without one")
    return [
        given / (1 if free else asked) if given is not None else (1 - asked) * length / free
        for given, length in lengths
    ]


def _share(text: str) -> tuple[Path, float | None]:
    """`FOLDER` or `FOLDER=SHARE`; a folder of that very name comes first."""
    path, _, share = text.rpartition("=")
    if not path or Path(text).is_dir():
        return Path(text), None
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        sys.exit(f"{text}: got share {share!r}; wanted a number above 0")
    return Path(path), value


def readable(path: Path, rate: int) -> np.ndarray:
    """The recording, or nothing and a message where it is damaged."""
    try:
        return read(path, rate)
    except (av.FFmpegError, IndexError, ValueError) as error:  # IndexError: it has no sound
        print(f"{path} is left out: {error}", file=sys.stderr)
        return np.zeros(0, np.int16)


class Crops:
    """Draws batches of random crops, with random gain, and now and then some noise."""

    def __init__(self, sources: list[Source], length: int, batch: int) -> None:
        self.sources, self.length, self.batch = sources, length, batch
        self.shares = np.array([source.share for source in sources])

    def draw(self, rng: np.random.Generator) -> Tensor:
        """(batch, 1, length) float32 in [-1, 1]."""
        return torch.from_numpy(np.stack([self._one(rng) for _ in range(self.batch)]))[:, None]

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        for _ in range(4):
            samples = self.sources[rng.choice(len(self.sources), p=self.shares)].samples
            start = rng.integers(0, max(1, len(samples) - self.length))
            x = samples[start : start + self.length].astype(np.float32) / 32768
            x = np.pad(x, (0, self.length - len(x)))
            if np.sqrt(np.mean(x * x)) > QUIET:
                break
        if rng.random() < 0.04:
            x = x + _noise(rng, self.length) * 10 ** rng.uniform(-3, -1)
        x = x * 10 ** (rng.uniform(-12, 6) / 20)
        return (x / max(1.0, float(np.abs(x).max()))).astype(np.float32)


def _noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """Noise of unit RMS whose spectrum falls by 0 to 6 dB per octave."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, length)
    return noise / np.sqrt(np.mean(noise * noise))
