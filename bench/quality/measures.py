"""What compares two signals: recordings from a folder, PESQ, STOI, SI-SDR, ViSQOL, lag, means.

All of it is mono at 16 kHz, as the measures want it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from streamenc.errors import InputError, MediaError, UsageError
from streamenc.io.media.audiosource import MediaSource

Audio = np.ndarray[Any, Any]  # (samples,) float32 in [-1, 1]

RATE = 16_000
ENDINGS = {".aac", ".aiff", ".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"}
PESQ_LEAST = 1.04  # of P.862.2, for a raw score of -0.5
SI_SDR_LIMIT_DB = 120.0  # of equal signals, instead of infinity
RESAMPLES = 2000
LAG_SECONDS = 0.05  # how far off a decoded signal is looked for


@dataclass(frozen=True, slots=True)
class Clip:
    """An utterance: its file's name within the folder, (samples,) float32 and their rate in Hz."""

    name: str
    audio: Audio
    rate: int

    def at(self, rate: int) -> Audio:
        """Its samples at `rate` Hz."""
        return resampled(self.audio, self.rate, rate)


def read_clips(folder: Path, seconds: float, limit: int | None = None) -> list[Clip]:
    """The first `seconds` of the first `limit` recordings below `folder`, sorted by name.

    Raises MediaError where there are none, or one cannot be read.
    """
    if not folder.is_dir():
        raise MediaError(f"no folder {str(folder)!r}; --speech takes a folder of recordings")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not paths:
        raise MediaError(f"{str(folder)!r} holds no recordings ({', '.join(sorted(ENDINGS))})")
    return [_read_clip(path, folder, seconds) for path in paths[:limit]]


def _read_clip(path: Path, folder: Path, seconds: float) -> Clip:
    source = MediaSource(str(path))
    rate = int(source.open_blocking().rate)
    wanted, pieces, have = round(seconds * rate), [], 0
    try:
        while have < wanted and (frame := source.read()) is not None:
            pieces.append(frame.data.mean(axis=0))
            have += frame.data.shape[1]
    finally:
        source.close_blocking()
    return Clip(path.relative_to(folder).as_posix(), np.concatenate(pieces)[:wanted], rate)


def resampled(audio: Audio, rate: int, wanted: int) -> Audio:
    """(samples,) from `rate` to `wanted` Hz, with no delay."""
    return audio if rate == wanted else soxr.resample(audio, rate, wanted)


def fitted(audio: Audio, samples: int) -> Audio:
    """Cut, or filled up with silence, to `samples`."""
    return np.pad(audio[:samples], (0, max(0, samples - len(audio))))


def measure(reference: Audio, decoded: Audio) -> dict[str, float | None]:
    """PESQ-wb, STOI and SI-SDR (dB) of one utterance: `pesq`, `stoi`, `si_sdr_db`.

    reference, decoded  (samples,) floats at 16 kHz, equally long.
    None where a measure is not defined: no speech is found, or too little of it.
    Raises InputError where the lengths differ or samples are not finite, UsageError where a package
    is missing.
    """
    if reference.shape != decoded.shape or reference.ndim != 1:
        raise InputError(
            f"got {reference.shape} and {decoded.shape}; wanted two signals of one length"
        )
    if not (np.isfinite(reference).all() and np.isfinite(decoded).all()):
        raise InputError("got samples that are not finite; there is no quality to measure")
    if not reference.any():
        return {"pesq": None, "stoi": None, "si_sdr_db": None}
    return {
        "pesq": pesq_wb(reference, decoded),
        "stoi": stoi(reference, decoded),
        "si_sdr_db": si_sdr_db(reference, decoded),
    }


def pesq_wb(reference: Audio, decoded: Audio) -> float | None:
    """ITU-T P.862.2; None where the original has no speech, or is under a quarter of a second.

    Where nothing was decoded, it is the least that there is: a mute codec gains nothing by it.
    """
    pesq = required("pesq")
    try:
        return float(pesq.pesq(RATE, reference, decoded, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return None
    except ValueError:
        # It divides by the power of what was decoded, in float32.
        if np.square(decoded, dtype=np.float32).any():
            raise
        return PESQ_LEAST


def stoi(reference: Audio, decoded: Audio) -> float | None:
    """Taal et al. 2011; None where less than 0.4 s is louder than silence."""
    pystoi = required("pystoi")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, decoded, RATE))
        except RuntimeWarning:
            return None


def si_sdr_db(reference: Audio, decoded: Audio) -> float:
    """Le Roux et al. 2019, equation 3; limited to +-120 dB."""
    reference, decoded = reference.astype(np.float64), decoded.astype(np.float64)
    target = (reference @ decoded) / (reference @ reference) * reference
    distortion = decoded - target
    kept, lost = float(target @ target), float(distortion @ distortion)
    if not kept or not lost:
        return SI_SDR_LIMIT_DB if kept else -SI_SDR_LIMIT_DB
    return min(SI_SDR_LIMIT_DB, max(-SI_SDR_LIMIT_DB, 10 * math.log10(kept / lost)))


class Visqol:
    """ViSQOL in speech mode, with the mapping that Google's program has by default.

    The polynomial that the package falls back to gives 3.5 where this one gives 2.2.
    Raises UsageError where a package is missing.
    """

    def __init__(self) -> None:
        required("ai_edge_litert")
        self._api = required("visqol").VisqolApi()
        self._api.create(mode="speech", use_lattice_model=True)

    def __call__(self, reference: Audio, decoded: Audio) -> float | None:
        """Of two signals as `measure` takes them; None where no speech is found."""
        if not reference.any():
            return None
        try:
            with np.errstate(invalid="ignore", divide="ignore"):
                score = float(self._api.measure_from_arrays(reference, decoded, RATE).moslqo)
        except ValueError:  # shorter than its patches, or none of them is active
            return None
        return score if math.isfinite(score) else None


def lag_samples(reference: Audio, decoded: Audio, most: int = round(LAG_SECONDS * RATE)) -> int:
    """By how many samples `decoded` comes late, where the two correlate best; +-`most`."""
    size = max(len(reference), len(decoded)) + most
    spectrum = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(reference, size))
    correlation = np.fft.irfft(spectrum, size)
    lags = np.array(sorted(range(-most, most + 1), key=abs))  # where all are equal, none
    return int(lags[np.argmax(correlation[lags])])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over utterances, with the interval in which it lies with 95 % confidence.

    The interval is a percentile bootstrap over utterances; that a folder holds few speakers is not
    in it.

    count    Utterances that it is of.
    skipped  Those that the measure is not defined for.
    """

    mean: float
    low: float
    high: float
    count: int
    skipped: int = 0


def estimate(values: Sequence[float | None], weights: Sequence[float] | None = None) -> Estimate:
    """The mean of those that are no None, or sum of values / sum of weights, as a WER is."""
    pairs = [(v, w) for v, w in zip(values, weights or repeat(1.0), strict=False) if v is not None]
    skipped = len(values) - len(pairs)
    tops, bottoms = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if not bottoms.sum():
        return Estimate(math.nan, math.nan, math.nan, 0, len(values))
    picks = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = tops[picks].sum(axis=1) / bottoms[picks].sum(axis=1)
    low, high = np.nanpercentile(means, (2.5, 97.5))
    mean = tops.sum() / bottoms.sum()
    return Estimate(float(mean), float(low), float(high), len(pairs), skipped)


def required(module: str) -> Any:
    """A module of the extras. Raises UsageError where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        extra = "plot" if module == "matplotlib" else "quality"
        instead = "; --no-visqol goes on without it" * (module in ("visqol", "ai_edge_litert"))
        raise UsageError(
            f"{module} is missing: pip install 'streamenc[{extra}]'{instead}"
        ) from error
