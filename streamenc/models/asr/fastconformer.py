"""The cache-aware FastConformer of NVIDIA's streaming recognisers, 12.5 states a second
(arXiv 2312.17279).

Audio, 16 kHz mono -> pre-emphasis, log-mel -> three causal convolutions over time and bands, each
of stride 2 -> conformer blocks over chunks: a state sees its own chunk, both ways, and whole chunks
before it. A chunk has lookahead + 1 states of 80 ms. The model was trained with chunks of several
lengths, so the stream equals the published encoder with the same look-ahead.

Of a clip of F log-mel frames (10 ms each) there are F // 2 + 1 states after the first convolution,
and so on: the last ones see zeros behind the end, as published.

Layouts: the transformers folder of Nemotron ASR streaming, whole or its encoder. The network that
writes text is neither read nor run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.attention.conformer import ConformerBlock
from streamenc.layers.linear import Linear
from streamenc.layers.stft import STFT
from streamenc.layers.streamed import Chain, Exact, Span, Streamed, reach_through
from streamenc.models.asr.shared import (
    checked_number,
    checked_sizes,
    nested,
    refuse_others,
    stacked,
)
from streamenc.models.mel import PRESETS, MelOptions, filterbank
from streamenc.models.model import Model
from streamenc.options import integer
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

RATE, HOP, N_FFT, WINDOW = 16_000, 160, 512, 400
STAGES, KERNEL, STRIDE = 3, 3, 2
SILENCE = 2.0**-24  # added to energies before the logarithm
_STEM = "subsampling.conv_in.weight"
_PREFIXES = ("model.encoder.", "encoder.", "")


@dataclass(frozen=True, slots=True)
class FastConformerShape:
    """Sizes of an encoder.

    left       States before its chunk that a state sees at most: whole chunks of them.
    lookahead  States of a chunk but one.
    scale      Whether what enters the blocks is multiplied by the root of the width.
    """

    width: int = 1024
    heads: int = 8
    hidden: int = 4096
    layers: int = 24
    bands: int = 128
    channels: int = 256
    kernel: int = 9
    left: int = 70
    lookahead: int = 13
    bias: bool = True
    conv_bias: bool = True
    scale: bool = True
    preemphasis: float = 0.97


class PreEmphasis(Streamed):
    """x[t] - factor * x[t - 1]. State: the last sample, (batch, 1, 1)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return max(0, first - 1), last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        before = state if isinstance(state, Tensor) else x.new_zeros(*x.shape[:2], 1)
        there = torch.cat((before, x), dim=-1)
        return x - self.factor * there[..., :-1], there[..., -1:].contiguous()


class LogMel(nn.Module):
    """Of complex spectra, (batch, bins, frames) -> (batch, bands, frames)."""

    filters: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        slaney = MelOptions(
            rate=RATE,
            n_fft=N_FFT,
            win_length=WINDOW,
            hop=HOP,
            bands=bands,
            scale="slaney",
            norm="slaney",
        )
        self.register_buffer("filters", filterbank(slaney))

    def forward(self, x: Tensor) -> Tensor:
        return (self.filters @ x.abs().square() + SILENCE).log()


class Front(Chain, Exact):
    """(batch, 1, samples) -> log-mel (batch, bands, frames), samples // 160 of a clip."""

    def __init__(self, bands: int, preemphasis: float) -> None:
        window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
        stft = STFT(window, N_FFT, HOP, drop_last=True, pad_mode="constant")
        super().__init__([PreEmphasis(preemphasis), stft, LogMel(bands)])


class Subsampling(Streamed):
    """A convolution over time and bands, (batch, channels, time, bands), of stride 2 in both.

    Two zeros stand before each axis, and one behind. N positions give N // 2 + 1.

    State: the last position, (batch, channels, 1, bands).
    """

    def __init__(self, into: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, channels, KERNEL, STRIDE, groups=into)
        self.pointwise = nn.Conv2d(channels, channels, 1) if into > 1 else None

    @property
    def steps(self) -> Steps:
        return Steps(1, STRIDE)

    def reach(self, first: int, last: int) -> Span:
        return max(0, STRIDE * first - KERNEL + 1), STRIDE * last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        started = isinstance(state, Tensor)
        ends = (0 if started else KERNEL - 1, STRIDE - 1 if end else 0)
        x = F.pad(x, (KERNEL - 1, STRIDE - 1, *ends))
        if isinstance(state, Tensor):
            x = torch.cat((state, x), dim=2)
        outputs = (x.shape[2] - KERNEL) // STRIDE + 1
        if outputs < 1:
            bands = (x.shape[3] - KERNEL) // STRIDE + 1
            return x.new_zeros(x.shape[0], self.conv.out_channels, 0, bands), None
        y = self.conv(x)
        if self.pointwise is not None:
            y = self.pointwise(y)
        return F.relu(y), x[:, :, STRIDE * outputs :].contiguous()


class AsImage(nn.Module):
    """(batch, bands, frames) -> (batch, 1, frames, bands)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)[:, None]


class Merge(nn.Module):
    """(batch, channels, time, bands) -> (batch, width, time), by a linear layer, and scaled."""

    def __init__(self, into: int, width: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.linear = Linear(into, width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.transpose(1, 2).flatten(2)) * self.factor
        return y.transpose(1, 2)


class FastConformerEncoder(Model):
    """16 kHz audio -> states (batch, width, states) at 12.5 Hz.

    State: of the log-mel, of the convolutions, and of the blocks.
    """

    def __init__(self, shape: FastConformerShape, chain: Chain) -> None:
        super().__init__()
        self.shape, self.chain = shape, chain
        self.front = Front(shape.bands, shape.preemphasis)
        steps = self.steps
        self.spec = StreamSpec(
            name="nemotron_asr_streaming",
            input=Port("audio", Fraction(RATE), 1),
            output=Port("features", Fraction(RATE * steps.hop_out, steps.hop), shape.width),
            steps=steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            note=f"with the published encoder's num_lookahead_tokens={shape.lookahead}",
        )

    @property
    def steps(self) -> Steps:
        return self.front.steps.then(self.chain.steps)

    def reach(self, first: int, last: int) -> Span:
        return reach_through([self.front, self.chain], first, last)

    @property
    def like(self) -> Tensor:
        """The log-mel frames stay in float32 at least, so sound comes in as that."""
        return next(self.front.buffers())

    def prepare(self) -> None:
        """Brings the log-mel to float32 beside weights of 16 bits."""
        super().prepare()
        if next(self.chain.parameters()).dtype in (torch.float16, torch.bfloat16):
            self.front.float()

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and x.shape[-1] < HOP:
            return x.new_zeros(x.shape[0], self.shape.width, 0), None
        heard, before = state if isinstance(state, tuple) else (None, None)
        frames, heard = self.front.step(x, heard, end=end)
        weight = next(self.chain.parameters())
        y, before = self.chain.step(frames.to(weight.dtype), before, end=end)
        return y.to(x.dtype), (heard, before)


def _unfilled(shape: FastConformerShape) -> FastConformerEncoder:
    """The encoder whose weights lie on no device yet."""
    bands = shape.bands
    for _ in range(STAGES):
        bands = bands // STRIDE + 1
    chunk = shape.lookahead + 1
    with torch.device("meta"):
        chain = Chain(
            [
                AsImage(),
                Subsampling(1, shape.channels),
                *(Subsampling(shape.channels, shape.channels) for _ in range(STAGES - 1)),
                Merge(
                    bands * shape.channels,
                    shape.width,
                    math.sqrt(shape.width) if shape.scale else 1.0,
                ),
                *(
                    ConformerBlock(
                        shape.width,
                        shape.heads,
                        shape.hidden,
                        chunk,
                        left=shape.left // chunk,
                        kernel=shape.kernel,
                        bias=shape.bias,
                        conv_bias=shape.conv_bias,
                    )
                    for _ in range(shape.layers)
                ),
            ]
        )
    return FastConformerEncoder(shape, chain)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of the published model, "0.6b", promises."""
    return _unfilled(FastConformerShape()).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return _prefix(checkpoint) is not None


def load(
    name: str, checkpoint: Checkpoint, part: str, *, lookahead: Any = None
) -> tuple[Model, None]:
    """The encoder; the network that writes text is not read. The option also comes as a string.

    lookahead  States of 80 ms that the first state of a chunk sees ahead; None for the config's
               (13, a chunk of 1.12 s). The published models were trained with 0, 1, 6 and 13.

    Raises UsageError for another option, CheckpointError for weights that do not fit.
    """
    if part == "decoder":
        raise UsageError(
            f"{name}: only the encoder is here, and its decoder writes text; load the encoder"
        )
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in "
            f"Nemotron ASR streaming (encoder.{_STEM})"
        )
    shape = _shape(checkpoint)
    if lookahead is not None:
        shape = replace(shape, lookahead=integer("lookahead", lookahead, 0, shape.left))
    encoder = _unfilled(shape)
    fill(encoder.chain, _origins(encoder.chain, prefix), checkpoint)
    checkpoint.check_used(prefix)
    return encoder, None


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the encoder's names; None for another model."""
    relative = "layers.0.self_attn.relative_k_proj.weight"
    return next(
        (
            prefix
            for prefix in _PREFIXES
            if prefix + _STEM in checkpoint and prefix + relative in checkpoint
        ),
        None,
    )


def _shape(checkpoint: Checkpoint) -> FastConformerShape:
    """Raises CheckpointError where the config gives no network, or another one."""
    config, said = nested(checkpoint, "encoder_config"), checkpoint.preprocessor
    known = {
        "subsampling_factor": STRIDE**STAGES,
        "subsampling_conv_kernel_size": KERNEL,
        "subsampling_conv_stride": STRIDE,
    }
    if "encoder_config" in checkpoint.config or "conv_kernel_size" in config:
        known["hidden_act"] = "silu"
    refuse_others(checkpoint, config, known)
    prepared = {
        "sampling_rate": RATE,
        "hop_length": HOP,
        "n_fft": N_FFT,
        "win_length": WINDOW,
        "mel_filters_dtype": "float32",
    }
    refuse_others(checkpoint, said, prepared)
    width, heads, hidden, layers, bands, channels, kernel, window = checked_sizes(
        checkpoint,
        config,
        hidden_size=1024,
        num_attention_heads=8,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_mel_bins=80,
        subsampling_conv_channels=256,
        conv_kernel_size=9,
        sliding_window=71,
    )
    refuse_others(checkpoint, config, {"num_key_value_heads": heads})
    ahead = config.get("default_num_lookahead_tokens", 13)
    flags = {
        key: config.get(key, True) for key in ("attention_bias", "convolution_bias", "scale_input")
    }
    if (
        width % (2 * heads)
        or bands > PRESETS["whisper"].n_fft
        or not all(type(flag) is bool for flag in flags.values())
        or type(ahead) is not int
        or not 0 <= ahead < window
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config has hidden_size={width}, num_attention_heads={heads}, "
            f"num_mel_bins={bands}, default_num_lookahead_tokens={ahead!r:.80}, {flags}; wanted "
            "heads of even size, some hundred bands at most, less look-ahead than sliding_window "
            f"({window}), and true or false"
        )
    preemphasis = checked_number(checkpoint, said, "preemphasis", 0.97, -1, 1)
    return FastConformerShape(
        width,
        heads,
        hidden,
        layers,
        bands,
        channels,
        kernel,
        window - 1,
        ahead,
        bias=flags["attention_bias"],
        conv_bias=flags["convolution_bias"],
        scale=flags["scale_input"],
        preemphasis=preemphasis,
    )


_BLOCK = {
    "feed1.norm": "norm_feed_forward1",
    "feed1.linear1": "feed_forward1.linear1",
    "feed1.linear2": "feed_forward1.linear2",
    "feed2.norm": "norm_feed_forward2",
    "feed2.linear1": "feed_forward2.linear1",
    "feed2.linear2": "feed_forward2.linear2",
    "norm_attention": "norm_self_att",
    "attention.out_proj": "self_attn.o_proj",
    "norm_conv": "norm_conv",
    "pointwise1": "conv.pointwise_conv1",
    "depthwise": "conv.depthwise_conv",
    "norm_depthwise": "conv.norm",
    "pointwise2": "conv.pointwise_conv2",
    "norm": "norm_out",
}


def _origins(chain: Chain, prefix: str) -> dict[str, Origin]:
    """Where each parameter comes from."""
    stem = f"{prefix}subsampling"
    outer = {"layers.1.conv": f"{stem}.conv_in", f"layers.{1 + STAGES}.linear": f"{stem}.linear"}
    for n in range(STAGES - 1):
        outer[f"layers.{2 + n}.conv"] = f"{stem}.layers.{n}.depthwise_conv"
        outer[f"layers.{2 + n}.pointwise"] = f"{stem}.layers.{n}.pointwise_conv"
    origins: dict[str, Origin] = {}
    for name in chain.state_dict():
        owner, _, kind = name.rpartition(".")
        if owner in outer:
            origins[name] = f"{outer[owner]}.{kind}"
            continue
        _, index, inner = owner.split(".", 2)
        there = f"{prefix}layers.{int(index) - 2 - STAGES}"
        if inner == "attention.in_proj":
            names = [f"{there}.self_attn.{which}_proj.{kind}" for which in "qkv"]
            origins[name] = partial(stacked, names)
        elif kind == "relative":
            origins[name] = f"{there}.self_attn.relative_k_proj.weight"
        elif inner == "attention":
            origins[name] = f"{there}.self_attn.{kind}"
        elif inner.startswith("pointwise") and kind == "weight":
            origins[name] = partial(_matrix, f"{there}.{_BLOCK[inner]}.weight")
        else:
            origins[name] = f"{there}.{_BLOCK[inner]}.{kind}"
    return origins


def _matrix(name: str, checkpoint: Checkpoint) -> Tensor:
    """Of a convolution over one position."""
    return checkpoint.get(name).squeeze(-1)
