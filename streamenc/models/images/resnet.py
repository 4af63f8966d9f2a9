"""ResNet: features of single images by convolutions (arXiv 1512.03385).

A stem, then stages of residual blocks, each of which halves the grid but the first. `output` says
what comes out of the hidden states, of which 0 is the stem's and n stage n's:

    pooled  The grid's mean, (batch, channels, images).
    grid    The grid itself, (batch, channels, images, rows, columns).

Layouts: transformers' folders of ResNetModel, with or without a classifier on top, and the CIFAR-10
ResNets of section 4.2 (ResNet-20, -32, -44, -56, ...) as the `.th` files that state dicts named
module.layer1.0.conv1.weight come in; their shortcuts have no parameters. Classifiers are not read.

Preparation: what the checkpoint says of it (preprocessor_config.json, processor_config.json);
without that the centre 224 x 224 of an image whose shorter
side is scaled to 256, bicubic. CIFAR's images are 32 x 32 as they are; others have their shorter
side scaled to that, each pixel the mean of its area, and the centre cut out. For both ImageNet's
mean and std.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.images.image import (
    IMAGENET,
    RATE,
    ImageModel,
    Preparation,
    Standardised,
    chosen_size,
    published_preparation,
    video,
)
from streamenc.spec import ImageSize, Port, StreamSpec

EPS = 1e-5
MAX_BLOCKS = 1000
OUTPUTS = ("pooled", "grid")
PUBLISHED = Preparation(ImageSize(1, (224, 224), 256, "bicubic"), *IMAGENET)
CIFAR = Preparation(ImageSize(1, (32, 32), 32, "area"), *IMAGENET)
_STEMS = ("embedder.embedder.convolution.weight", "resnet.embedder.embedder.convolution.weight")
_CIFAR_STEMS = ("conv1.weight", "module.conv1.weight")


@dataclass(frozen=True, slots=True)
class ResNetShape:
    """A network.

    cifar    A stem for small images, and shortcuts without parameters.
    widths   Channels of the stem and of each stage.
    depths   Blocks of each stage.
    bottleneck  Blocks of three convolutions, of which the second is four times narrower.
    first    Whether the first stage halves its grid too.
    early    Whether a bottleneck halves it in its first convolution.
    """

    cifar: bool
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    bottleneck: bool = False
    first: bool = False
    early: bool = False


class _Norm(nn.Module):
    """Normalises each channel by the statistics of the training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(width)) for _ in range(2))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, var, self.weight, self.bias, eps=EPS)


class _Conv(nn.Module):
    """A convolution and its normalisation."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        self.norm = _Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


class _StageBlock(nn.Module):
    def __init__(self, shape: ResNetShape, channels: int, width: int, stride: int) -> None:
        super().__init__()
        if shape.bottleneck:
            narrow = width // 4
            strides = (stride, 1) if shape.early else (1, stride)
            convs = [
                _Conv(channels, narrow, 1, strides[0]),
                _Conv(narrow, narrow, 3, strides[1]),
                _Conv(narrow, width, 1),
            ]
        else:
            convs = [_Conv(channels, width, 3, stride), _Conv(width, width, 3)]
        self.convs = nn.ModuleList(convs)
        self.stride, self.more = stride, width - channels
        changed = stride != 1 or width != channels
        self.shortcut = _Conv(channels, width, 1, stride) if changed and not shape.cifar else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, conv in enumerate(self.convs):
            y = conv(F.relu(y) if i else y)
        return F.relu(y + self._short(x))

    def _short(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            y: Tensor = self.shortcut(x)
            return y
        if self.stride == 1 and not self.more:
            return x
        # Option A of the paper: every other pixel, and channels of zeros on both sides.
        before = self.more // 2
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before)
        )


class ResNetEncoder(ImageModel):
    """Images -> pooled features or grids; stages beyond the last one wanted are absent."""

    def __init__(
        self,
        shape: ResNetShape,
        output: str,
        layers: tuple[int, ...],
        preparation: Preparation,
        rate: Any,
    ) -> None:
        fps = options.rate("rate", rate)
        channels = sum(shape.widths[layer] for layer in layers)
        ports = (
            video(fps, preparation.image),
            Port("features", fps, channels, axes=2 if output == "grid" else 0),
        )
        super().__init__("resnet", ports)
        self.shape, self.output, self.layers = shape, output, layers
        self.prepared = Standardised(preparation)
        widths = shape.widths
        self.stem = _Conv(3, widths[0], 3) if shape.cifar else _Conv(3, widths[0], 7, 2)
        self.stages = nn.ModuleList()
        for i in range(max(layers)):
            blocks = []
            for j in range(shape.depths[i]):
                channels = widths[i + 1] if j else widths[i]
                stride = 2 if j == 0 and (i or shape.first) else 1
                blocks.append(_StageBlock(shape, channels, widths[i + 1], stride))
            self.stages.append(nn.Sequential(*blocks))

    def images(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(self.prepared(x)))
        if not self.shape.cifar:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        hidden = [x]
        for stage in self.stages:
            x = stage(x)
            hidden.append(x)
        if self.output == "grid":
            return hidden[self.layers[0]]
        return torch.cat([hidden[layer].mean(dim=(2, 3)) for layer in self.layers], dim=1)

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        if self.output == "pooled":
            return ()
        halvings = sum(1 for i in range(self.layers[0]) if i or self.shape.first)
        for _ in range(halvings + (0 if self.shape.cifar else 2)):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width

    def origins(self, prefix: str) -> dict[str, Origin]:
        """Where each parameter comes from."""
        return {
            f"{ours}.{part}.{name}": f"{theirs[i]}.{name}"
            for ours, theirs in self._convolutions(prefix)
            for i, part, names in (
                (0, "conv", ("weight",)),
                (1, "norm", ("weight", "bias", "running_mean", "running_var")),
            )
            for name in names
        }

    def _convolutions(self, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
        """Our names of convolutions with normalisation, and those of the two in the layout."""
        cifar = self.shape.cifar

        def pair(at: str) -> tuple[str, str]:
            return f"{prefix}{at}.convolution", f"{prefix}{at}.normalization"

        for ours, module in self.named_modules():
            _, *at = ours.split(".")
            if not isinstance(module, _Conv):
                continue
            if not at:
                stem = (f"{prefix}conv1", f"{prefix}bn1")
                yield ours, stem if cifar else pair("embedder.embedder")
                continue
            stage, block, kind, *index = at
            if cifar:
                where = f"{prefix}layer{int(stage) + 1}.{block}"
                number = int(index[0]) + 1
                yield ours, (f"{where}.conv{number}", f"{where}.bn{number}")
            else:
                last = f"layer.{index[0]}" if kind == "convs" else kind
                yield ours, pair(f"encoder.stages.{stage}.layers.{block}.{last}")


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of the published model promises; it has no variants."""
    shape = ResNetShape(False, (64, 256, 512, 1024, 2048), (3, 4, 6, 3), bottleneck=True)
    with torch.device("meta"):
        return ResNetEncoder(shape, "pooled", (4,), PUBLISHED, RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return _stem(checkpoint) is not None


def _stem(checkpoint: Checkpoint) -> str | None:
    for name in (*_STEMS, *_CIFAR_STEMS):
        if name in checkpoint and len(checkpoint.shape(name)) == 4:
            # ImageNet's ResNets of the same names have wider stems, and parameters in shortcuts.
            if name in _STEMS or checkpoint.shape(name)[1:] == (3, 3, 3):
                return name
    return None


def _foreign(name: str, prefix: str, depths: list[int]) -> bool:
    """Whether a tensor is of a block that is not there whole, or has shortcuts with parameters."""
    found = re.match(rf"{re.escape(prefix)}layer(\d+)\.(\d+)\.(conv|bn)\d\.", name)
    if found is None:
        return name.startswith(f"{prefix}layer")
    stage, block = int(found[1]), int(found[2])
    return not (1 <= stage <= len(depths) and block < depths[stage - 1])


def _shape_of(checkpoint: Checkpoint, stem: str) -> tuple[ResNetShape, str]:
    """The network, and what stands before the tensors' names. Raises CheckpointError."""
    if stem in _CIFAR_STEMS:
        prefix = stem.removesuffix("conv1.weight")
        widths = [checkpoint.shape(stem, 1)[0]]
        depths: list[int] = []
        while (first := f"{prefix}layer{len(depths) + 1}.0.conv2.weight") in checkpoint:
            at = first.removesuffix("0.conv2.weight")
            blocks = 1
            while f"{at}{blocks}.conv2.weight" in checkpoint:
                blocks += 1
            widths.append(checkpoint.shape(first, 1)[0])
            depths.append(blocks)
        foreign = sorted(n for n in checkpoint.names if _foreign(n, prefix, depths))
        if not depths or foreign:
            raise CheckpointError(
                f"{checkpoint.name}: {foreign[0] if foreign else 'no layer1'!r}; wanted whole "
                "blocks of a ResNet for CIFAR-10, whose shortcuts have no parameters, or a "
                "transformers folder"
            )
        return ResNetShape(True, tuple(widths), tuple(depths)), prefix
    config = checkpoint.config
    sizes, counts = config.get("hidden_sizes"), config.get("depths")
    act, kind = config.get("hidden_act", "relu"), config.get("layer_type", "bottleneck")
    sizes, counts = (n if isinstance(n, list) else [] for n in (sizes, counts))
    numbers = [config.get("embedding_size"), *sizes, *counts]
    if (
        not all(type(n) is int and 0 < n < 1 << 16 for n in numbers)
        or not counts
        or sum(counts) > MAX_BLOCKS
        or len(sizes) != len(counts)
        or act != "relu"
        or kind not in ("basic", "bottleneck")
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has embedding_size, hidden_sizes and depths "
            f"{numbers}, hidden_act {act!r}, layer_type {kind!r}; wanted a ResNet's whole numbers, "
            "relu, and basic or bottleneck: load the folder that holds weights and config"
        )
    shape = ResNetShape(
        False,
        (numbers[0], *sizes),
        tuple(counts),
        kind == "bottleneck",
        bool(config.get("downsample_in_first_stage")),
        bool(config.get("downsample_in_bottleneck")),
    )
    return shape, stem.removesuffix(_STEMS[0])


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    output: str = "pooled",
    layer: Any = None,
    layers: Any = None,
    size: Any = None,
    rate: Any = RATE,
) -> tuple[ResNetEncoder, None]:
    """The encoder; there is no decoder. All options also come as strings.

    output  "pooled" or "grid"; see the module.
    layer, layers  The hidden states that come out: 3, "3,4", [0, -1] or "all"; 0 is the stem's, n
            stage n's, and the last stage's the default. Pooled ones lie one below the other; grids
            have different sizes, so that one is given. Stages beyond the last one wanted are
            neither loaded nor computed.
    size    Of the images: None for the published one; "any"; or pixels, 448 or "700x392"
            (WIDTHxHEIGHT).
    rate    Images a second, for times alone.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes features; it has no decoder")
    stem = _stem(checkpoint)
    if stem is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is the stem of a "
            f"ResNet ({_STEMS[0]}, or for CIFAR-10 {_CIFAR_STEMS[1]})"
        )
    shape, prefix = _shape_of(checkpoint, stem)
    wanted = hidden_states(layer, layers, len(shape.depths))
    kind = options.choice("output", output, OUTPUTS)
    if kind == "grid" and len(wanted) > 1:
        raise UsageError(
            f"layers {','.join(map(str, wanted))} have grids of different sizes; give one of them, "
            "or output=pooled"
        )
    how = published_preparation(checkpoint, CIFAR if shape.cifar else PUBLISHED)
    with torch.device("meta"):
        encoder = ResNetEncoder(shape, kind, wanted, chosen_size(how, size), rate)
    fill(encoder, encoder.origins(prefix), checkpoint)
    return encoder, None
