"""The network of the Cosmos tokenizers: its shape, read off the tensors, and its chains of layers.

Layers are named as diffusers names them; `CosmosNames` turns these into the names of each published
layout. The tensors tell the shape, as NVIDIA's archives come without a config; only by how much
their video models shrink time and space has to be said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.errors import CheckpointError
from streamenc.layers.streamed import Chain
from streamenc.layers.video.axial import SpatialAttention, TemporalAttention
from streamenc.layers.video.causal3d import (
    Downsample,
    Factorised,
    FrameConv,
    FrameNorm,
    ImageDownsample,
    ImageUpsample,
    Upsample,
    VideoResidual,
)
from streamenc.layers.video.wavelet import HAAR, Patch, Unpatch
from streamenc.models.videomodel import kernel

Side: TypeAlias = Literal["encoder", "decoder"]
# diffusers' folders, NVIDIA's archives of video models, and those of image models.
Layout: TypeAlias = Literal["diffusers", "video", "images"]
PATCHES = (2, 4, 8)
# Of the image models' normalisation; video models normalise whole frames.
GROUPS = 32

_FIRST: dict[Layout, str] = {
    "diffusers": "conv_in.conv_s.weight",
    "video": "conv_in.0.conv3d.weight",
    "images": "conv_in.weight",
}
_STAGES = {"encoder": "down_blocks", "decoder": "up_blocks"}
_SAMPLERS = {"encoder": "downsamplers.0", "decoder": "upsamplers.0"}
# From diffusers' names to NVIDIA's; {n} is an index. A rule ends the search in its group.
_RENAMED = [
    (r"\bdown_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"\bup_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"\b(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.", r"\1.\2.\1sample."),
    (r"\bmid_block\.resnets\.0\.", r"mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", r"mid.block_2."),
    (r"\b(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.", r"\1.\2.attn.\3.0."),
    (r"\b(down|up)_blocks\.(\d+)\.temp_attentions\.(\d+)\.", r"\1.\2.attn.\3.1."),
    (r"\bmid_block\.attentions\.0\.", r"mid.attn_1.0."),
    (r"\bmid_block\.temp_attentions\.0\.", r"mid.attn_1.1."),
    (r"\bconv_s\.", r"0.conv3d."),
    (r"\bconv_t\.", r"1.conv3d."),
    (r"\bconv_shortcut\.", r"nin_shortcut.conv3d."),
    (r"\bto_([qkv])\.", r"\1.conv3d."),
    (r"\bto_out\.", r"proj_out.conv3d."),
    (r"\b(downsample|upsample)\.(conv\d)\.", r"\1.\2.conv3d."),
    (r"\b((?:post_)?quant_conv)\.", r"\1.conv3d."),
]
_NORM = re.compile(r"\b(norm\d?|norm_out)\.(weight|bias)$")


class CosmosNames:
    """From our names of tensors to those of one layout.

    up_levels  How many stages the decoder has: NVIDIA counts them from the last one on.
    """

    def __init__(self, layout: Layout, up_levels: int) -> None:
        self.layout: Layout = layout
        self.up_levels = up_levels

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> CosmosNames | None:
        """None where the tensors are not those of a Cosmos tokenizer."""
        for layout, first in _FIRST.items():
            for side in ("encoder", "decoder"):
                name = f"{side}.{first}"
                if name in checkpoint and _patch(checkpoint, layout, side) is not None:
                    levels = 0
                    while f"decoder.up.{levels}.block.0.norm1.{_inner(layout)}weight" in checkpoint:
                        levels += 1
                    return cls(layout, levels)
        return None

    def __call__(self, name: str) -> str:
        if self.layout != "images":
            name = _NORM.sub(r"\1.norm.\2", name)
        if self.layout == "diffusers":
            return re.sub(r"\bto_out\.", "to_out.0.", name)
        for pattern, to in _RENAMED:
            name = re.sub(pattern, to, name)
        name = re.sub(r"\bup\.(\d+)\.", lambda m: f"up.{self.up_levels - 1 - int(m[1])}.", name)
        if self.layout == "images":
            name = re.sub(r"\b(attn\.\d+|attn_1)\.0\.", r"\1.", name).replace(".conv3d.", ".")
        return name


def _inner(layout: Layout) -> str:
    return "" if layout == "images" else "norm."


def _patch(checkpoint: Checkpoint, layout: Layout, side: str) -> int | None:
    """The patch size that the first convolution's inputs, or the last one's outputs, tell."""
    axes = 2 if layout == "images" else 3
    last = {"diffusers": "conv_s", "video": "0.conv3d", "images": ""}[layout]
    name = f"{side}.{_FIRST[layout]}"
    if side == "decoder":
        name = f"decoder.conv_out.{last}.weight".replace("..", ".")
    if name not in checkpoint:
        return None
    shape = checkpoint.shape(name)
    channels = shape[0 if side == "decoder" else 1] if len(shape) == axes + 2 else 0
    return next((p for p in PATCHES if 3 * p**axes == channels), None)


@dataclass(frozen=True, slots=True)
class Stage:
    """blocks: widths in and out; `space` and `time`: what its sampler changes."""

    blocks: tuple[tuple[int, int], ...]
    attention: bool
    space: bool
    time: bool


@dataclass(frozen=True, slots=True)
class CosmosShape:
    """One side of a tokenizer.

    patch     Size of the wavelet's blocks.
    width     Channels of the first convolution's output.
    latent    Channels between the network and the projection of its latents.
    embedding  Channels of the latents.
    """

    side: Side
    images: bool
    patch: int
    width: int
    stages: tuple[Stage, ...]
    latent: int
    embedding: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        names: CosmosNames,
        side: Side,
        factors: tuple[int, int] | None = None,
    ) -> CosmosShape:
        """Raises CheckpointError where that side is missing or is no whole network.

        factors  Frames and pixels to a latent, for NVIDIA's video models.
        """
        images = names.layout == "images"
        patch = _patch(checkpoint, names.layout, side)
        conv = "weight" if images else "conv_s.weight"
        if patch is None:
            raise CheckpointError(
                f"{checkpoint.name} has no {side} of a Cosmos tokenizer: "
                f"{names(f'{side}.conv_in.{conv}')!r} is missing, or is not of 3 colours in "
                f"patches of {' or '.join(map(str, PATCHES))} pixels"
            )

        def size(name: str, axis: int) -> int:
            shape = checkpoint.shape(names(name))
            if len(shape) <= axis:
                raise CheckpointError(
                    f"{checkpoint.name}: {names(name)!r} has shape {shape}, no convolution's"
                )
            found: int = shape[axis]
            return found

        stages: list[Stage] = []
        while names(f"{side}.{_STAGES[side]}.{len(stages)}.resnets.0.norm1.weight") in checkpoint:
            at = f"{side}.{_STAGES[side]}.{len(stages)}"
            blocks: list[tuple[int, int]] = []
            while names(f"{at}.resnets.{len(blocks)}.norm1.weight") in checkpoint:
                first = f"{at}.resnets.{len(blocks)}.conv1.{conv}"
                blocks.append((size(first, 1), size(first, 0)))
            convs = [names(f"{at}.{_SAMPLERS[side]}.{c}.weight") for c in ("conv1", "conv2")]
            there = [name in checkpoint for name in convs]
            if images:
                there = [names(f"{at}.{_SAMPLERS[side]}.conv.weight") in checkpoint, False]
            elif factors is not None:
                there = _sampled(side, len(stages), patch, *factors)
            elif side == "decoder":
                there.reverse()
            attention = names(f"{at}.attentions.0.norm.weight") in checkpoint
            stages.append(Stage(tuple(blocks), attention, *there))
            if side == "decoder" and len(stages) == names.up_levels:
                break  # NVIDIA's index counts down, and would go below 0
        if factors is not None and stages:
            # The last stage has no sampler.
            stages[-1] = replace(stages[-1], space=False, time=False)
        widths = {
            size(f"{side}.conv_in.{conv}", 0),
            *(w for s in stages for b in s.blocks for w in b),
        }
        if images and any(width % GROUPS for width in widths):
            raise CheckpointError(
                f"{checkpoint.name}: layers of {sorted(widths)} channels; they are normalised in "
                f"{GROUPS} groups, so wanted multiples of that"
            )
        quant = "quant_conv" if side == "encoder" else "post_quant_conv"
        inward = side == "encoder"
        return cls(
            side,
            images,
            patch,
            size(f"{side}.conv_in.{conv}", 0),
            tuple(stages),
            size(f"{quant}.weight", 1 if inward else 0),
            size(f"{quant}.weight", 0 if inward else 1),
        )

    @property
    def spatial(self) -> int:
        """Pixels of height, and of width, for each place of the latents."""
        return self.patch << sum(stage.space for stage in self.stages)

    @property
    def temporal(self) -> int:
        """Frames for each latent after the first; 1 for images."""
        return 1 if self.images else self.patch << sum(stage.time for stage in self.stages)


def _sampled(side: Side, stage: int, patch: int, temporal: int, spatial: int) -> list[bool]:
    """Whether the sampler after a stage changes space, and time.

    NVIDIA's samplers hold the weights of all their convolutions, used or not, so that only the
    factors tell. On the way up time waits for the second sampler, and takes space with it.
    """
    in_space, in_time = ((f // patch).bit_length() - 1 for f in (spatial, temporal))
    if side == "encoder":
        return [stage < in_space, stage < in_time]
    time = 0 < stage <= in_time
    return [time or (stage < in_space and in_space > in_time), time]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far attention along time sees, in latents; `growing`: a stream has no more of them."""

    latents: int
    growing: bool


class CosmosChain(Chain):
    """The layers of one side, with the name that each has in a checkpoint."""

    def __init__(self, layers: list[tuple[str, nn.Module]]) -> None:
        super().__init__(layer for _, layer in layers)
        self.names = [name for name, _ in layers]

    def origins(self, names: CosmosNames) -> dict[str, Origin]:
        """Where each parameter comes from; see `fill`."""
        origins: dict[str, Origin] = {}
        for ours, target in self.state_dict().items():
            _, index, rest = ours.split(".", 2)
            theirs = names(f"{self.names[int(index)]}.{rest}")
            if rest == "wavelets":
                origins[ours] = _wavelets(theirs)
            else:
                origins[ours] = kernel(theirs, tuple(target.shape))
        return origins


def _wavelets(name: str) -> Callable[[Checkpoint], Tensor]:
    """An archive in half precision holds a wavelet that is rounded to it; folders hold none."""

    def read(checkpoint: Checkpoint) -> Tensor:
        return checkpoint.get(name) if name in checkpoint else torch.tensor(HAAR)

    return read


def build(shape: CosmosShape, reach: Reach) -> CosmosChain:
    """The layers of one side."""
    side = _encoder if shape.side == "encoder" else _decoder
    return CosmosChain(list(side(shape, reach)))


def _norm(shape: CosmosShape) -> Callable[[int], nn.Module]:
    """Images are normalised in groups of channels, frames of video whole."""
    return partial(FrameNorm, groups=GROUPS if shape.images else 1)


def _residual(shape: CosmosShape, in_channels: int, out_channels: int) -> VideoResidual:
    return VideoResidual(in_channels, out_channels, _norm(shape), partial(_conv, shape))


def _conv(shape: CosmosShape, in_channels: int, out_channels: int) -> nn.Module:
    if shape.images:
        return FrameConv(in_channels, out_channels, 3)
    return Factorised(in_channels, out_channels)


def _encoder(shape: CosmosShape, reach: Reach) -> Iterator[tuple[str, nn.Module]]:
    colours = 3 * shape.patch ** (2 if shape.images else 3)
    patcher = "patcher" if shape.images else "patcher3d"
    yield f"encoder.{patcher}", Patch(shape.patch, images=shape.images)
    yield "encoder.conv_in", _conv(shape, colours, shape.width)
    rate = 1 << sum(stage.time for stage in shape.stages)
    width = shape.width
    for i, stage in enumerate(shape.stages):
        at = f"encoder.down_blocks.{i}"
        yield from _blocks(shape, stage, at, reach, rate)
        width = stage.blocks[-1][1]
        if shape.images and stage.space:
            yield f"{at}.downsamplers.0", ImageDownsample(width)
        elif stage.space or stage.time:
            yield f"{at}.downsamplers.0", Downsample(width, space=stage.space, time=stage.time)
        rate //= 1 + stage.time
    yield from _middle(shape, "encoder.mid_block", width, reach)
    yield from _end(shape, "encoder", width, shape.latent)
    yield "quant_conv", FrameConv(shape.latent, shape.embedding)


def _decoder(shape: CosmosShape, reach: Reach) -> Iterator[tuple[str, nn.Module]]:
    yield "post_quant_conv", FrameConv(shape.embedding, shape.latent)
    yield "decoder.conv_in", _conv(shape, shape.latent, shape.width)
    yield from _middle(shape, "decoder.mid_block", shape.width, reach)
    rate, width = 1, shape.width
    for i, stage in enumerate(shape.stages):
        at = f"decoder.up_blocks.{i}"
        yield from _blocks(shape, stage, at, reach, rate)
        width = stage.blocks[-1][1]
        if shape.images and stage.space:
            yield f"{at}.upsamplers.0", ImageUpsample(width)
        elif stage.space or stage.time:
            yield f"{at}.upsamplers.0", Upsample(width, space=stage.space, time=stage.time)
        rate *= 1 + stage.time
    colours = 3 * shape.patch ** (2 if shape.images else 3)
    yield from _end(shape, "decoder", width, colours)
    unpatcher = "unpatcher" if shape.images else "unpatcher3d"
    yield f"decoder.{unpatcher}", Unpatch(shape.patch, images=shape.images)


def _end(shape: CosmosShape, side: Side, width: int, out: int) -> Iterator[tuple[str, nn.Module]]:
    yield f"{side}.norm_out", _norm(shape)(width)
    yield "", nn.SiLU()
    yield f"{side}.conv_out", _conv(shape, width, out)


def _middle(
    shape: CosmosShape, at: str, width: int, reach: Reach
) -> Iterator[tuple[str, nn.Module]]:
    yield f"{at}.resnets.0", _residual(shape, width, width)
    yield from _attention(shape, at, 0, width, reach, 1)
    yield f"{at}.resnets.1", _residual(shape, width, width)


def _blocks(
    shape: CosmosShape, stage: Stage, at: str, reach: Reach, rate: int
) -> Iterator[tuple[str, nn.Module]]:
    for j, (before, after) in enumerate(stage.blocks):
        yield f"{at}.resnets.{j}", _residual(shape, before, after)
        if stage.attention:
            yield from _attention(shape, at, j, after, reach, rate)


def _attention(
    shape: CosmosShape, at: str, index: int, width: int, reach: Reach, rate: int
) -> Iterator[tuple[str, nn.Module]]:
    """rate: frames at this layer for each latent."""
    yield f"{at}.attentions.{index}", SpatialAttention(width, _norm(shape))
    if not shape.images:
        yield (
            f"{at}.temp_attentions.{index}",
            TemporalAttention(width, reach.latents * rate, max_step=rate, growing=reach.growing),
        )
