"""VibeVoice's acoustic tokenizer: sound to 7.5 latents a second, and back (Microsoft; VibeVoice
report, arXiv 2508.19205).

Audio, 24 kHz mono -> seven stages of causal blocks, each a depthwise convolution and a
feed-forward, with strides between them -> latents of 64 channels, of which a diffusion model makes
others. Decoding mirrors it. All of it is causal.

Layout: the transformers folder of VibeVoiceAcousticTokenizerModel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.checkpoints.configs import MAX_SIZE, whole_number, whole_numbers
from streamenc.errors import CheckpointError, InputError
from streamenc.layers.conv.causal import CausalConv1d, CausalConvTranspose1d
from streamenc.layers.conv.convnext import SplitConvNeXt
from streamenc.layers.streamed import Chain, Streamed
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

FAMILY = "vibevoice_acoustic_tokenizer"
MAX_BLOCKS = 1 << 8
# What a config leaves out is what the published configuration class has.
_DEFAULTS: dict[str, Any] = {
    "channels": 1,
    "hidden_size": 64,
    "kernel_size": 7,
    "rms_norm_eps": 1e-5,
    "num_filters": 32,
    "downsampling_ratios": [2, 2, 4, 5, 5, 8],
    "depths": [3, 3, 3, 3, 3, 3, 8],
    "hidden_act": "gelu",
    "ffn_expansion": 4,
}


class _Shape:
    """A config, checked."""

    def __init__(self, config: dict[str, Any], preparation: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for a config that makes no sense, or another model."""
        c = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
        rate = preparation.get("sampling_rate", 24_000)
        sizes = {"channels": 64, "ffn_expansion": 64, "sampling_rate": 1 << 20}
        for key in ("hidden_size", "kernel_size", "num_filters", *sizes):
            value, high = rate if key == "sampling_rate" else c[key], sizes.get(key, MAX_SIZE)
            whole_number(key, value, high)
        eps = c["rms_norm_eps"]
        if type(eps) not in (int, float) or not 0 < eps <= 1:
            raise ValueError(f"rms_norm_eps is {eps!r}; wanted a number above 0, up to 1")
        if c["hidden_act"] != "gelu":
            raise ValueError(f"hidden_act is {c['hidden_act']!r}; only 'gelu' is known")
        self.ratios = tuple(whole_numbers("downsampling_ratios", c["downsampling_ratios"]))
        self.depths = tuple(whole_numbers("depths", c["depths"], MAX_BLOCKS))
        if len(self.depths) != len(self.ratios) + 1:
            raise ValueError(
                f"{len(self.depths)} depths, {len(self.ratios)} ratios; wanted one more"
            )
        self.c, self.hop = c, math.prod(self.ratios)
        if max(self.hop, c["num_filters"] << len(self.ratios)) > MAX_SIZE:
            raise ValueError(f"a hop of {self.hop} samples, or widths of more than {MAX_SIZE}")
        self.audio = Port("audio", Fraction(rate), c["channels"])
        self.latents = Port("features", Fraction(rate, self.hop), c["hidden_size"])

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Shape:
        """Raises CheckpointError."""
        try:
            return cls(checkpoint.config, checkpoint.preprocessor)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.name}: its config cannot be used: {error}"
            ) from error

    def layers(self, side: str) -> Iterator[tuple[str, Streamed]]:
        """The layers of a side, with the published name of each."""
        c = self.c
        kernel, width = c["kernel_size"], c["num_filters"]
        encodes = side == "encoder"
        depths = self.depths if encodes else self.depths[::-1]
        ratios = self.ratios if encodes else self.ratios[::-1]
        if not encodes:
            width <<= len(ratios)
        into = c["channels"] if encodes else c["hidden_size"]
        yield "stem.conv.conv", CausalConv1d(into, width, kernel)
        yield from self._blocks("stem.stage", depths[0], width)
        for index, ratio in enumerate(ratios):
            there = f"conv_layers.{index}"
            if encodes:
                conv = CausalConv1d(width, 2 * width, 2 * ratio, ratio)
                yield f"{there}.conv.conv", conv
                width *= 2
            else:
                raised = CausalConvTranspose1d(width, width // 2, 2 * ratio, ratio)
                yield f"{there}.convtr.convtr", raised
                width //= 2
            yield from self._blocks(f"{there}.stage", depths[index + 1], width)
        out = c["hidden_size"] if encodes else c["channels"]
        yield "head.conv", CausalConv1d(width, out, kernel)

    def _blocks(self, there: str, depth: int, width: int) -> Iterator[tuple[str, Streamed]]:
        hidden, kernel = self.c["ffn_expansion"] * width, self.c["kernel_size"]
        for index in range(depth):
            block = SplitConvNeXt(width, hidden, kernel, norm_eps=self.c["rms_norm_eps"])
            yield f"{there}.{index}", block


class VibeVoiceEncoder(Model):
    """Audio -> latents (batch, 64, frames), their means: no noise is added."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.chain = Chain(layer for _, layer in shape.layers("encoder"))
        self.spec = StreamSpec(
            name=FAMILY,
            input=shape.audio,
            output=shape.latents,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            note="of the sound as it comes: its level is not set, and no noise is added",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), state
        if end:
            x = F.pad(x, (0, -x.shape[-1] % self.spec.hop))
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)


class VibeVoiceDecoder(Model):
    """Latents -> audio, 3200 samples for each."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.chain = Chain(layer for _, layer in shape.layers("decoder"))
        self.spec = StreamSpec(
            name=FAMILY,
            input=shape.latents,
            output=shape.audio,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
        )

    def before(self, x: Signal) -> Tensor:
        latents, channels = super().before(x), self.spec.input.channels
        if latents.ndim != 3 or latents.shape[1] != channels:
            raise InputError(
                f"latents have shape {tuple(latents.shape)}; {self.spec.name} wants (batch, "
                f"{channels}, frames)"
            )
        return latents.to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), state
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of the tokenizer."""
    ends = ("stem.stage.0.mixer.conv.weight", "head.conv.weight")
    return any(
        all(f"{side}.{end}" in checkpoint for end in ends) for side in ("encoder", "decoder")
    )


def published_spec(variant: str) -> StreamSpec:
    """What the published encoder promises; it has no variants."""
    with torch.device("meta"):
        return VibeVoiceEncoder(_Shape({}, {})).spec


def load(name: str, checkpoint: Checkpoint, part: str) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them."""
    shape = _Shape.of(checkpoint)
    encoder: VibeVoiceEncoder | None = None
    decoder: VibeVoiceDecoder | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = VibeVoiceEncoder(shape)
        _fill(encoder, shape, "encoder", checkpoint)
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = VibeVoiceDecoder(shape)
        _fill(decoder, shape, "decoder", checkpoint)
    return encoder, decoder


def _fill(model: Model, shape: _Shape, side: str, checkpoint: Checkpoint) -> None:
    with torch.device("meta"):
        names = [name for name, _ in shape.layers(side)]
    for name, layer in zip(names, model.chain.layers, strict=True):
        there, origins = f"{side}.{name}", dict[str, Origin]()
        if isinstance(layer, SplitConvNeXt):
            origins |= {"norm1.weight": f"{there}.norm.weight", "scale1": f"{there}.gamma"}
            origins |= {"norm2.weight": f"{there}.ffn_norm.weight", "scale2": f"{there}.ffn_gamma"}
            inner = {"depthwise": "mixer.conv", "up": "ffn.linear1", "down": "ffn.linear2"}
        else:
            inner = {"": ""}
        for ours, published in inner.items():
            origins |= {
                f"{ours}.{p}".lstrip("."): f"{there}.{published}.{p}".replace("..", ".")
                for p in ("weight", "bias")
            }
        fill(layer, origins, checkpoint)
    checkpoint.check_used(f"{side}.")
