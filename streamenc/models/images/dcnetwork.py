"""The network of the deep compression autoencoder (arXiv 2410.10733).

Stages of residual blocks, or of linear attention over the grid (arXiv 2205.14756), between which
the grid is halved or doubled; around each such change pixels that become channels, averaged or
repeated, are a shortcut. Modules have diffusers' names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Side = Literal["encoder", "decoder"]
NORMS = ("rms_norm", "batch_norm")
BLOCKS = ("ResBlock", "EfficientViTBlock")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}
EPS = 1e-5
_ATTENTION_EPS = 1e-15
_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one kind at one size of the grid.

    scales  Kernels of the convolutions that see queries, keys and values around each place.
    """

    width: int
    blocks: int
    kind: str = "ResBlock"
    scales: tuple[int, ...] = ()
    norm: str = "rms_norm"
    act: str = "silu"


@dataclass(frozen=True, slots=True)
class CompressionShape:
    """One side.

    stages    From the finest grid to the coarsest one, on both sides. Where the first one has no
              blocks, images are halved on their way in, and doubled on their way out.
    heads     Channels of a head.
    shuffled  Whether the grid changes by pixels that become channels; else by a step of two, or by
              repeating places.
    shortcut  Whether there is one around the convolution to, or from, the latents.
    act       Of the last layer.
    """

    side: Side
    latents: int
    stages: tuple[Stage, ...]
    heads: int = 32
    shuffled: bool = True
    shortcut: bool = True
    act: str = "relu"

    @property
    def spatial(self) -> int:
        """Pixels to a latent, in height and width."""
        return 1 << (len(self.stages) - 1)


class Norm(nn.Module):
    """Over the channels of each place by their root mean square; or, of a batch, by statistics that
    were learnt."""

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight, self.bias = (nn.Parameter(torch.empty(width)) for _ in range(2))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(width) if kind == "batch_norm" else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.running_mean is not None:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, EPS)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(exact.square().mean(dim=1, keepdim=True) + EPS).to(x.dtype)
        return torch.addcmul(self.bias[:, None, None], x * scale, self.weight[:, None, None])


class ResBlock(nn.Module):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        width, self.act = stage.width, stage.act
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = Norm(width, stage.norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.norm(self.conv2(ACTIVATIONS[self.act](self.conv1(x))))
        return y


class MultiscaleProjection(nn.Module):
    def __init__(self, channels: int, groups: int, kernel: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj_out(self.proj_in(x))
        return y


class LinearAttention(nn.Module):
    """relu(q) of each place times the sum over all places of relu(k) v, over that of relu(k)."""

    def __init__(self, stage: Stage, heads: int) -> None:
        super().__init__()
        width, self.channels = stage.width, heads
        count = width // heads
        inner = count * heads
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(3 * inner, 3 * count, kernel) for kernel in stage.scales
        )
        self.to_out = nn.Conv2d(inner * (1 + len(stage.scales)), width, 1, bias=False)
        self.norm_out = Norm(width, stage.norm)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.to_qkv_multiscale)], dim=1)
        # Each head's channels lie together, whatever they were projected as.
        heads = qkv.to(torch.promote_types(x.dtype, torch.float32)).flatten(2)
        q, k, v = heads.view(len(x), -1, 3 * self.channels, heads.shape[-1]).chunk(3, dim=2)
        q, k = F.relu(q), F.relu(k)
        seen = (F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(2, 3)) @ q
        y = (seen[:, :, :-1] / (seen[:, :, -1:] + _ATTENTION_EPS)).to(x.dtype)
        out: Tensor = x + self.norm_out(self.to_out(y.reshape(len(x), -1, *x.shape[2:])))
        return out


class GatedConvolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width
        self.conv_inverted = nn.Conv2d(width, hidden, 1)
        self.conv_depth = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv_point = nn.Conv2d(hidden // 2, width, 1, bias=False)
        self.norm = Norm(width, "rms_norm")

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        out: Tensor = x + self.norm(self.conv_point(y * F.silu(gate)))
        return out


class EfficientViTBlock(nn.Module):
    def __init__(self, stage: Stage, heads: int) -> None:
        super().__init__()
        self.attn = LinearAttention(stage, heads)
        self.conv_out = GatedConvolution(stage.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_out(self.attn(x))
        return y


class Down(nn.Module):
    """The grid halved."""

    def __init__(self, width: int, out: int, shuffled: bool, shortcut: bool) -> None:
        super().__init__()
        self.shuffled, self.shortcut, self.group = shuffled, shortcut, width * _FACTOR**2 // out
        out = out // _FACTOR**2 if shuffled else out
        self.conv = nn.Conv2d(width, out, 3, stride=1 if shuffled else _FACTOR, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self.shuffled:
            y = F.pixel_unshuffle(y, _FACTOR)
        return y + averaged(F.pixel_unshuffle(x, _FACTOR), self.group) if self.shortcut else y


class Up(nn.Module):
    """The grid doubled."""

    def __init__(self, width: int, out: int, shuffled: bool, shortcut: bool) -> None:
        super().__init__()
        self.shuffled, self.shortcut, self.repeats = shuffled, shortcut, out * _FACTOR**2 // width
        self.conv = nn.Conv2d(width, out * (_FACTOR**2 if shuffled else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.shuffled:
            y = F.pixel_shuffle(self.conv(x), _FACTOR)
        else:
            y = self.conv(F.interpolate(x, scale_factor=_FACTOR, mode="nearest"))
        if not self.shortcut:
            return y
        return y + F.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), _FACTOR)


def averaged(x: Tensor, group: int) -> Tensor:
    """The mean of each so many channels."""
    return x.view(len(x), -1, group, *x.shape[2:]).mean(dim=2)


class CompressionNetwork(nn.Module):
    """One side: (images, channels, height, width) to such."""

    def __init__(self, shape: CompressionShape) -> None:
        super().__init__()
        self.shape = shape
        stages, latents, shuffled = shape.stages, shape.latents, shape.shuffled
        last = stages[-1].width
        encodes = shape.side == "encoder"
        levels = nn.ModuleList()
        for i, stage in enumerate(stages):
            layers: list[nn.Module] = [_block(stage, shape.heads) for _ in range(stage.blocks)]
            if layers and i + 1 < len(stages):
                near, far = stage.width, stages[i + 1].width
                if encodes:
                    layers.append(Down(near, far, shuffled, True))
                else:
                    layers.insert(0, Up(far, near, shuffled, True))
            levels.append(nn.Sequential(*layers))
        halved = not stages[0].blocks
        first = stages[1 if halved else 0].width
        if encodes:
            self.conv_in: nn.Module = (
                Down(3, first, shuffled, False) if halved else nn.Conv2d(3, first, 3, padding=1)
            )
            self.down_blocks = levels
            self.conv_out: nn.Module = nn.Conv2d(last, latents, 3, padding=1)
        else:
            self.conv_in = nn.Conv2d(latents, last, 3, padding=1)
            self.up_blocks = levels
            self.norm_out = Norm(first, "rms_norm")
            self.conv_out = (
                Up(first, 3, shuffled, False) if halved else nn.Conv2d(first, 3, 3, padding=1)
            )

    def forward(self, x: Tensor) -> Tensor:
        shape, last = self.shape, self.shape.stages[-1].width
        y: Tensor = self.conv_in(x)
        if shape.side == "encoder":
            for level in self.down_blocks:
                y = level(y)
            latents: Tensor = self.conv_out(y)
            return latents + averaged(y, last // shape.latents) if shape.shortcut else latents
        if shape.shortcut:
            y = y + x.repeat_interleave(last // shape.latents, dim=1)
        for level in reversed(self.up_blocks):
            y = level(y)
        images: Tensor = self.conv_out(ACTIVATIONS[shape.act](self.norm_out(y)))
        return images


def _block(stage: Stage, heads: int) -> nn.Module:
    return ResBlock(stage) if stage.kind == "ResBlock" else EfficientViTBlock(stage, heads)
