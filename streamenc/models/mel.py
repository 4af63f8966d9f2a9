"""Mel: streaming log-mel and magnitude spectrograms on the exact grid of the whole recording."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from streamenc.errors import UsageError
from streamenc.layers.stft import STFT
from streamenc.layers.streamed import Span
from streamenc.models.model import Model
from streamenc.options import choice, flag, integer, number
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State


@dataclass(frozen=True, slots=True)
class MelOptions:
    """What a spectrogram is made of; the defaults are the generic preset.

    That one has the rate of the codecs, so that one source feeds both without a resampler, the
    classic 25 ms windows every 10 ms, and 8 frames for each of Mimi's.

    rate        Hz, of the audio.
    n_fft       Length of the transform, in samples; hop <= win_length <= n_fft.
    win_length  Length of the window, in samples; None is n_fft.
    hop         Samples from frame to frame.
    bands       Mel bands; 0 for the linear spectrogram of n_fft // 2 + 1 bins.
    scale       "htk" or "slaney".
    norm        "slaney" gives each band unit area, None unit height.
    fmin, fmax  Hz; fmax None is half the rate.
    power       1 for magnitudes, 2 for energies.
    log         "none", "ln", "log10", or "whisper": log10, raised to at least log_max - 8, and then
                (x + 4) / 4.
    floor       The least value before the logarithm.
    log_max     For log="whisper", what stands for the log10 of the clip's loudest bin, which a
                stream cannot know; None is 1.5.
    centred     Frame k lies around sample k * hop and the ends are reflected; else it starts there.
    drop_last   Without the last frame, as Whisper has it.
    window      "hann", "hamming", "blackman" (all periodic) or "rectangular".
    """

    rate: int = 24_000
    n_fft: int = 1024
    win_length: int | None = 600
    hop: int = 240
    bands: int = 80
    scale: str = "htk"
    norm: str | None = None
    fmin: float = 0.0
    fmax: float | None = None
    power: int = 2
    log: str = "ln"
    floor: float = 1e-10
    log_max: float | None = None
    centred: bool = True
    drop_last: bool = False
    window: str = "hann"


_WHISPER = MelOptions(
    rate=16_000,
    n_fft=400,
    win_length=400,
    hop=160,
    scale="slaney",
    norm="slaney",
    log="whisper",
    drop_last=True,
)
PRESETS = {"": MelOptions(), "whisper": _WHISPER, "whisper-128": replace(_WHISPER, bands=128)}

WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hann": lambda length: torch.hann_window(length, dtype=torch.float64),
    "hamming": lambda length: torch.hamming_window(length, dtype=torch.float64),
    "blackman": lambda length: torch.blackman_window(length, dtype=torch.float64),
    "rectangular": lambda length: torch.ones(length, dtype=torch.float64),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "scale": ("htk", "slaney"),
    "norm": ("none", "slaney"),
    "log": ("none", "ln", "log10", "whisper"),
    "window": tuple(WINDOWS),
}
# Where VoxtralRealtime, a causal descendant of Whisper's encoder, fixes it.
WHISPER_LOG_MAX = 1.5
WHISPER_LOG_RANGE = 8.0
MAX_N_FFT = 1 << 20
# What numbers may be by themselves; how they go together is checked after that.
RANGES = {
    "rate": (1, 1_000_000),
    "n_fft": (2, MAX_N_FFT),
    "win_length": (1, MAX_N_FFT),
    "hop": (1, MAX_N_FFT),
    "bands": (0, MAX_N_FFT),
    "power": (1, 2),
    "fmin": (0, 500_000),
    "fmax": (0, 500_000),
    "floor": (0, 1_000_000),
    "log_max": (-1000, 1000),
}


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a preset promises."""
    return load(variant, None, "encoder")[0].spec


def load(name: str, checkpoint: None, part: str, **options: Any) -> tuple[MelEncoder, None]:
    """The encoder of a preset: "" (generic), "whisper" or "whisper-128"; there is no decoder.

    options  Fields of MelOptions, also as strings; they override the preset.
    Raises UsageError for an unknown preset or option, and for values that do not go together.
    """
    if part == "decoder":
        raise UsageError(
            "mel has no decoder: a spectrogram does not keep the phase; load the encoder"
        )
    if name not in PRESETS:
        known = ", ".join(f"mel:{preset}" for preset in PRESETS if preset)
        raise UsageError(f"mel has no preset {name!r}; wanted mel, or one of {known}")
    types = {field.name: str(field.type) for field in fields(MelOptions)}
    if unknown := options.keys() - types.keys():
        raise UsageError(
            f"mel has no option {', '.join(sorted(unknown))}; it takes {', '.join(sorted(types))}"
        )
    given = {key: _converted(key, types[key], value) for key, value in options.items()}
    chosen = replace(PRESETS[name], **given)
    if "n_fft" in given and "win_length" not in given:
        # A transform of another length than the preset's has its own window, not the preset's.
        chosen = replace(chosen, win_length=None)
    _check(chosen, given)
    return MelEncoder(chosen), None


def _converted(key: str, wanted: str, value: Any) -> Any:
    """`value` as the option's type; None also as text. Raises UsageError."""
    text = str(value).strip().lower()
    if text in ("none", "") and (wanted.endswith("None") or key == "bands"):
        return 0 if key == "bands" else None
    if wanted.startswith("int"):
        return integer(key, value, *RANGES[key])
    if wanted.startswith("float"):
        return number(key, value, *RANGES[key])
    if wanted == "bool":
        return flag(key, value)
    return choice(key, text, CHOICES[key])


def _check(o: MelOptions, given: dict[str, Any]) -> None:
    win_length, fmax = _win_length(o), _fmax(o)
    if not (o.rate >= 1 and 2 <= o.n_fft <= MAX_N_FFT and 1 <= o.hop <= win_length <= o.n_fft):
        raise UsageError(
            f"mel: rate {o.rate}, hop {o.hop}, win_length {win_length}, n_fft {o.n_fft}; wanted a "
            f"positive rate and 1 <= hop <= win_length <= n_fft <= {MAX_N_FFT}, n_fft at least 2: "
            "with longer hops samples would fall between two frames"
        )
    if not 0 <= o.bands <= o.n_fft:
        raise UsageError(f"mel: bands is {o.bands}; wanted 0 (linear) to n_fft ({o.n_fft})")
    if not 0 <= o.fmin < fmax <= o.rate / 2:
        raise UsageError(
            f"mel: fmin {o.fmin:g} and fmax {fmax:g} Hz; wanted 0 <= fmin < fmax <= "
            f"{o.rate / 2:g}, half the rate"
        )
    if o.floor <= 0:
        raise UsageError(
            f"mel: floor is {o.floor:g}; wanted more than 0, as its logarithm is taken"
        )
    idle = given.keys() & {"scale", "norm", "fmin", "fmax"} if not o.bands else set()
    if o.log != "whisper":
        idle |= given.keys() & {"log_max"}
    if idle:
        raise UsageError(
            f"mel: {', '.join(sorted(idle))} would have no effect with bands={o.bands} and "
            f"log={o.log!r}; leave it out"
        )


def _win_length(o: MelOptions) -> int:
    return o.n_fft if o.win_length is None else o.win_length


def _fmax(o: MelOptions) -> float:
    return o.rate / 2 if o.fmax is None else o.fmax


class MelEncoder(Model):
    """(batch, 1, samples) float -> (batch, bands or bins, frames).

    It has no weights, only buffers: the window and the filterbank. They are made in float64, so
    that casting down to what a user asks for is their only rounding.

    State: that of STFT.
    """

    filters: Tensor | None

    def __init__(self, options: MelOptions) -> None:
        super().__init__()
        self.options = options
        window = WINDOWS[options.window](_win_length(options))
        self.stft = STFT(
            window,
            options.n_fft,
            options.hop,
            centred=options.centred,
            drop_last=options.drop_last,
        )
        filters = filterbank(options) if options.bands else None
        self.register_buffer("filters", filters)
        self.log_max = WHISPER_LOG_MAX if options.log_max is None else options.log_max
        self.spec = self._spec()

    @property
    def steps(self) -> Steps:
        return self.stft.steps

    def reach(self, first: int, last: int) -> Span:
        return self.stft.reach(first, last)

    def _spec(self) -> StreamSpec:
        o = self.options
        notes = []
        if o.log == "whisper":
            notes.append(
                "the grid and all bins above the floor are exact; the floor lies below "
                f"log_max = {self.log_max:g}, not below the clip's loudest bin"
            )
        if self.filters is not None and (empty := int((self.filters.sum(dim=1) == 0).sum())):
            notes.append(
                f"{empty} of {o.bands} bands are too narrow to hold a bin of n_fft {o.n_fft}"
            )
        return StreamSpec(
            name="mel",
            input=Port("audio", Fraction(o.rate), 1),
            output=Port("features", Fraction(o.rate, o.hop), o.bands or o.n_fft // 2 + 1),
            steps=self.steps,
            equality="window" if o.log == "whisper" else "offline",
            receptive_field=self.receptive_field(),
            note="; ".join(notes),
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        o = self.options
        spectrum, following = self.stft.step(x, state, end=end)
        y = spectrum.abs()
        if o.power == 2:
            y = y.square()
        if self.filters is not None:
            y = self.filters @ y
        if o.log == "ln":
            y = y.clamp_min(o.floor).log()
        elif o.log != "none":
            y = y.clamp_min(o.floor).log10()
        if o.log == "whisper":
            y = (y.clamp_min(self.log_max - WHISPER_LOG_RANGE) + 4) / 4
        return y, following

    def prepare(self) -> None:
        """Keeps to float32 at least: no FFT on the CPU takes less, and 16 bits spoil the log."""
        super().prepare()
        if self.stft.window.dtype in (torch.float16, torch.bfloat16):
            exact = MelEncoder(self.options).to(self.stft.window.device, torch.float32)
            self.stft.window, self.filters = exact.stft.window, exact.filters


def filterbank(o: MelOptions) -> Tensor:
    """Triangles over band centres that are evenly spaced in mel: (bands, bins), float64."""
    to_mel, to_hertz = _SCALES[o.scale]
    low_mel, high_mel = to_mel(torch.tensor([o.fmin, _fmax(o)], dtype=torch.float64))
    edges = to_hertz(torch.linspace(low_mel, high_mel, o.bands + 2, dtype=torch.float64))[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(o.n_fft // 2 + 1, dtype=torch.float64) * (o.rate / o.n_fft)
    filters = torch.minimum(
        (bins - low) / (centre - low), (high - bins) / (high - centre)
    ).clamp_min(0)
    return filters * (2 / (high - low)) if o.norm == "slaney" else filters


def hertz_to_mel_htk(hertz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hertz / 700)


def mel_to_hertz_htk(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


# Slaney's scale is linear up to 1 kHz, mel 15, and logarithmic above: 27 mel for a factor of 6.4.
_SLANEY_LOG_STEP = math.log(6.4) / 27


def hertz_to_mel_slaney(hertz: Tensor) -> Tensor:
    above = 15 + torch.log(hertz.clamp_min(1000) / 1000) / _SLANEY_LOG_STEP
    return torch.where(hertz < 1000, hertz * 3 / 200, above)


def mel_to_hertz_slaney(mel: Tensor) -> Tensor:
    above = 1000 * torch.exp((mel - 15).clamp_min(0) * _SLANEY_LOG_STEP)
    return torch.where(mel < 15, mel * 200 / 3, above)


_SCALES = {
    "htk": (hertz_to_mel_htk, mel_to_hertz_htk),
    "slaney": (hertz_to_mel_slaney, mel_to_hertz_slaney),
}
