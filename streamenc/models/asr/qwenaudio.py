"""The audio encoder of Qwen3-ASR and Qwen3-Omni, 13 rows a second (Alibaba, arXiv 2509.17765).

Audio, 16 kHz mono -> log-mel -> pieces of a second, each by itself through three convolutions over
time and bands, and with positions of its own -> a transformer whose attention sees segments of 8 s,
both ways. So a segment is encoded once it is there, and depends on nothing outside of it, but for
one thing: the published feature extractor raises the log-mel to 8 below the loudest bin of the
clip. A stream cannot know that one; here it is the loudest bin up to the segment's end. Each
segment is what the published encoder gives for the clip up to that end, and the whole stream is
what it gives for the whole clip wherever the loudest bin lies in the first segment. With
log_max=1.5, or another number, that stands for the loudest bin, and a segment depends on itself
alone.

The last second of a stream is filled with zeros, in the log-mel. The rows of the zeros are left
out.

output="states" is what the transformer gives, "embeddings" what the language model gets of them.

Layouts: transformers folders of Qwen3-ASR and Qwen3-Omni, whole or the encoder alone, and Qwen's
own names. The language model is neither read nor run.
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
from streamenc.layers.attention.chunked import ChunkedTransformer
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Chain, Span, Streamed
from streamenc.models.asr.shared import (
    LogMelModel,
    OverChannels,
    checked_sizes,
    nested,
    refuse_others,
    stacked,
)
from streamenc.models.mel import PRESETS, WHISPER_LOG_RANGE, MelEncoder
from streamenc.models.model import Model
from streamenc.options import choice, number
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

RATE = 16_000
OUTPUTS = ("states", "embeddings")
LEAST_LOG = -10.0  # the log10 of the least energy that the log-mel knows
CONVOLUTIONS = 3
MAX_TIMESCALE = 10_000
MAX_BANDS = PRESETS["whisper"].n_fft // 2 + 1
# Of the published models: width, heads, layers.
PUBLISHED = {"0.6B": (896, 14, 18), "1.7B": (1024, 16, 24), "omni": (1280, 20, 32)}
_STEM = "conv2d1.weight"
_PREFIXES = ("thinker.audio_tower.", "model.audio_tower.", "audio_tower.", "")


@dataclass(frozen=True, slots=True)
class QwenAudioShape:
    """Sizes of an encoder.

    piece, segment  Log-mel frames of each; a segment is a whole number of pieces.
    embedding       Channels of embeddings; 0 where states come out.
    log_max         What stands for the log10 of the loudest bin; None for the loudest so far.
    """

    width: int
    heads: int
    layers: int
    hidden: int
    bands: int = 128
    channels: int = 480
    piece: int = 100
    segment: int = 800
    embedding: int = 0
    log_max: float | None = None

    @property
    def rows(self) -> int:
        """Of a piece."""
        return _halved(self.piece)


def _halved(positions: int) -> int:
    """What the convolutions make of so many positions."""
    for _ in range(CONVOLUTIONS):
        positions = -(-positions // 2)
    return positions


class Pieces(Streamed):
    """(batch, bands, frames) -> (batch, width, rows), each piece of frames by itself.

    At the end zeros fill a piece, and the rows that begin in them are left out. No state.
    """

    positions: Tensor

    def __init__(self, shape: QwenAudioShape) -> None:
        super().__init__()
        self.piece, self.rows = shape.piece, shape.rows
        channels = shape.channels
        self.conv1 = nn.Conv2d(1, channels, 3, 2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 2, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 3, 2, padding=1)
        self.linear = Linear(channels * _halved(shape.bands), shape.width, rows=shape.rows)
        self.register_buffer("positions", torch.empty(shape.rows, shape.width))

    @property
    def steps(self) -> Steps:
        return Steps(self.piece, self.piece, self.rows, self.rows)

    def reach(self, first: int, last: int) -> Span:
        return first // self.rows * self.piece, (last // self.rows + 1) * self.piece - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, bands, frames = x.shape
        pieces, tail = divmod(frames, self.piece)
        assert end or not tail, f"{frames} frames in mid-stream; a piece has {self.piece}"
        wanted = pieces * self.rows + _halved(tail)
        if not wanted:
            return x.new_zeros(batch, self.linear.weight.shape[0], 0), None
        x = F.pad(x, (0, -frames % self.piece)).view(batch, bands, -1, self.piece)
        x = x.transpose(1, 2).reshape(-1, 1, bands, self.piece)
        for convolve in (self.conv1, self.conv2, self.conv3):
            x = F.gelu(convolve(x))
        y = self.linear(x.permute(0, 3, 1, 2).flatten(2)) + self.positions
        return y.reshape(batch, -1, y.shape[2])[:, :wanted].transpose(1, 2), None


def sinusoids(rows: int, width: int) -> Tensor:
    """(rows, width) float64: sines of the rows at width / 2 frequencies, and then cosines."""
    step = math.log(MAX_TIMESCALE) / (width // 2 - 1)
    angles = torch.arange(rows)[:, None] * torch.exp(-step * torch.arange(width // 2).double())
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class QwenAudioEncoder(LogMelModel):
    """16 kHz audio -> states or embeddings (batch, channels, rows), 104 for each segment of 8 s.

    State: of the log-mel; the log10 of the loudest bin so far, (batch,), None with a fixed one; of
    the transformer.
    """

    def __init__(self, shape: QwenAudioShape, chain: Chain) -> None:
        super().__init__()
        self.shape, self.chain = shape, chain
        log = "log10" if shape.log_max is None else "whisper"
        self.mel = MelEncoder(
            replace(PRESETS["whisper"], bands=shape.bands, log=log, log_max=shape.log_max)
        )
        steps = self.steps
        loudest = f"{shape.log_max:g}" if shape.log_max is not None else "the loudest bin so far"
        self.spec = StreamSpec(
            name="qwen3_audio",
            input=Port("audio", Fraction(RATE), 1),
            output=Port(
                "features",
                Fraction(RATE * steps.hop_out, steps.hop),
                shape.embedding or shape.width,
            ),
            steps=steps,
            equality="segment",
            receptive_field=self.receptive_field(),
            note=f"the log-mel's floor lies below {loudest}, not below the clip's loudest bin",
        )

    def reach(self, first: int, last: int) -> Span:
        start, stop = super().reach(first, last)
        return None if self.shape.log_max is None else start, stop

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        nothing = x.new_zeros(x.shape[0], self.spec.output.channels, 0)
        if state is None and x.shape[-1] < PRESETS["whisper"].hop:
            return nothing, None
        heard, loudest, before = state if isinstance(state, tuple) else (None, None, None)
        frames, heard = self.mel.step(x, heard, end=end)
        if not frames.shape[-1]:
            return nothing, (heard, loudest, before)
        if self.shape.log_max is None:
            if not isinstance(loudest, Tensor):
                loudest = frames.new_full((x.shape[0],), LEAST_LOG)
            frames, loudest = self._floored(frames, loudest)
        weight = next(self.chain.parameters())
        y, before = self.chain.step(frames.to(weight.dtype), before, end=end)
        return y.to(x.dtype), (heard, loudest, before)

    def _floored(self, frames: Tensor, loudest: Tensor) -> tuple[Tensor, Tensor]:
        """The frames above the floor of their segment, scaled as published."""
        floored = []
        for segment in torch.split(frames, self.shape.segment, dim=-1):
            loudest = torch.maximum(loudest, segment.amax(dim=(1, 2)))
            floor = (loudest - WHISPER_LOG_RANGE)[:, None, None]
            floored.append((torch.maximum(segment, floor) + 4) / 4)
        return floored[0] if len(floored) == 1 else torch.cat(floored, dim=-1), loudest


def _unfilled(shape: QwenAudioShape) -> QwenAudioEncoder:
    """The encoder whose weights lie on no device yet."""
    width = shape.width
    with torch.device("meta"):
        layers: list[nn.Module] = [
            Pieces(shape),
            ChunkedTransformer(
                width,
                shape.heads,
                shape.hidden,
                shape.layers,
                shape.segment // shape.piece * shape.rows,
                left=0,
                final_norm=True,
            ),
        ]
        if shape.embedding:
            layers += [
                OverChannels(Linear(width, width, bias=True)),
                nn.GELU(),
                OverChannels(Linear(width, shape.embedding, bias=True)),
            ]
        chain = Chain(layers)
    return QwenAudioEncoder(shape, chain)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model, "0.6B", "1.7B" or "omni", promises."""
    width, heads, layers = PUBLISHED[variant]
    return _unfilled(QwenAudioShape(width, heads, layers, 4 * width)).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return _prefix(checkpoint) is not None


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    output: str = "states",
    log_max: Any = None,
) -> tuple[Model, None]:
    """The encoder; the language model is not read. All options also come as strings.

    output   "states", or "embeddings", as the language model gets them: each state through two
             linear layers, which are not read otherwise.
    log_max  What stands for the log10 of the clip's loudest bin, such as 1.5; None for the loudest
             one so far.

    Raises UsageError for another option, CheckpointError for weights that do not fit.
    """
    if part == "decoder":
        raise UsageError(
            f"{name}: only the audio encoder is here, and its decoder writes text; load the encoder"
        )
    embeddings = choice("output", output, OUTPUTS) == "embeddings"
    given = log_max is not None and str(log_max).strip().lower() not in ("none", "")
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in the "
            f"audio encoder of Qwen3-ASR or Qwen3-Omni (audio_tower.{_STEM})"
        )
    shape = _shape(checkpoint)
    if given:
        shape = replace(shape, log_max=number("log_max", log_max, -1000, 1000))
    linears = _projections(checkpoint, prefix)
    if embeddings:
        if f"{linears[1]}.weight" not in checkpoint:
            raise CheckpointError(
                f"{checkpoint.name}: {linears[1]}.weight is missing, which makes embeddings of "
                "states: is this the encoder alone? Load the whole model, or its states"
            )
        shape = replace(shape, embedding=checkpoint.shape(f"{linears[1]}.weight", 1)[0])
    encoder = _unfilled(shape)
    fill(encoder.chain, _origins(encoder, prefix, linears), checkpoint)
    checkpoint.check_used(prefix, besides=() if embeddings else (f"{prefix}proj",))
    return encoder, None


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the encoder's names; None for another model."""
    return next(
        (
            prefix
            for prefix in _PREFIXES
            if prefix + _STEM in checkpoint and f"{prefix}conv_out.weight" in checkpoint
        ),
        None,
    )


def _projections(checkpoint: Checkpoint, prefix: str) -> list[str]:
    """The two linear layers behind the states: the encoder's own, or the model's beside it."""
    if f"{prefix}proj1.weight" in checkpoint:
        return [f"{prefix}proj1", f"{prefix}proj2"]
    beside = f"{prefix.removesuffix('audio_tower.')}multi_modal_projector"
    return [f"{beside}.linear_1", f"{beside}.linear_2"]


def _shape(checkpoint: Checkpoint) -> QwenAudioShape:
    """Raises CheckpointError where the config gives no network, or another one."""
    config = nested(checkpoint, "thinker_config", "audio_config")
    refuse_others(checkpoint, config, {"activation_function": "gelu"})
    width, heads, layers, hidden, bands, channels, half, segment = checked_sizes(
        checkpoint,
        config,
        d_model=1024,
        encoder_attention_heads=16,
        encoder_layers=24,
        encoder_ffn_dim=4096,
        num_mel_bins=128,
        downsample_hidden_size=480,
        n_window=50,
        n_window_infer=800,
    )
    if (
        width % heads
        or width % 2
        or width < 4
        or bands > MAX_BANDS
        or segment % (2 * half)
        or segment > 1 << 16
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config has d_model={width}, encoder_attention_heads={heads}, "
            f"num_mel_bins={bands}, n_window={half}, n_window_infer={segment}; wanted an even "
            f"width that the heads divide, up to {MAX_BANDS} bands, and a segment of whole pieces "
            "of 2 x n_window frames"
        )
    return QwenAudioShape(width, heads, layers, hidden, bands, channels, 2 * half, segment)


_LAYER = {
    "norm1": "self_attn_layer_norm",
    "out_proj": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}


def _origins(encoder: QwenAudioEncoder, prefix: str, linears: list[str]) -> dict[str, Origin]:
    """Where each parameter comes from."""
    shape = encoder.shape
    outer = {
        "layers.0.conv1": f"{prefix}conv2d1",
        "layers.0.conv2": f"{prefix}conv2d2",
        "layers.0.conv3": f"{prefix}conv2d3",
        "layers.0.linear": f"{prefix}conv_out",
        "layers.1.norm": f"{prefix}ln_post",
        "layers.2.module": linears[0],
        "layers.4.module": linears[1],
    }
    origins: dict[str, Origin] = {}
    for name in encoder.chain.state_dict():
        owner, _, kind = name.rpartition(".")
        _, _, inner = name.partition("layers.1.layers.")
        if name == "layers.0.positions":
            origins[name] = lambda _: sinusoids(shape.rows, shape.width)
        elif not inner:
            origins[name] = f"{outer[owner]}.{kind}"
        else:
            index, layer, kind = inner.split(".")
            there = f"{prefix}layers.{index}"
            if layer == "in_proj":
                names = [f"{there}.self_attn.{which}_proj.{kind}" for which in "qkv"]
                origins[name] = partial(stacked, names)
            else:
                origins[name] = f"{there}.{_LAYER[layer]}.{kind}"
    return origins
