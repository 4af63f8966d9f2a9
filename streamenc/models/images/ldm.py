"""The network of VQGAN and of the latent diffusion models' VAE (arXiv 2012.09841, 2112.10752).

Residual blocks with group normalisation, in levels between which the grid is halved or doubled, and
attention over the grid in the middle and in some levels. All of the shape is read off the tensors.
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
    (r"\b(attentions\.\d+)\.norm\.", r"\1.group_norm."),
]
_ATTENTION = {
    "new": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "old": {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
}
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
    """

    side: Side
    channels: tuple[int, int]
    projected: tuple[int, int] | None
    width: int
    levels: tuple[Level, ...]
    attention: bool
    groups: int

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
        inside = (f"{self._prefix}{side}.", f"{self._prefix}{_PROJECTIONS[side]}.")
        unread = [
            n for n in self._checkpoint.names - set(self._checkpoint.read) if n.startswith(inside)
        ]
        if unread:
            raise CheckpointError(
                f"{self._checkpoint.name}: {min(unread)} belongs to no layer of this network; is "
                "another tensor of its layer missing, or the model of another kind?"
            )


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
    if type(groups) is not int or groups < 1 or norm != "group" or act not in ("silu", "swish"):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has norm_num_groups {groups!r}, norm_type "
            f"{norm!r}, act_fn {act!r}; wanted a number, group and silu: a model of another kind"
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
    )


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, EPS)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, width, 1) if channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        short = x if self.nin_shortcut is None else self.nin_shortcut(x)
        out: Tensor = short + y
        return out


class _Attention(nn.Module):
    """One head over all places of a grid."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        places = self.norm(x).flatten(2).transpose(1, 2)
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
    def __init__(self, shape: Level, side: Side, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(_ResidualBlock(*block, groups) for block in shape.blocks)
        widths = [out for _, out in shape.blocks] if shape.attention else []
        self.attn = nn.ModuleList(_Attention(width, groups) for width in widths)
        width = shape.blocks[-1][1]
        down, up = side == "encoder" and shape.scales, side == "decoder" and shape.scales
        self.downsample = _Downsample(width) if down else None
        self.upsample = _Upsample(width) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        sampler = self.downsample or self.upsample
        return x if sampler is None else sampler(x)


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(width, width, groups)
        self.attn_1 = _Attention(width, groups) if attention else nn.Identity()
        self.block_2 = _ResidualBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return y


class Network(nn.Module):
    """One side with its 1 x 1 convolution: (images, channels, height, width) to such."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        channels, out = shape.channels
        last = shape.levels[-1].blocks[-1][1]
        encodes = shape.side == "encoder"
        self.conv_in = nn.Conv2d(channels, shape.width, 3, padding=1)
        self.mid = _Middle(last if encodes else shape.width, shape.groups, shape.attention)
        self.levels = nn.ModuleList(
            _Level(level, shape.side, shape.groups) for level in shape.levels
        )
        self.norm_out = nn.GroupNorm(shape.groups, last, EPS)
        self.conv_out = nn.Conv2d(last, out, 3, padding=1)
        self.projection = nn.Conv2d(*shape.projected, 1) if shape.projected else None

    def forward(self, x: Tensor) -> Tensor:
        encodes = self.shape.side == "encoder"
        if self.projection is not None and not encodes:
            x = self.projection(x)
        x = self.conv_in(x)
        if not encodes:
            x = self.mid(x)
        for level in self.levels:
            x = level(x)
        if encodes:
            x = self.mid(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
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
