"""nano: a small causal speech codec, 16 kHz, 50 frames a second, whose weights come with streamenc.

Audio -> short-time spectra, two for each frame of 320 samples -> causal ConvNeXt blocks -> latents
-> up to 16 codebooks of 1,024 entries (500 bit/s each). Decoding mirrors it: blocks -> magnitude
and direction of each bin -> inverse transform, overlapped and added.

Windows are 480 samples long and start every 160. Frame t describes the windows that start at 320 t
and 320 t + 160; the second one ends 320 samples after the frame, so the encoder looks 320 samples
ahead and the decoder not at all: the algorithmic latency is 640 samples, 40 ms. A signal of N
samples has ceil(N / 320) frames; zeros follow its end.

Layouts: what `examples/train_codec` writes when it trains such models, a folder with a config.json
and a model.safetensors, whose matrices may be stored as int8 with a scale per row.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.checkpoints.configs import whole_number
from streamenc.errors import CheckpointError
from streamenc.layers.conv.causal import CausalConv1d, CausalConvTranspose1d
from streamenc.layers.conv.convnext import ConvNeXt
from streamenc.layers.quantize import ResidualVQ
from streamenc.layers.streamed import Chain, Exact, Exportable, Span, Streamed
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State
from streamenc_kernels import compress_spectrum

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

_CODEBOOKS = "quantizer.codebooks"
_SCALE = ".scale"

Array = np.ndarray[Any, Any]

# Spectra are compressed by this power, so that weak bins count as they do for the ear.
COMPRESSION = 0.3
# Keeps derivatives finite at silence; about the size of 16-bit rounding in one bin, squared.
SILENCE = 1e-10
# What a config may ask for; it is untrusted.
MAX_LAYERS, MAX_SIZE = 64, 1 << 16


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """The shape of a model.

    sample_rate   Hz.
    hop           Samples from window to window; a window has three hops, a frame two.
    encoder_width, encoder_blocks, encoder_hidden  Of the blocks at the rate of frames.
    spectral_width, spectral_hidden  Of the encoder's one block at the rate of windows.
    decoder_width, decoder_blocks, decoder_hidden  Of the blocks at the rate of frames.
    synthesis_width, synthesis_blocks, synthesis_hidden  Of those at the rate of windows.
    latent        Channels that are quantised.
    codebooks, entries  Levels of the quantiser, and entries of each.
    """

    sample_rate: int = 16_000
    hop: int = 160
    spectral_width: int = 192
    spectral_hidden: int = 576
    encoder_width: int = 256
    encoder_blocks: int = 3
    encoder_hidden: int = 768
    decoder_width: int = 320
    decoder_blocks: int = 3
    decoder_hidden: int = 896
    synthesis_width: int = 256
    synthesis_blocks: int = 3
    synthesis_hidden: int = 768
    latent: int = 64
    codebooks: int = 16
    entries: int = 1024

    @property
    def frame(self) -> int:
        """Samples of a frame."""
        return 2 * self.hop

    @property
    def bins(self) -> int:
        return 3 * self.hop // 2 + 1

    @classmethod
    def of(cls, config: dict[str, Any]) -> NanoConfig:
        """The fields that are there, checked. Raises ValueError."""
        given = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        for name, value in given.items():
            most = MAX_LAYERS if name.endswith(("blocks", "books")) else MAX_SIZE
            whole_number(name, value, most)
        return cls(**given)


class Analysis(Streamed, Exact, Exportable):
    """(batch, 1, samples) -> compressed spectra (batch, 3 * bins, windows).

    Of each bin the real and imaginary part and the magnitude. The first step takes at least two
    frames, later ones whole frames; at the end zeros fill the last frame and the window after it.

    State: the last frame, (batch, 1, 2 * hop), which is not yet encoded.
    """

    window: Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop
        # A full-scale sine has magnitude 1/2: 1.5 hop is the sum of a window.
        self.register_buffer("window", _window(hop) / (1.5 * hop), persistent=False)

    @property
    def steps(self) -> Steps:
        return Steps(4 * self.hop, 2 * self.hop, 2, 2)

    def reach(self, first: int, last: int) -> Span:
        return first * self.hop, (last + 3) * self.hop - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if isinstance(state, Tensor):
            x = torch.cat((state, x), dim=-1)
        frame = 2 * self.hop
        if end:
            x = F.pad(x, (0, -x.shape[-1] % frame + frame))
        assert x.shape[-1] % frame == 0 and x.shape[-1] >= 2 * frame
        windows = x[:, 0].to(self.window.dtype).unfold(-1, 3 * self.hop, self.hop)
        transform = _rfft_product if self._exported else _rfft
        real, imag = transform(windows * self.window)
        spectra = compress_spectrum(real, imag, COMPRESSION, SILENCE).to(x.dtype).transpose(1, 2)
        return spectra, x[..., x.shape[-1] - frame :].clone()

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        assert isinstance(state, Tensor)
        spectra = plan.transform(x, self.window, state, self.hop)
        return plan.compressed_spectra(spectra, COMPRESSION, SILENCE)


class Synthesis(Streamed, Exact, Exportable):
    """(batch, 3 * bins, windows) -> (batch, 1, hop * windows).

    Of each bin the logarithm of the magnitude, and two numbers whose direction is the phase. The
    magnitude is limited to what a full-scale signal can have, so the output is bounded.

    State: what the last two windows add to the next two hops, (batch, 2, hop).
    """

    window: Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop
        # 9/8 is the sum of the squared windows over any sample; 1.5 hop undoes Analysis.
        self.register_buffer("window", _window(hop) * (1.5 * hop / 1.125), persistent=False)

    @property
    def steps(self) -> Steps:
        return Steps(lead_out=self.hop, hop_out=self.hop)

    def reach(self, first: int, last: int) -> Span:
        return max(0, first // self.hop - 2), last // self.hop

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        magnitude, real, imag = x.to(self.window.dtype).transpose(1, 2).chunk(3, dim=-1)
        scale = magnitude.clamp(max=0).exp() / (real.square() + imag.square() + SILENCE).sqrt()
        transform = _irfft_product if self._exported else _irfft
        pieces = transform(real * scale, imag * scale, 3 * self.hop) * self.window
        parts = pieces.reshape(*pieces.shape[:-1], 3, self.hop)
        batch, windows = x.shape[0], x.shape[2]
        padded = [F.pad(parts[:, :, late], (0, 0, late, 2 - late)) for late in range(3)]
        y = padded[0] + padded[1] + padded[2]
        if isinstance(state, Tensor):
            y = y + F.pad(state, (0, 0, 0, windows))
        samples = y[:, :windows].reshape(batch, 1, windows * self.hop)
        return samples.clamp(-1, 1).to(x.dtype), y[:, windows:].contiguous()

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        assert isinstance(state, Tensor)
        pieces = plan.inverse_transform(plan.directed_spectra(x, SILENCE), self.window)
        return plan.overlap(pieces, state, limit=1)


class NanoEncoder(Model):
    """Audio -> latents (batch, latent, frames), a frame for each 320 samples; `after` quantises."""

    def __init__(self, config: NanoConfig, quantizer: ResidualVQ) -> None:
        super().__init__()
        c = self.config = config
        self.chain = Chain(
            [
                Analysis(c.hop),
                CausalConv1d(3 * c.bins, c.spectral_width, 1),
                ConvNeXt(c.spectral_width, c.spectral_hidden),
                CausalConv1d(c.spectral_width, c.encoder_width, 2, 2),
                *(ConvNeXt(c.encoder_width, c.encoder_hidden) for _ in range(c.encoder_blocks)),
                CausalConv1d(c.encoder_width, c.latent, 1),
            ]
        )
        self.quantizer = quantizer
        self.spec = StreamSpec(
            name="nano",
            input=Port("audio", Fraction(c.sample_rate), 1),
            output=Port("codes", Fraction(c.sample_rate, c.frame), c.codebooks, "uint16"),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=c.entries,
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.config.latent, 0), None
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        levels = None if codebooks is None else self.check_codebooks(codebooks)
        return self.quantizer.encode(y, levels)


class NanoDecoder(Model):
    """Codes -> audio, 320 samples for each frame; any number of codebooks, which may change."""

    def __init__(self, config: NanoConfig, quantizer: ResidualVQ) -> None:
        super().__init__()
        c = self.config = config
        self.quantizer = quantizer
        self.chain = Chain(
            [
                CausalConv1d(c.latent, c.decoder_width, 3),
                *(ConvNeXt(c.decoder_width, c.decoder_hidden) for _ in range(c.decoder_blocks)),
                CausalConvTranspose1d(c.decoder_width, c.synthesis_width, 2, 2),
                *(
                    ConvNeXt(c.synthesis_width, c.synthesis_hidden)
                    for _ in range(c.synthesis_blocks)
                ),
                CausalConv1d(c.synthesis_width, 3 * c.bins, 1),
                Synthesis(c.hop),
            ]
        )
        self.spec = StreamSpec(
            name="nano",
            input=Port("codes", Fraction(c.sample_rate, c.frame), c.codebooks, "uint16"),
            output=Port("audio", Fraction(c.sample_rate), 1),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=c.entries,
        )

    def before(self, x: Signal) -> Tensor:
        codes = self.check_codes(super().before(x))
        return self.quantizer.decode(codes).to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], 1, 0), state
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are nano's."""
    return _CODEBOOKS in checkpoint and "decoder.layers.0.weight" in checkpoint


def published_spec(variant: str) -> StreamSpec:
    """What the encoder that comes with streamenc promises; it has no variants."""
    config = NanoConfig()
    with torch.device("meta"):
        quantizer = ResidualVQ(config.codebooks, config.entries, config.latent)
        return NanoEncoder(config, quantizer).spec


def load(name: str, checkpoint: Checkpoint, part: str) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them, sharing their codebooks."""
    try:
        config = NanoConfig.of(checkpoint.config)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name}: its config cannot be used: {error}") from error
    with torch.device("meta"):
        quantizer, encoder, decoder = _parts(config, part)
    fill(quantizer, {"codebooks": partial(_read, _CODEBOOKS)}, checkpoint)
    for side, model in (("encoder", encoder), ("decoder", decoder)):
        if model is not None:
            names = model.chain.state_dict()
            fill(model.chain, {n: partial(_read, f"{side}.{n}") for n in names}, checkpoint)
    return encoder, decoder


def save(
    folder: Path, config: NanoConfig, encoder: Chain, decoder: Chain, codebooks: Tensor
) -> None:
    """Writes config.json and model.safetensors, matrices and codebooks as int8 with scales."""
    stored: dict[str, Tensor] = {}
    _put(stored, _CODEBOOKS, codebooks, axes=2)
    for side, chain in (("encoder", encoder), ("decoder", decoder)):
        for name, value in chain.state_dict().items():
            _put(stored, f"{side}.{name}", value, axes=1 if value.ndim > 1 else 0)
    described = {"model_type": "nano", **asdict(config)}
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "model.safetensors", to_safetensors(stored))
    _replace(folder / "config.json", (json.dumps(described, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Puts a new file in the place of the old one, which others may still be mapping."""
    partial_path = path.with_suffix(".partial")
    partial_path.write_bytes(content)
    partial_path.replace(path)


def _parts(
    config: NanoConfig, part: str
) -> tuple[ResidualVQ, NanoEncoder | None, NanoDecoder | None]:
    quantizer = ResidualVQ(config.codebooks, config.entries, config.latent)
    return (
        quantizer,
        NanoEncoder(config, quantizer) if part in ("both", "encoder") else None,
        NanoDecoder(config, quantizer) if part in ("both", "decoder") else None,
    )


def _put(stored: dict[str, Tensor], name: str, value: Tensor, axes: int) -> None:
    """Stores whole numbers up to 127 and a factor for each row, which `axes` leading axes count.

    A vector, with no such axis, is stored as it is.
    """
    value = value.detach().float().cpu().contiguous()
    if not axes:
        stored[name] = value
        return
    rows = value.flatten(axes).flatten(0, axes - 1)
    scale = rows.abs().amax(dim=1).clamp(min=1e-12) / 127
    stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
    stored[name + _SCALE] = scale


def _read(name: str, checkpoint: Checkpoint) -> Tensor:
    """A tensor as it is stored, or from int8 and its rows' scales."""
    if name + _SCALE not in checkpoint:
        return checkpoint.get(name)
    value, scale = checkpoint.stored(name), checkpoint.get(name + _SCALE)
    rows = {value.shape[:axes].numel() for axes in range(1, value.ndim)}
    if value.dtype != torch.int8 or scale.ndim != 1 or len(scale) not in rows:
        raise ValueError(
            f"{tuple(scale.shape)} scales do not fit {tuple(value.shape)} of {value.dtype}"
        )
    return (value.view(len(scale), -1) * scale[:, None]).view(value.shape)


def _rfft(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part."""
    spectrum = torch.fft.rfft(x)
    return spectrum.real, spectrum.imag


def _irfft(real: Tensor, imag: Tensor, size: int) -> Tensor:
    """`size` real numbers of half a spectrum."""
    # A real signal's spectrum is real at both ends. Not every transform ignores what is there.
    imag = F.pad(imag[..., 1:-1], (1, 1))
    samples: Tensor = torch.fft.irfft(torch.complex(real, imag), size)
    return samples


def _rfft_product(x: Tensor) -> tuple[Tensor, Tensor]:
    """_rfft where there is no fast transform, in an exported step: a product with a matrix."""
    parts = x @ _constant(_transform(x.shape[-1])).to(x.dtype)
    real, imag = parts.chunk(2, dim=-1)
    return real, imag


def _irfft_product(real: Tensor, imag: Tensor, size: int) -> Tensor:
    """_irfft where there is no fast transform."""
    # Each bin but the first and the last stands for itself and its mirror image.
    weight = np.full(size // 2 + 1, 2 / size)
    weight[[0, -1]] = 1 / size
    matrix = _constant((_transform(size) * np.tile(weight, 2)).T)
    return torch.cat((real, imag), dim=-1) @ matrix.to(real.dtype)


def _transform(size: int) -> Array:
    """cos and -sin of the discrete Fourier transform, (size, 2 * (size / 2 + 1)), float64."""
    angle = 2 * np.pi / size * (np.outer(np.arange(size), np.arange(size // 2 + 1)) % size)
    return np.concatenate((np.cos(angle), -np.sin(angle)), axis=1)


def _constant(values: Array) -> Tensor:
    """Of numpy, so that it is traced as numbers and not as their making."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _window(hop: int) -> Tensor:
    """Hann, (3 * hop,): at any sample the squares of the three windows over it sum up to 9/8."""
    # On the CPU even where weights are still on no device at all: it is not read from a checkpoint.
    window = torch.hann_window(3 * hop, dtype=torch.float64, device="cpu")
    return window.to(torch.get_default_dtype())
