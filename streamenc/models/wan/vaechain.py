"""The network of Wan's VAE, made from a description of its layers.

Convolutions of 3 x 3 x 3 over frames, attention within each frame in the middle, and samplers that
halve or double the frames' sides and, in some, their number. Wan 2.2 has a shortcut around each
level that folds pixels into channels, or unfolds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from streamenc.layers.streamed import Chain, Residual
from streamenc.layers.video.axial import SpatialAttention
from streamenc.layers.video.causal3d import CausalConv3d, ChannelNorm, FrameConv, VideoResidual
from streamenc.layers.video.rescale import (
    Folded,
    FoldedDown,
    RepeatedUp,
    StridedDown,
    Unfolded,
    UnfoldedUp,
)

Side: TypeAlias = Literal["encoder", "decoder"]
Kind: TypeAlias = Literal["block", "sampler"]
MIDDLE = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")


@dataclass(frozen=True, slots=True)
class Layer:
    """into, out: channels; `time`: whether a sampler changes the number of frames."""

    kind: Kind
    into: int
    out: int
    time: bool = False


@dataclass(frozen=True, slots=True)
class WanShape:
    """One side.

    patch   Pixels of height, and of width, that are one place of the outermost layer.
    width   Channels of the first convolution's output.
    levels  Layers between that and the middle, or between the middle and the end.
    grouped Whether there is a shortcut around each level that has a sampler, and around the
            encoder's last one.
    latent  Channels of the latents.
    """

    side: Side
    patch: int
    width: int
    levels: tuple[tuple[Layer, ...], ...]
    grouped: bool
    latent: int

    @property
    def samplers(self) -> list[Layer]:
        return [layer for level in self.levels for layer in level if layer.kind == "sampler"]

    @property
    def spatial(self) -> int:
        """Pixels of height, and of width, for each place of the latents."""
        return self.patch << len(self.samplers)

    @property
    def temporal(self) -> int:
        """Frames for each latent after the first."""
        return 1 << sum(layer.time for layer in self.samplers)


class WanChain(Chain):
    """The layers of one side.

    `named` gives those with weights, by the names that diffusers gives to the fixed ones, and
    "levels.LEVEL.LAYER" to the others.
    """

    def __init__(self, shape: WanShape) -> None:
        self._names: dict[nn.Module, str] = {}
        super().__init__(
            _encoder(shape, self) if shape.side == "encoder" else _decoder(shape, self)
        )
        self.shape = shape

    def called(self, name: str, layer: nn.Module) -> nn.Module:
        self._names[layer] = name
        return layer

    def named(self) -> Iterator[tuple[str, str, nn.Module]]:
        """(path in this chain, name, layer) of each layer with weights."""
        for path, layer in self.named_modules():
            if layer in self._names:
                yield path, self._names[layer], layer


def _encoder(shape: WanShape, chain: WanChain) -> Iterator[nn.Module]:
    if shape.patch > 1:
        yield Folded(shape.patch)
    yield chain.called("conv_in", CausalConv3d(3 * shape.patch**2, shape.width))
    width = shape.width
    for index, level in enumerate(shape.levels):
        yield from _level(shape, chain, index)
        width = level[-1].out
    yield from _middle(chain, width)
    yield from _end(chain, width, 2 * shape.latent)
    # Of the projection's outputs, means and logarithms of variances, the means alone.
    yield chain.called("quant_conv", FrameConv(2 * shape.latent, shape.latent))


def _decoder(shape: WanShape, chain: WanChain) -> Iterator[nn.Module]:
    yield chain.called("post_quant_conv", FrameConv(shape.latent, shape.latent))
    yield chain.called("conv_in", CausalConv3d(shape.latent, shape.width))
    yield from _middle(chain, shape.width)
    width = shape.width
    for index, level in enumerate(shape.levels):
        yield from _level(shape, chain, index)
        width = level[-1].out
    yield from _end(chain, width, 3 * shape.patch**2)
    if shape.patch > 1:
        yield Unfolded(shape.patch)
    yield nn.Hardtanh()  # as published: cut to [-1, 1]


def _middle(chain: WanChain, width: int) -> Iterator[nn.Module]:
    first, attention, second = MIDDLE
    yield chain.called(first, _block(width, width))
    yield chain.called(attention, SpatialAttention(width, ChannelNorm))
    yield chain.called(second, _block(width, width))


def _end(chain: WanChain, width: int, out: int) -> Iterator[nn.Module]:
    yield chain.called("norm_out", ChannelNorm(width))
    yield nn.SiLU()
    yield chain.called("conv_out", CausalConv3d(width, out))


def _level(shape: WanShape, chain: WanChain, index: int) -> Iterator[nn.Module]:
    """The layers of a level, or one with a shortcut around them. Raises ValueError where none
    fits."""
    level, inward = shape.levels[index], shape.side == "encoder"
    layers = [
        chain.called(f"levels.{index}.{j}", _layer(layer, inward)) for j, layer in enumerate(level)
    ]
    samplers = [layer for layer in level if layer.kind == "sampler"]
    if not shape.grouped or not (samplers or inward):
        yield from layers
        return
    shortcut = (FoldedDown if inward else UnfoldedUp)(
        level[0].into,
        level[-1].out,
        space=1 << len(samplers),
        time=1 << sum(layer.time for layer in samplers),
    )
    yield Residual(Chain(layers), shortcut)


def _layer(layer: Layer, inward: bool) -> nn.Module:
    if layer.kind == "block":
        return _block(layer.into, layer.out)
    if inward:
        return StridedDown(layer.into, time=layer.time)
    return RepeatedUp(layer.into, layer.out, time=layer.time)


def _block(into: int, out: int) -> VideoResidual:
    return VideoResidual(into, out, ChannelNorm, CausalConv3d)
