"""The encoder of LTX-Video's and LTX-2's VAE: video to latents (arXiv 2501.00103).

Video -> patches of 4 x 4 pixels -> convolutions that are causal along time -> a latent for the
first frame, and one for each further 8, on a grid of 32 x 32 pixels. Before the stream's start
stands its first frame. No layer sees more than two frames back of its own, so a stream without end
needs no more memory than its beginning, and equals the published model over the whole clip.

What a user hands over and gets: video (batch, 3, time, height, width), floats in [-1, 1] or bytes;
latents (batch, 128, latents, height / 32, width / 32), the mean of the model's Gaussians. A tail
that is no whole hop of 8 frames is completed by repeating its last frame.

The published decoders see frames to come, some of them noise and a timestep too: there is none
here.

Layout: diffusers' AutoencoderKLLTXVideo folders, of versions 0.9 to 0.9.8, and
AutoencoderKLLTX2Video.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.streamed import Chain, Residual, Streamed
from streamenc.layers.video.causal3d import CausalConv3d, FrameConv, VideoResidual
from streamenc.layers.video.rescale import Folded, FoldedDown
from streamenc.models.images.image import video
from streamenc.models.signal import Signal
from streamenc.models.videomodel import Statistics, VideoModel, kernel
from streamenc.spec import ImageSize, Port, StreamSpec

CLASS_NAME = ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video")
RATE = 24
# Of versions 0.9, 0.9.5 and 2.
BLOCKS = ("LTXVideoDownBlock3D", "LTXVideo095DownBlock3D", "LTX2VideoDownBlock3D")
MAX_LEVELS, MAX_LAYERS, MAX_CHANNELS = 8, 64, 1 << 14

Sampler: TypeAlias = Literal["conv", "spatial", "temporal", "spatiotemporal"]
# (frames, pixels) that a sampler makes one of.
FACTORS: dict[Sampler, tuple[int, int]] = {
    "conv": (2, 2),
    "spatial": (1, 2),
    "temporal": (2, 1),
    "spatiotemporal": (2, 2),
}


class MeanSquareNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the channels of each place, in float32 at least."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if torch.finfo(x.dtype).bits < 32 else x
        return (wide * torch.rsqrt(wide.square().mean(dim=2, keepdim=True) + self.eps)).to(x.dtype)


class Shortcut(nn.Module):
    """Other channels for the input of a block: each place is normalised, then projected."""

    def __init__(self, in_channels: int, out_channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_channels))
        self.bias = nn.Parameter(torch.empty(in_channels))
        self.conv = FrameConv(in_channels, out_channels)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(2, -1)
        normed = F.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps)
        y: Tensor = self.conv(normed.movedim(-1, 2).contiguous())
        return y


@dataclass(frozen=True, slots=True)
class Level:
    """width: channels in; out: channels out; blocks: how many; sampler: what halves the grid; None
    where nothing does. `projects`: whether a block behind the sampler makes the channels out."""

    width: int
    out: int
    blocks: int
    sampler: Sampler | None
    projects: bool


@dataclass(frozen=True, slots=True)
class LTXShape:
    """patch: pixels of height, and of width, that are one place of the first layer; middle: how
    many blocks; eps: of the shortcuts' normalisation."""

    patch: int
    levels: tuple[Level, ...]
    middle: int
    latent: int
    eps: float

    @property
    def spatial(self) -> int:
        """Pixels of height, and of width, for each place of the latents."""
        return self.patch * math.prod(FACTORS[s][1] for s in self._samplers)

    @property
    def temporal(self) -> int:
        """Frames for each latent after the first."""
        return math.prod(FACTORS[s][0] for s in self._samplers)

    @property
    def _samplers(self) -> list[Sampler]:
        return [level.sampler for level in self.levels if level.sampler is not None]


class LTXChain(Chain):
    """The layers of the encoder, with the name that each has in a checkpoint."""

    def __init__(self, shape: LTXShape) -> None:
        layers = list(_layers(shape))
        super().__init__(layer for _, layer in layers)
        self.shape = shape
        self._at = [at for at, _ in layers]

    def origins(self) -> dict[str, Origin]:
        """Where each parameter comes from; see `fill`."""
        found: dict[str, Origin] = {}
        for ours, target in self.state_dict().items():
            _, index, rest = ours.split(".", 2)
            found[ours] = _origin(self._at[int(index)], rest, tuple(target.shape))
        return found


_SHORTCUT = {"weight": "norm3.weight", "bias": "norm3.bias"}


def _origin(at: str, ours: str, shape: tuple[int, ...]) -> Origin:
    part, _, leaf = ours.rpartition(".")
    if part == "conv_shortcut":
        return f"{at}.{_SHORTCUT[leaf]}"
    if part == "conv_shortcut.conv":
        return kernel(f"{at}.conv_shortcut.conv.{leaf}", shape)
    if part.startswith("block."):  # the convolution beside a sampler's shortcut
        part = "conv"
    read = kernel(".".join(filter(None, (at, part, "conv", leaf))), shape)
    if at == "encoder.conv_out":
        return lambda checkpoint: read(checkpoint)[: shape[0]]
    return read


def _layers(shape: LTXShape) -> Iterator[tuple[str, nn.Module]]:
    width = shape.levels[0].width
    yield "", Folded(shape.patch)
    yield "encoder.conv_in", _conv(3 * shape.patch**2, width)
    for i, level in enumerate(shape.levels):
        at = f"encoder.down_blocks.{i}"
        for j in range(level.blocks):
            yield f"{at}.resnets.{j}", _block(shape, level.width, level.width)
        if level.sampler is not None:
            yield f"{at}.downsamplers.0", _sampler(level)
        if level.projects and level.width != level.out:
            yield f"{at}.conv_out", _block(shape, level.width, level.out)
    width = shape.levels[-1].out
    for j in range(shape.middle):
        yield f"encoder.mid_block.resnets.{j}", _block(shape, width, width)
    yield "", MeanSquareNorm()
    yield "", nn.SiLU()
    # Of its outputs, means and one logarithm of all variances, the means alone.
    yield "encoder.conv_out", _conv(width, shape.latent)


_conv = partial(CausalConv3d, repeated=True)


def _norm(channels: int) -> nn.Module:
    return MeanSquareNorm()


def _block(shape: LTXShape, into: int, out: int) -> VideoResidual:
    shortcut = partial(Shortcut, eps=shape.eps)
    return VideoResidual(into, out, _norm, _conv, shortcut)


def _sampler(level: Level) -> Streamed:
    """Raises ValueError where channels make no whole groups."""
    assert level.sampler is not None
    if level.sampler == "conv":
        return CausalConv3d(level.width, level.width, stride=2, repeated=True)
    time, space = FACTORS[level.sampler]
    fewer, rest = divmod(level.out, time * space**2)
    if rest:
        raise ValueError(f"{level.out} channels of blocks of {time}x{space}x{space}")
    folded = partial(FoldedDown, out_channels=level.out, space=space, time=time, repeated=True)
    return Residual(Chain([_conv(level.width, fewer), folded(fewer)]), folded(level.width))


class LTXEncoder(VideoModel):
    """Video -> latents. `statistics`: None for latents as the network has them."""

    chain: LTXChain

    def __init__(
        self, shape: LTXShape, rate: Fraction, statistics: Statistics | None = None
    ) -> None:
        super().__init__()
        self.chain, self.statistics = LTXChain(shape), statistics
        self.shrinks = shape.spatial
        self.spec = StreamSpec(
            name="ltx",
            input=video(rate, ImageSize(shape.spatial)),
            output=Port("features", rate / shape.temporal, shape.latent, axes=2),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            note="a tail that is no whole hop is completed, where the published code cuts it",
        )

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        if codebooks is not None:
            self.check_codebooks(codebooks)
        return y if self.statistics is None else self.statistics.there(y)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of the layout."""
    if checkpoint.config.get("_class_name", CLASS_NAME[0]) not in CLASS_NAME:
        return False
    names = ("encoder.conv_in.conv.weight", "encoder.mid_block.resnets.0.conv1.conv.weight")
    return "latents_mean" in checkpoint and all(name in checkpoint for name in names)


def published_spec(variant: str) -> StreamSpec:
    """What a published encoder promises: "0.9", "0.9.5" or "2"."""
    widths, blocks = (128, 256, 512, 512), (4, 3, 3, 3)
    levels = tuple(
        Level(width, widths[min(i + 1, 3)], blocks[i], "conv" if i < 3 else None, True)
        for i, width in enumerate(widths)
    )
    shape = LTXShape(4, levels, 4, 128, 1e-6)
    if variant != "0.9":
        widths, blocks = (128, 256, 512, 1024), (4, 6, 6, 2)
        kinds: tuple[Sampler, ...] = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
        levels = tuple(
            Level(width, 2 * width, blocks[i], kinds[i], False) for i, width in enumerate(widths)
        )
        shape = LTXShape(4, levels, 2, 128, 1e-6)
    with torch.device("meta"):
        return LTXEncoder(shape, Fraction(RATE)).spec


def load(
    name: str, checkpoint: Checkpoint, part: str, *, rate: Any = RATE, normalised: Any = False
) -> tuple[LTXEncoder, None]:
    """The encoder, which is all there is.

    rate        Frames a second of the video, for times alone.
    normalised  Latents less their published mean, over their published deviation, as the diffusion
                models take them; else as the network gives them.

    Raises UsageError for options that make no sense, CheckpointError for weights that do not fit.
    """
    if part == "decoder":
        raise UsageError(
            f"{checkpoint.name}: of LTX-Video there is the encoder alone, as its decoder sees "
            "frames to come; load part='encoder'"
        )
    fps = options.rate("rate", rate)
    how = options.flag("normalised", normalised)
    shape = _shape(checkpoint)
    statistics = _statistics(checkpoint, shape.latent) if how else None
    try:
        with torch.device("meta"):
            encoder = LTXEncoder(shape, fps, statistics)
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.name}: its config.json does not fit: {error}"
        ) from error
    fill(encoder.chain, encoder.chain.origins(), checkpoint)
    checkpoint.check_used("encoder.")
    return encoder, None


def _shape(checkpoint: Checkpoint) -> LTXShape:
    """Of the config. Raises CheckpointError where it is of another network."""
    config = checkpoint.config
    for key, default, wanted in (
        ("in_channels", 3, 3),
        ("patch_size_t", 1, 1),
        ("encoder_causal", True, True),
        ("encoder_spatial_padding_mode", "zeros", "zeros"),
    ):
        if (stated := config.get(key, default)) != wanted:
            raise _wrong(checkpoint, key, stated, repr(wanted))
    latent = _number(checkpoint, "latent_channels", MAX_CHANNELS)
    widths = _numbers(checkpoint, "block_out_channels", MAX_CHANNELS)
    kinds = config.get("down_block_types")
    kind = kinds[0] if isinstance(kinds, list) and kinds else None
    if not isinstance(kinds, list) or kind not in BLOCKS or kinds != [kind] * len(kinds):
        raise _wrong(checkpoint, "down_block_types", kinds, f"{', '.join(BLOCKS)}, all alike")
    if kind == BLOCKS[2]:
        widths = (latent, *widths)
    # The newer blocks make their channels out themselves, so that there is one width more.
    newer = kind != BLOCKS[0]
    count = len(widths) - newer
    blocks = _numbers(checkpoint, "layers_per_block", MAX_LAYERS)
    scaled = config.get("spatio_temporal_scaling")
    scaled = [scaled] * count if isinstance(scaled, bool) else scaled
    samplers = config.get("downsample_type", ["conv"] * count) if newer else ["conv"] * count
    if len(blocks) != count + 1 or not count:
        raise _wrong(checkpoint, "layers_per_block", list(blocks), f"{count + 1} numbers")
    if not isinstance(scaled, list) or len(scaled) < count or {*map(type, scaled)} != {bool}:
        raise _wrong(checkpoint, "spatio_temporal_scaling", scaled, f"{count} of true or false")
    if not isinstance(samplers, list) or not set(map(str, samplers)) <= FACTORS.keys():
        raise _wrong(checkpoint, "downsample_type", samplers, f"of {', '.join(FACTORS)}")
    if len(samplers) < count:
        raise _wrong(checkpoint, "downsample_type", samplers, f"{count} of them")
    following = (*widths[1:], widths[-1])
    levels = tuple(
        Level(widths[i], following[i], blocks[i], samplers[i] if scaled[i] else None, not newer)
        for i in range(count)
    )
    for level in levels:
        if newer and level.sampler in (None, "conv") and level.width != level.out:
            raise _wrong(checkpoint, "downsample_type", samplers, "others where channels change")
    return LTXShape(
        _number(checkpoint, "patch_size", 16),
        levels,
        blocks[-1],
        latent,
        _epsilon(checkpoint),
    )


def _statistics(checkpoint: Checkpoint, channels: int) -> Statistics:
    mean, std = (checkpoint.get(name, (channels,)) for name in ("latents_mean", "latents_std"))
    factor = checkpoint.config.get("scaling_factor", 1.0)
    if type(factor) not in (int, float) or not 0 < factor <= 1e12:
        raise _wrong(checkpoint, "scaling_factor", factor, "a number above 0, up to 1e12")
    return Statistics.of(checkpoint, channels, mean.tolist(), (std / factor).tolist())


def _epsilon(checkpoint: Checkpoint) -> float:
    eps = checkpoint.config.get("resnet_norm_eps", 1e-6)
    if type(eps) is not float or not 0 < eps < 1:
        raise _wrong(checkpoint, "resnet_norm_eps", eps, "a number between 0 and 1")
    return eps


def _number(checkpoint: Checkpoint, key: str, most: int) -> int:
    value = checkpoint.config.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise _wrong(checkpoint, key, value, f"a number from 1 to {most}")
    return value


def _numbers(checkpoint: Checkpoint, key: str, most: int) -> tuple[int, ...]:
    values = checkpoint.config.get(key)
    if (
        not isinstance(values, list)
        or not 1 <= len(values) <= MAX_LEVELS
        or not all(type(value) is int and 1 <= value <= most for value in values)
    ):
        raise _wrong(checkpoint, key, values, f"1 to {MAX_LEVELS} numbers from 1 to {most}")
    return tuple(values)


def _wrong(checkpoint: Checkpoint, key: str, stated: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.name}: its config.json has {key} {stated!r}; wanted {wanted} of LTX-Video's "
        "encoder"
    )
