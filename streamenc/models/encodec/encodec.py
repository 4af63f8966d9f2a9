"""EnCodec 24 kHz: general audio at 75 frames a second (Défossez et al., arXiv 2210.13438).

Audio, 24 kHz mono -> SEANet with an LSTM of two layers -> latents of 128 channels, one for each 320
samples -> up to 32 codebooks of 1,024 entries. Decoding mirrors it. The 48 kHz model, which works
in segments, is in `encodec48`; `load` gives either.

The published convolutions reflect their input at its start, so the first frame depends on the first
seven hops. `exact=True` waits for them once (2240 samples, 93 ms) and then gives what the published
model gives over the whole input, tail included. `exact=False` takes zeros for what lies before the
start and after the end, as the same network with zero padding would, and gives a frame for each hop
from the first one on. Until frame 7 its latents differ from the published ones by as much as these
are large, and then as long as the LSTM remembers. Measured with random weights of full size: by
3e-2 of their standard deviation at frame 8, 2e-4 at frame 20, 3e-6 at frame 30; with LSTM weights
three times as large, by 0.1 at frame 20 and 2e-3 at frame 60. The decoder is alike.

Layouts: the transformers folder, and the `.th` files of the encodec package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.quantize import ResidualVQ
from streamenc.models.encodec.segments import SegmentDecoder, SegmentEncoder, Segments
from streamenc.models.model import Model
from streamenc.models.seanet import Layout, Seanet, seanet_decoder, seanet_encoder, seanet_origins
from streamenc.models.signal import Signal
from streamenc.options import flag
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

MAX_RATE = 1 << 20
MAX_LEVELS = 1 << 10

# The published 24 kHz model in the words of transformers' config.json; `.th` files carry no config.
PUBLISHED: dict[str, Any] = {
    "sampling_rate": 24_000,
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "overlap": None,
    "hidden_size": 128,
    "num_filters": 32,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 5, 4, 2],
    "norm_type": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "reflect",
    "compress": 2,
    "num_lstm_layers": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 1024,
    "use_conv_shortcut": True,
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
}
# What the published 48 kHz model has otherwise.
PUBLISHED_48K: dict[str, Any] = {
    "sampling_rate": 48_000,
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
    "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
}
_BOOK: dict[Layout, str] = {
    "transformers": "quantizer.layers.{}.codebook.embed",
    "original": "quantizer.vq.layers.{}._codebook.embed",
}
_FIRST_LAYER: dict[Layout, str] = {"transformers": "layers.0", "original": "model.0.conv"}

_NOTE_ZEROS = (
    "takes zeros for what lies before the start: the first frames differ from the published model's"
)


class EncodecEncoder(Model):
    """Audio -> latents (batch, latent, frames), a frame for each hop; `after` quantises them."""

    def __init__(
        self, net: Seanet, quantizer: ResidualVQ, sample_rate: int, *, exact: bool = True
    ) -> None:
        super().__init__()
        net = net if exact else replace(net, pad_mode="constant")
        self.chain = seanet_encoder(net)
        self.quantizer = quantizer
        self.spec = StreamSpec(
            name="encodec",
            input=Port("audio", Fraction(sample_rate), net.channels),
            output=Port("codes", Fraction(sample_rate, net.hop), quantizer.levels, "uint16"),
            steps=self.steps,
            equality="offline" if exact else "window",
            receptive_field=self.receptive_field(),
            codebook_size=quantizer.codebooks.shape[1],
            note="" if exact else _NOTE_ZEROS,
        )
        self._latent = net.latent

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self._latent, 0), state
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        # Rounded convolutions cost the latents five times what a rounded LSTM does, which has most
        # of the weights; and 32 codebooks, one behind the other, are up to the fifth digit.
        for layer in self.modules():
            if isinstance(layer, CausalConv1d):
                plan.weights.keep(layer.weight)
        return self.chain.lower(plan, x, state)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        levels = None if codebooks is None else self.check_codebooks(codebooks)
        return self.quantizer.encode(y, levels)


class EncodecDecoder(Model):
    """Codes -> audio, a hop for each frame; any number of codebooks from 1 up, which may change."""

    def __init__(
        self, net: Seanet, quantizer: ResidualVQ, sample_rate: int, *, exact: bool = True
    ) -> None:
        super().__init__()
        net = net if exact else replace(net, pad_mode="constant")
        self.quantizer = quantizer
        self.chain = seanet_decoder(net)
        self.spec = StreamSpec(
            name="encodec",
            input=Port("codes", Fraction(sample_rate, net.hop), quantizer.levels, "uint16"),
            output=Port("audio", Fraction(sample_rate), net.channels),
            steps=self.steps,
            equality="offline" if exact else "window",
            receptive_field=self.receptive_field(),
            codebook_size=quantizer.codebooks.shape[1],
            note="" if exact else _NOTE_ZEROS,
        )

    def before(self, x: Signal) -> Tensor:
        codes = self.check_codes(super().before(x))
        return self.quantizer.decode(codes).to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), state
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of EnCodec's layouts."""
    return _layout(checkpoint) is not None


def published_spec(variant: str) -> StreamSpec:
    """What the published encoder promises: "24khz" or "48khz"."""
    shape = _EncodecShape.of({**PUBLISHED, **{"24khz": {}, "48khz": PUBLISHED_48K}[variant]})
    with torch.device("meta"):
        return shape.encoder(shape.quantizer(), exact=True).spec


def load(
    name: str, checkpoint: Checkpoint, part: str, *, exact: bool = True
) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them, sharing their codebooks.

    exact  False: no look-ahead at the start, for the 24 kHz model; see the module's text.
    """
    layout = _layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is EnCodec's codebook "
            f"({_BOOK['transformers'].format(0)} or {_BOOK['original'].format(0)})"
        )
    config = {**PUBLISHED, **checkpoint.config} if checkpoint.config else _infer(checkpoint, layout)
    try:
        shape = _EncodecShape.of(config)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{checkpoint.name}: its config cannot be used: {error}") from error
    exact = flag("exact", exact)
    if shape.segments is not None and not exact:
        raise UsageError("exact=False is for the 24 kHz model; this one works in exact segments")

    with torch.device("meta"):
        quantizer = shape.quantizer()
    fill(quantizer, {"codebooks": partial(_codebooks, quantizer, layout)}, checkpoint)
    encoder: Model | None = None
    decoder: Model | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = shape.encoder(quantizer, exact=exact)
        fill(encoder.chain, seanet_origins(encoder.chain, "encoder", layout), checkpoint)
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = shape.decoder(quantizer, exact=exact)
        fill(decoder.chain, seanet_origins(decoder.chain, "decoder", layout), checkpoint)
    return encoder, decoder


@dataclass(frozen=True, slots=True)
class _EncodecShape:
    """A config, checked. `segments` is None for causal models."""

    net: Seanet
    sample_rate: int
    levels: int
    entries: int
    segments: Segments | None

    @classmethod
    def of(cls, config: dict[str, Any]) -> _EncodecShape:
        """Raises ValueError, TypeError or ArithmeticError for a config that makes no sense."""
        net = _seanet(config)
        if not 1 <= (levels := _levels(config)) <= MAX_LEVELS:
            raise ValueError(f"it has {levels} codebooks; wanted 1 to {MAX_LEVELS}")
        return cls(
            net,
            _natural(config, "sampling_rate"),
            levels,
            _natural(config, "codebook_size"),
            None if net.causal else Segments.of(config, net.hop),
        )

    def quantizer(self) -> ResidualVQ:
        return ResidualVQ(self.levels, self.entries, self.net.latent)

    def encoder(self, quantizer: ResidualVQ, *, exact: bool) -> EncodecEncoder | SegmentEncoder:
        if self.segments is None:
            return EncodecEncoder(self.net, quantizer, self.sample_rate, exact=exact)
        return SegmentEncoder(self.net, quantizer, self.sample_rate, self.segments)

    def decoder(self, quantizer: ResidualVQ, *, exact: bool) -> EncodecDecoder | SegmentDecoder:
        if self.segments is None:
            return EncodecDecoder(self.net, quantizer, self.sample_rate, exact=exact)
        return SegmentDecoder(self.net, quantizer, self.sample_rate, self.segments)


def _layout(checkpoint: Checkpoint) -> Layout | None:
    return next((layout for layout, book in _BOOK.items() if book.format(0) in checkpoint), None)


def _codebooks(quantizer: ResidualVQ, layout: Layout, checkpoint: Checkpoint) -> Tensor:
    levels, *shape = quantizer.codebooks.shape
    names = [_BOOK[layout].format(level) for level in range(levels)]
    return torch.stack([checkpoint.get(name, tuple(shape)) for name in names])


def _infer(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """The published config for weights that come without one, with sizes read off the tensors."""
    config = dict(PUBLISHED)
    levels = 0
    while _BOOK[layout].format(levels) in checkpoint:
        levels += 1
    config["num_quantizers"] = levels
    config["codebook_size"], config["hidden_size"] = checkpoint.shape(_BOOK[layout].format(0))
    stages = 2 ** len(config["upsampling_ratios"])
    for side, share in (("encoder", 1), ("decoder", stages)):
        there = f"{side}.{_FIRST_LAYER[layout]}"
        if f"{there}.conv.bias" in checkpoint:
            config["num_filters"] = checkpoint.shape(f"{there}.conv.bias", 1)[0] // share
            if f"{there}.norm.weight" in checkpoint:
                config |= PUBLISHED_48K
    return config


def _natural(config: dict[str, Any], key: str) -> int:
    value = config[key]
    if type(value) is not int or not 1 <= value <= MAX_RATE:
        raise ValueError(f"{key} is {value!r}; wanted a number from 1 to {MAX_RATE}")
    return value


def _levels(config: dict[str, Any]) -> int:
    """The codebooks that the highest bandwidth takes."""
    if "num_quantizers" in config:
        return _natural(config, "num_quantizers")
    bits = math.ceil(math.log2(_natural(config, "codebook_size")))
    frame_rate = math.ceil(config["sampling_rate"] / math.prod(config["upsampling_ratios"]))
    return int(1000 * config["target_bandwidths"][-1] // (frame_rate * bits))


def _seanet(config: dict[str, Any]) -> Seanet:
    causal = bool(config["use_causal_conv"])
    wanted = {
        "norm_type": "weight_norm" if causal else "time_group_norm",
        "normalize": not causal,
        "trim_right_ratio": 1.0,
        "codebook_dim": config["hidden_size"],
    }
    for key, value in wanted.items():
        if config.get(key, value) not in (value, None):
            raise ValueError(
                f"{key} is {config[key]!r} where use_causal_conv is {causal}; only {value!r} can "
                "be streamed"
            )
    if causal == (config["chunk_length_s"] is not None):
        raise ValueError(
            f"chunk_length_s is {config['chunk_length_s']!r} where use_causal_conv is {causal}: "
            "causal models stream without chunks, others only in chunks"
        )
    return Seanet(
        channels=_natural(config, "audio_channels"),
        latent=_natural(config, "hidden_size"),
        filters=_natural(config, "num_filters"),
        ratios=tuple(config["upsampling_ratios"]),
        kernel_size=_natural(config, "kernel_size"),
        last_kernel_size=_natural(config, "last_kernel_size"),
        residual_kernel_size=_natural(config, "residual_kernel_size"),
        residual_layers=_natural(config, "num_residual_layers"),
        dilation_base=_natural(config, "dilation_growth_rate"),
        compress=_natural(config, "compress"),
        conv_shortcut=bool(config["use_conv_shortcut"]),
        lstm_layers=_natural(config, "num_lstm_layers"),
        pad_mode=config["pad_mode"],
        causal=causal,
    )
