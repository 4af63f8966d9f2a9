"""own: features of sound, from three causal convolutions. 16 kHz in, 50 frames a second out.

Its weights are drawn from a seed, so that the example needs no file. A model that was trained has
`recognises(checkpoint)` as well, and `load` fills it from the checkpoint that it gets.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from streamenc import UsageError, options
from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.streamed import Chain
from streamenc.models.model import Model
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

RATE = 16_000
WIDTH = 32
# What `streamenc models` lists: name -> (variant, as published_spec takes it; caption).
LISTED = {"own": ("", "own, features of sound from random convolutions, 50 frames a second")}


class OwnEncoder(Model):
    """Sound (batch, 1, samples) -> features (batch, 32, frames), a frame for each 320 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Chain(
            [
                CausalConv1d(1, WIDTH, 16, 8),
                nn.ELU(),
                CausalConv1d(WIDTH, WIDTH, 16, 8),
                nn.ELU(),
                CausalConv1d(WIDTH, WIDTH, 10, 5),
            ]
        )
        # Lead, hop and receptive field follow from the layers.
        self.spec = StreamSpec(
            name="own",
            input=Port("audio", Fraction(RATE), 1),
            output=Port("features", Fraction(RATE, self.steps.hop), WIDTH),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:  # the end of a stream that has nothing left
            return x.new_zeros(x.shape[0], WIDTH, 0), state
        return self.chain.step(x, state, end=end)


def load(name: str, checkpoint: None, part: str, *, seed: str | int = 0) -> tuple[OwnEncoder, None]:
    """The encoder; there is no decoder.

    seed  Of the weights.
    """
    if part == "decoder":
        raise UsageError("own has no decoder; load the encoder")
    generator = torch.Generator().manual_seed(options.integer("seed", seed, 0, 2**32 - 1))
    encoder = OwnEncoder()
    with torch.no_grad():
        for weight in encoder.parameters():
            scale = 1 / math.sqrt(weight[0].numel())
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return encoder, None


def published_spec(variant: str) -> StreamSpec:
    """What it promises, without any weights."""
    with torch.device("meta"):
        return OwnEncoder().spec
