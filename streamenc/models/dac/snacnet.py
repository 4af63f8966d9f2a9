"""SNAC's encoder and decoder: those of DAC with depthwise convolutions, and between them attention
within windows, noise, and groups of frames that are quantised together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.layers.activation import Snake
from streamenc.layers.attention.local import LocalAttention
from streamenc.layers.conv.centred import CentredConv1d
from streamenc.layers.streamed import Chain, Span, Streamed, steps_through
from streamenc.models.dac.blocks import DacNet, down_block, up_block
from streamenc.spec import Steps
from streamenc.state import State

NoiseKind: TypeAlias = Literal["seeded", "zero"]

HEAD = 64
# Of pseudo-random numbers, which are computed below it: a prime, whose square fits int64.
PRIME = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class SnacNet:
    """The shape of a SNAC.

    shape      Widths and strides; see DacNet.
    depthwise  Convolutions of the residual units see each channel alone.
    noise      The decoder has layers that add noise.
    window     Frames of a window of attention; 0 for no attention.
    group      Frames that are quantised together.
    """

    shape: DacNet
    depthwise: bool
    noise: bool
    window: int
    group: int

    def __post_init__(self) -> None:
        """Raises ValueError where a config makes no network, or none that anybody could hold."""
        if type(self.window) is not int or not 0 <= self.window <= 4096:
            raise ValueError(f"attn_window_size is {self.window!r}; wanted null or 1 to 4096")
        widths = (self.shape.latent, self.shape.decoder_width)
        if self.window and any(width % HEAD for width in widths):
            raise ValueError(f"{widths} channels have no attention in heads of {HEAD}")


class Regroup(Streamed):
    """Gives what comes in whole groups of positions; the rest waits.

    waiting  How many wait after each step, as what comes before gives so many beyond groups.

    State: those, (batch, channels, waiting); None for none.
    """

    def __init__(self, group: int, waiting: int) -> None:
        super().__init__()
        self.group, self.waiting = group, waiting

    @property
    def steps(self) -> Steps:
        return Steps(self.group + self.waiting, self.group, self.group, self.group)

    def reach(self, first: int, last: int) -> Span:
        return first, last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if isinstance(state, Tensor):
            x = torch.cat((state, x), dim=-1)
        if end or not self.waiting:
            return x, None
        ready = x.shape[-1] - self.waiting
        return x[..., :ready], x[..., ready:].contiguous()


class Noise(Streamed):
    """x + noise * linear(x), where the noise is one normal number at each position.

    The published layer draws it anew at each call. Here it is a function of the position since the
    stream's start, of the layer and of a seed: however a stream is cut, it is the same; or 0.

    rate    Positions for each frame; `offset`: how many more than whole frames come in the first
            step.

    State: whole frames so far, (batch,) int64; None without noise.
    """

    def __init__(
        self, width: int, kind: NoiseKind, seed: int, *, layer: int, rate: int, offset: int
    ) -> None:
        super().__init__()
        self.linear = CentredConv1d(width, width, 1, bias=False)
        self.kind: NoiseKind = kind
        self.seed, self.layer = seed, layer
        self.rate, self.offset = rate, offset

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return first, last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if self.kind == "zero":
            return x, None
        if isinstance(state, Tensor):
            start = state * self.rate + self.offset
        else:
            start = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        time = x.shape[-1]
        noise = self.normal(start[:, None] + torch.arange(time, device=x.device)).to(x.dtype)
        h, _ = self.linear.step(x, None)
        return torch.addcmul(x, noise[:, None], h), (start + time) // self.rate

    def normal(self, positions: Tensor) -> Tensor:
        """A number for each position, float64: normally distributed, of Box and Muller."""
        radius, angle = (
            self._uniform(positions, salt=2 * self.layer + number) for number in (0, 1)
        )
        return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()

    def _uniform(self, positions: Tensor, salt: int) -> Tensor:
        """Above 0 and below 1: squares modulo a prime, which any runtime computes alike."""
        key = (2_654_435_761 * (self.seed + 1) + 1_597_334_677 * (salt + 1)) % PRIME
        x = positions % PRIME
        # The key comes between rounds: before the first, it would only shift the positions.
        for factor, more in ((48_271, 11), (1_103_515_245, key), (16_807, 1_013_904_223)):
            x = (x * factor + more) % PRIME
            x = (x * x + x) % PRIME
        return (x.double() + 0.5) / PRIME


def snac_encoder(net: SnacNet) -> Chain:
    """(batch, 1, samples) -> (batch, latent, frames), in whole groups."""
    shape = net.shape
    width = shape.encoder_width
    layers: list[nn.Module] = [CentredConv1d(shape.channels, width, 7)]
    for stride in shape.encoder_strides:
        layers.append(down_block(width, 2 * width, stride, depthwise=net.depthwise))
        width *= 2
    if net.window:
        layers.append(LocalAttention(width, HEAD, net.window))
    layers.append(CentredConv1d(width, width, 7, groups=width if net.depthwise else 1))
    waiting = steps_through(layers).lead_out % net.group if net.window else 0
    return Chain([*layers, Regroup(net.group, waiting)])


def snac_decoder(net: SnacNet, kind: NoiseKind, seed: int) -> Chain:
    """(batch, latent, frames) -> (batch, 1, samples)."""
    shape = net.shape
    latent, width = shape.latent, shape.decoder_width
    layers: list[nn.Module] = [CentredConv1d(latent, width, 7)]
    if net.depthwise:
        layers = [CentredConv1d(latent, latent, 7, groups=latent), CentredConv1d(latent, width, 1)]
    if net.window:
        layers.append(LocalAttention(width, HEAD, net.window))
    rate = 1
    for number, stride in enumerate(shape.decoder_strides):
        rate *= stride
        build = partial(
            up_block,
            width,
            width // 2,
            stride,
            output_padding=stride % 2,
            depthwise=net.depthwise,
        )
        noise: Noise | None = None
        if net.noise:
            up = build().layers[:2]
            offset = steps_through([*layers, *up]).lead_out % rate
            noise = Noise(width // 2, kind, seed, layer=number, rate=rate, offset=offset)
        layers.append(build(beside=noise))
        width //= 2
    return Chain([*layers, Snake(width), CentredConv1d(width, shape.channels, 7), nn.Tanh()])


def snac_origins(chain: Chain, side: str) -> dict[str, Origin]:
    """Where each tensor of an encoder or decoder comes from, weight normalisation folded in."""
    outer = {"encoder": "block", "decoder": "model"}[side]
    origins: dict[str, Origin] = {}
    for name in chain.state_dict():
        path, kind = name.rsplit(".", 1)
        there = path.replace("block.layers.", "layers.").removeprefix("layers.")
        there = f"{side}.{outer}.{there.replace('layers.', 'block.')}"
        if kind == "frequencies":
            origins[name] = f"{there}.rel_pos.inv_freq"
        else:
            origins[name] = (
                partial(Checkpoint.folded, prefix=there) if kind == "weight" else f"{there}.{kind}"
            )
    return origins


def tree(strides: Sequence[int]) -> list[tuple[int, int]]:
    """The codes of a group, as (level, which of the level's): each before those below it."""

    def below(level: int, index: int) -> list[tuple[int, int]]:
        found = [(level, index)]
        if level + 1 < len(strides):
            children = strides[level] // strides[level + 1]
            for child in range(children):
                found += below(level + 1, index * children + child)
        return found

    return below(0, 0)
