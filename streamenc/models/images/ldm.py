"""The network of VQGAN, MoVQ and of the latent diffusion models' VAE (arXiv 2012.09841, 2209.09002,
2112.10752).

Residual blocks with group normalisation, in levels between which the grid is halved or doubled, and
attention over the grid in the middle and in some levels. In MoVQ's decoder the map that is decoded
modulates each normalisation. All of the shape is read off the tensors.
Two layouts: that of taming-transformers and latent-diffusion (encoder.down.0.block.0.conv1), whose
names ours are, and diffusers' (encoder.down_blocks.0.resnets.0.conv1), old and new.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.errors import CheckpointError

Side = Literal["encoder", "decoder"]
EPS = 1e-6
# Of modulated normalisations, whatever a config says of the others.
_MODULATED_GROUPS = 32
MAX_LEVELS = 12
_PROJECTIONS = {"encoder": "quant_conv", "decoder": "post_quant_conv"}

# From our names to diffusers'; the newer ones of attention first. {n} is an index.
_RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\bmid\.block_(\d)\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}."),
    (r"\bmid\.attn_1\.", "mid_block.attentions.0."),
    (r"\b(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"\b(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"\b(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
    (r"\bnorm_out\.", "conv_norm_out."),
    (r"\b(attentions\.\d+)\.norm\.(?=norm_layer|conv_)", r"\1.spatial_norm."),
    (r"\b(attentions\.\d+)\.norm\.", r"\1.group_norm."),
]
_ATTENTION = {
    "new": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "old": {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
}
# A normalisation's own parameters, of those that are modulated.
_MODULATED = re.compile(r"(\.norm\w*)\.(weight|bias)$")
_PROJECTION = re.compile(r"\b(attentions\.\d+)\.(q|k|v|proj_out)\.")


@dataclass(frozen=True, slots=True)
class Level:
    """blocks: channels in and out of each; `scales`: whether the grid changes behind them."""

    blocks: tuple[tuple[int, int], ...]
    attention: bool
    scales: bool


@dataclass(frozen=True, slots=True)
class AutoencoderShape:
    """One side.

    channels  In and out: of images, and of the side's own latents.
    projected In and out of the 1 x 1 convolution beside it (quant_conv, post_quant_conv); None
              where there is none.
    levels    In the order in which they are computed.
    modulated Channels of the map that modulates each normalisation; 0 where none does.
    """

    side: Side
    channels: tuple[int, int]
    projected: tuple[int, int] | None
    width: int
    levels: tuple[Level, ...]
    attention: bool
    groups: int
    modulated: int = 0

    @property
    def spatial(self) -> int:
        """Pixels to a latent, in height and width."""
        return 1 << sum(level.scales for level in self.levels)


class AutoencoderNames:
    """From our names of tensors to those of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, diffusers: bool) -> None:
        self._checkpoint, self._prefix, self._diffusers = checkpoint, prefix, diffusers
        self._ups = 0
        while f"decoder.up_blocks.{self._ups}.resnets.0.conv1.weight" in checkpoint:
            self._ups += 1

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> AutoencoderNames | None:
        """None where the tensors are not those of such a network."""
        for prefix in ("", "first_stage_model.", "module."):
            for side, end in (("encoder", "conv_in"), ("decoder", "conv_out")):
                name = f"{prefix}{side}.{end}.weight"
                if name not in checkpoint or len(shape := checkpoint.shape(name)) != 4:
                    continue
                if shape[1 if side == "encoder" else 0] != 3:
                    continue
                for middle, diffusers in (("mid.block_1", False), ("mid_block.resnets.0", True)):
                    if f"{prefix}{side}.{middle}.conv1.weight" in checkpoint:
                        return cls(checkpoint, prefix, diffusers)
        return None

    def __call__(self, name: str) -> str:
        if not self._diffusers:
            return self._prefix + name
        name = re.sub(r"\bup\.(\d+)\.", lambda m: f"up.{self._ups - 1 - int(m[1])}.", name)
        for pattern, to in _RENAMED:
            name = re.sub(pattern, to, name)
        if _PROJECTION.search(name):
            for table in _ATTENTION.values():
                found = _PROJECTION.sub(lambda m, t=table: f"{m[1]}.{t[m[2]]}.", name)  # type: ignore[misc]
                if found in self._checkpoint:
                    return self._prefix + found
            name = found
        return self._prefix + name

    def __contains__(self, name: str) -> bool:
        return self(name) in self._checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(self(name))

    def convolution(self, name: str) -> tuple[int, int]:
        """Channels in and out. Raises CheckpointError where it is none."""
        shape = self.shape(name)
        if len(shape) != 4:
            raise CheckpointError(
                f"{self._checkpoint.name}: {self(name)} has shape {shape}; wanted a convolution's, "
                "(channels out, channels in, height, width)"
            )
        return shape[1], shape[0]

    def check_used(self, side: str) -> None:
        """Raises CheckpointError where a tensor of a side that was filled belongs to no layer: of
        a network that is read off its tensors, a missing one would otherwise go unnoticed."""
        parts = (f"{side}.", f"{_PROJECTIONS[side]}.")
        self._checkpoint.check_used(*(self._prefix + part for part in parts))


def shape_of(checkpoint: Checkpoint, names: AutoencoderNames, side: Side) -> AutoencoderShape:
    """Raises CheckpointError where a side is missing, or of a kind that is not this network."""
    if f"{side}.conv_in.weight" not in names or f"{side}.conv_out.weight" not in names:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is the first or last "
            f"layer of the {side}; load the part that is there, or the whole model"
        )
    config = checkpoint.config
    groups = config.get("norm_num_groups", 32)
    norm, act = config.get("norm_type", "group"), config.get("act_fn", "silu")
    known = norm in ("group", "spatial") and act in ("silu", "swish")
    if type(groups) is not int or groups < 1 or not known:
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has norm_num_groups {groups!r}, norm_type "
            f"{norm!r}, act_fn {act!r}; wanted a number, group or spatial, and silu: a model of "
            "another kind"
        )
    modulated = 0
    if (map_ := f"{side}.norm_out.conv_y.weight") in names:
        modulated, groups = names.convolution(map_)[0], _MODULATED_GROUPS
    if side == "decoder" and "norm_type" in config and (norm == "spatial") != bool(modulated):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has norm_type {norm!r}, but the last "
            f"normalisation of its decoder is {'' if modulated else 'not '}modulated "
            f"({names(map_)}); are config and weights of two models?"
        )
    stage = "down" if side == "encoder" else "up"
    levels = []
    for i in range(MAX_LEVELS):
        blocks: list[tuple[int, int]] = []
        while (block := f"{side}.{stage}.{i}.block.{len(blocks)}.conv1.weight") in names:
            blocks.append(names.convolution(block))
        if not blocks:
            break
        attention = f"{side}.{stage}.{i}.attn.0.q.weight" in names
        scales = f"{side}.{stage}.{i}.{stage}sample.conv.weight" in names
        levels.append(Level(tuple(blocks), attention, scales))
    if side == "decoder":
        levels.reverse()
    projection = f"{_PROJECTIONS[side]}.weight"
    projected = names.convolution(projection) if projection in names else None
    channels, width = names.convolution(f"{side}.conv_in.weight")
    widths = {width, *(n for level in levels for block in level.blocks for n in block)}
    if not levels or any(n % groups for n in widths):
        raise CheckpointError(
            f"{checkpoint.name}: its {side} has {len(levels)} levels of {sorted(widths)} channels; "
            f"wanted multiples of {groups}, the groups of the normalisation"
        )
    return AutoencoderShape(
        side,
        (channels, names.convolution(f"{side}.conv_out.weight")[1]),
        projected,
        width,
        tuple(levels),
        f"{side}.mid.attn_1.q.weight" in names,
        groups,
        modulated,
    )


class _Norm(nn.GroupNorm):
    """Over groups of channels; where a map modulates it, times one function of it and plus another,
    of the nearest place of the map."""

    def __init__(self, channels: int, groups: int, modulated: int) -> None:
        super().__init__(groups, channels, EPS)
        convs = [nn.Conv2d(modulated, channels, 1) if modulated else None for _ in range(2)]
        self.conv_y, self.conv_b = convs

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        if zq is None or self.conv_y is None or self.conv_b is None:
            return y
        # Before it is enlarged, as each place is seen alone.
        scale, shift = (
            F.interpolate(conv(zq), size=x.shape[2:], mode="nearest")
            for conv in (self.conv_y, self.conv_b)
        )
        return y * scale + shift


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, groups: int, modulated: int) -> None:
        super().__init__()
        self.norm1 = _Norm(channels, groups, modulated)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = _Norm(width, groups, modulated)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, width, 1) if channels != width else None

    def forward(self, x: Tensor, zq: Tensor | None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x, zq)))
        y = self.conv2(F.silu(self.norm2(y, zq)))
        short = x if self.nin_shortcut is None else self.nin_shortcut(x)
        out: Tensor = short + y
        return out


class _Attention(nn.Module):
    """One head over all places of a grid."""

    def __init__(self, width: int, groups: int, modulated: int) -> None:
        super().__init__()
        self.norm = _Norm(width, groups, modulated)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, zq: Tensor | None) -> Tensor:
        places = self.norm(x, zq).flatten(2).transpose(1, 2)
        q, k, v = (linear(places)[:, None] for linear in (self.q, self.k, self.v))
        y: Tensor = self.proj_out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + y.transpose(1, 2).reshape(x.shape)


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Below and to the right only, as published.
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class _Level(nn.Module):
    def __init__(self, shape: Level, side: Side, groups: int, modulated: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            _ResidualBlock(*block, groups, modulated) for block in shape.blocks
        )
        widths = [out for _, out in shape.blocks] if shape.attention else []
        self.attn = nn.ModuleList(_Attention(width, groups, modulated) for width in widths)
        width = shape.blocks[-1][1]
        down, up = side == "encoder" and shape.scales, side == "decoder" and shape.scales
        self.downsample = _Downsample(width) if down else None
        self.upsample = _Upsample(width) if up else None

    def forward(self, x: Tensor, zq: Tensor | None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, zq)
            if self.attn:
                x = self.attn[i](x, zq)
        sampler = self.downsample or self.upsample
        return x if sampler is None else sampler(x)


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int, attention: bool, modulated: int) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(width, width, groups, modulated)
        self.attn_1 = _Attention(width, groups, modulated) if attention else None
        self.block_2 = _ResidualBlock(width, width, groups, modulated)

    def forward(self, x: Tensor, zq: Tensor | None) -> Tensor:
        x = self.block_1(x, zq)
        if self.attn_1 is not None:
            x = self.attn_1(x, zq)
        y: Tensor = self.block_2(x, zq)
        return y


class Network(nn.Module):
    """One side with its 1 x 1 convolution: (images, channels, height, width) to such."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        channels, out = shape.channels
        last = shape.levels[-1].blocks[-1][1]
        encodes = shape.side == "encoder"
        groups, modulated = shape.groups, shape.modulated
        self.conv_in = nn.Conv2d(channels, shape.width, 3, padding=1)
        middle = last if encodes else shape.width
        self.mid = _Middle(middle, groups, shape.attention, modulated)
        self.levels = nn.ModuleList(
            _Level(level, shape.side, groups, modulated) for level in shape.levels
        )
        self.norm_out = _Norm(last, groups, modulated)
        self.conv_out = nn.Conv2d(last, out, 3, padding=1)
        self.projection = nn.Conv2d(*shape.projected, 1) if shape.projected else None

    def forward(self, x: Tensor) -> Tensor:
        encodes = self.shape.side == "encoder"
        zq = x if self.shape.modulated else None
        if self.projection is not None and not encodes:
            x = self.projection(x)
        x = self.conv_in(x)
        if not encodes:
            x = self.mid(x, zq)
        for level in self.levels:
            x = level(x, zq)
        if encodes:
            x = self.mid(x, zq)
        x = self.conv_out(F.silu(self.norm_out(x, zq)))
        return self.projection(x) if self.projection is not None and encodes else x

    def origins(self, names: AutoencoderNames) -> Iterator[tuple[str, Origin]]:
        """Where each parameter comes from."""
        side = self.shape.side
        stage = "down" if side == "encoder" else "up"
        count = len(self.levels)
        for name in self.state_dict():
            first, _, rest = name.partition(".")
            if first == "projection":
                theirs = f"{_PROJECTIONS[side]}.{rest}"
            elif first == "levels":
                index, _, rest = rest.partition(".")
                level = int(index) if side == "encoder" else count - 1 - int(index)
                theirs = f"{side}.{stage}.{level}.{rest}"
            else:
                theirs = f"{side}.{name}"
            if self.shape.modulated:
                theirs = _MODULATED.sub(r"\1.norm_layer.\2", theirs)
            if re.search(r"\.(q|k|v|proj_out)\.weight$", name):
                yield name, _as_linear(names(theirs))
            else:
                yield name, names(theirs)


def _as_linear(name: str) -> Origin:
    """A matrix, which some layouts hold as a 1 x 1 convolution."""

    def read(checkpoint: Checkpoint) -> Tensor:
        weight = checkpoint.get(name)
        return weight.flatten(1) if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight

    return read
