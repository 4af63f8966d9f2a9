"""Moonshine streaming: the encoder of the speech recogniser, 50 states a second (Moonshine AI,
arXiv 2602.12241).

Audio, 16 kHz mono -> frames of 80 samples, each with zero mean and unit variance, compressed by
asinh -> a linear layer -> two causal convolutions (50 Hz) -> transformer layers without positions,
each with a window of its own: 15 states back, and in the first two and last two layers 3 ahead.
So a state depends on 12 states after it, 240 ms, and the stream equals the published encoder.

transformers applies the windows only where it is given an attention mask, as its processor gives
one; without it every state sees the whole clip. Here the windows always hold.

A tail of fewer than 80 samples is a frame of zeros behind the linear layer, as with that mask. A
stream of fewer than 80 samples has no state.

Layouts: the transformers folder, whole or its encoder alone. The decoder, which writes text, is
neither read nor run.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.attention.lookahead import LookaheadTransformer
from streamenc.layers.conv.causal import ValidConv1d
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Chain, Span, Streamed
from streamenc.models.asr.shared import (
    checked_number,
    checked_sizes,
    nested,
    refuse_others,
    stacked,
)
from streamenc.models.model import Model
from streamenc.options import choice
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

BOUNDS = ("exclusive", "inclusive")
CMVN_EPS = 1e-6
KERNEL, STRIDE = 5, 2
# Of the published sizes: width, layers.
PUBLISHED = {"tiny": (320, 6), "small": (620, 10), "medium": (768, 14)}
_LOG_K = "embedder.comp.log_k"
_PREFIXES = ("model.encoder.", "encoder.", "")


@dataclass(frozen=True, slots=True)
class MoonshineShape:
    """Sizes of an encoder.

    windows  (past, ahead) of each layer, in states.
    rate     Hz; `frame`: samples of a frame.
    """

    width: int
    heads: int
    head_dim: int
    hidden: int
    windows: tuple[tuple[int, int], ...]
    bias: bool = False
    rate: int = 16_000
    frame: int = 80


class Frames(Streamed):
    """Frames of samples, normalised and compressed: (batch, 1, samples) -> (batch, width, frames).

    Of a tail that fills no frame nothing is known but that it was there: it is a frame of zeros.
    """

    def __init__(self, frame: int, width: int) -> None:
        super().__init__()
        self.frame = frame
        self.log_k = nn.Parameter(torch.empty(()))
        self.linear = Linear(frame, width, rows=8)

    @property
    def steps(self) -> Steps:
        return Steps(self.frame, self.frame)

    def reach(self, first: int, last: int) -> Span:
        return first * self.frame, (last + 1) * self.frame - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, _, samples = x.shape
        count, tail = divmod(samples, self.frame)
        assert end or not tail, f"{samples} samples in mid-stream; a frame is {self.frame}"
        frames = x[:, 0, : samples - tail].reshape(batch, count, self.frame)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        frames = frames / (frames.square().mean(dim=-1, keepdim=True) + CMVN_EPS).sqrt()
        y = F.silu(self.linear(torch.asinh(self.log_k.exp() * frames)))
        return F.pad(y, (0, 0, 0, int(tail > 0))).transpose(1, 2), None


class MoonshineEncoder(Model):
    """16 kHz audio -> states (batch, width, states) at 50 Hz."""

    def __init__(self, shape: MoonshineShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.chain = Chain(
            [
                Frames(shape.frame, width),
                ValidConv1d(width, 2 * width, KERNEL, STRIDE, before=KERNEL - 1),
                nn.SiLU(),
                ValidConv1d(2 * width, width, KERNEL, STRIDE, before=KERNEL - 1),
                LookaheadTransformer(
                    width,
                    shape.heads,
                    shape.hidden,
                    shape.windows,
                    head_dim=shape.head_dim,
                    attention_bias=shape.bias,
                    norm_bias=False,
                ),
            ]
        )
        self.spec = StreamSpec(
            name="moonshine_streaming",
            input=Port("audio", Fraction(shape.rate), 1),
            output=Port("features", Fraction(shape.rate, STRIDE * STRIDE * shape.frame), width),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            note="with each layer's window, as transformers has it where it gets an attention mask",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and x.shape[-1] < self.shape.frame:
            return x.new_zeros(x.shape[0], self.shape.width, 0), None
        return self.chain.step(x, state, end=end)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published size, "tiny", "small" or "medium", promises."""
    width, layers = PUBLISHED[variant]
    outer = ((15, 3),) * 2
    windows = (*outer, *((15, 0),) * (layers - 4), *outer)
    with torch.device("meta"):
        return MoonshineEncoder(MoonshineShape(width, 1, width, 4 * width, windows)).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return _prefix(checkpoint) is not None


def load(
    name: str, checkpoint: Checkpoint, part: str, *, bounds: str = "exclusive"
) -> tuple[Model, None]:
    """The encoder; the text decoder is not read. The option also comes as a string.

    bounds  How the windows of the config are counted. "exclusive", as in transformers: (16, 4) is
            15 states back and 3 ahead. "inclusive", as in Moonshine's own ONNX models: 16 and 4,
            which makes the look-ahead 320 ms.

    Raises UsageError for another option, CheckpointError for weights that do not fit.
    """
    if part == "decoder":
        raise UsageError(
            f"{name}: only Moonshine's encoder is here, and its decoder writes text; load the "
            "encoder"
        )
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in "
            f"Moonshine streaming (model.encoder.{_LOG_K})"
        )
    inclusive = choice("bounds", bounds, BOUNDS) == "inclusive"
    shape = _shape(checkpoint, inclusive)
    with torch.device("meta"):
        encoder = MoonshineEncoder(shape)
    fill(encoder, _origins(encoder, prefix), checkpoint)
    checkpoint.check_used(prefix)
    return encoder, None


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the encoder's names; None for another model."""
    return next((prefix for prefix in _PREFIXES if prefix + _LOG_K in checkpoint), None)


def _shape(checkpoint: Checkpoint, inclusive: bool) -> MoonshineShape:
    """Raises CheckpointError where the config gives no network, or another one."""
    config = nested(checkpoint, "encoder_config")
    refuse_others(checkpoint, config, {"hidden_act": "gelu"})
    if checkpoint.preprocessor.get("do_normalize"):
        raise CheckpointError(
            f"{checkpoint.name}: its preprocessor has do_normalize=true, which no published "
            "Moonshine has: a stream cannot know the variance of the whole clip"
        )
    width, hidden, layers, heads, rate = checked_sizes(
        checkpoint,
        config,
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=8,
        sample_rate=16_000,
    )
    (head_dim,) = checked_sizes(checkpoint, config, head_dim=max(1, width // heads))
    refuse_others(checkpoint, config, {"num_key_value_heads": heads})
    milliseconds = checked_number(checkpoint, config, "frame_ms", 5.0, 1000 / rate, 1000)
    bias = config.get("attention_bias", False)
    if type(bias) is not bool:
        raise CheckpointError(
            f"{checkpoint.name}: its config has attention_bias={bias!r:.80}; wanted true or false"
        )
    windows = _windows(config.get("sliding_windows"), layers, inclusive)
    if windows is None:
        raise CheckpointError(
            f"{checkpoint.name}: its config has sliding_windows="
            f"{config.get('sliding_windows')!r:.80}; wanted a pair [states back, states ahead] for "
            f"each of its {layers} layers"
        )
    return MoonshineShape(
        width, heads, head_dim, hidden, windows, bias, rate, round(rate * milliseconds / 1000)
    )


def _windows(stated: Any, layers: int, inclusive: bool) -> tuple[tuple[int, int], ...] | None:
    """(past, ahead) of each layer; None where that is not what is stated."""
    if stated is None:
        stated = [[16, 4], [16, 4], [16, 0], [16, 0], [16, 4], [16, 4]]
    if not isinstance(stated, list) or len(stated) != layers:
        return None
    windows = []
    for pair in stated:
        if not isinstance(pair, list) or len(pair) != 2:
            return None
        if not all(
            type(n) is int and least <= n <= 4096 for least, n in zip((1, 0), pair, strict=True)
        ):
            return None
        back, ahead = pair
        windows.append((back, ahead) if inclusive else (back - 1, max(0, ahead - 1)))
    return tuple(windows)


_LAYER = {
    "out_proj": "self_attn.o_proj",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
}
_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}


def _origins(encoder: MoonshineEncoder, prefix: str) -> dict[str, Origin]:
    """Where each parameter comes from."""
    outer = {
        "chain.layers.0.log_k": f"{prefix}{_LOG_K}",
        "chain.layers.0.linear.weight": f"{prefix}embedder.linear.weight",
        "chain.layers.1": f"{prefix}embedder.conv1",
        "chain.layers.3": f"{prefix}embedder.conv2",
    }
    origins: dict[str, Origin] = {}
    for name in encoder.state_dict():
        owner, _, kind = name.rpartition(".")
        _, _, inner = name.partition("chain.layers.4.")
        if not inner:
            origins[name] = outer.get(name) or f"{outer[owner]}.{kind}"
        elif inner == "norm.weight":
            origins[name] = partial(_gain, f"{prefix}final_norm.gamma")
        else:
            _, number, layer, kind = inner.split(".")
            there = f"{prefix}layers.{number}"
            if layer in _NORMS:
                origins[name] = partial(_gain, f"{there}.{_NORMS[layer]}.gamma")
            elif layer == "in_proj":
                names = [f"{there}.self_attn.{which}_proj.{kind}" for which in "qkv"]
                origins[name] = partial(stacked, names)
            else:
                origins[name] = f"{there}.{_LAYER[layer]}.{kind}"
    return origins


def _gain(name: str, checkpoint: Checkpoint) -> Tensor:
    """The norms keep what is to be added to one."""
    return checkpoint.get(name) + 1
