"""TAESD, a tiny VAE that encodes to the latents of large ones, and decodes them (O. Boer Bohan).

Images in [-1, 1] -> latents (batch, 4, images, height / 8, width / 8); 16 or 32 channels for
the latents of newer diffusion models. Latents come as the encoder gives them, unscaled. Decoding
gives images again, which may leave [-1, 1] by a little, as with the published model.

Convolutions and residual blocks in a row, all of which is read off the tensors. Layouts: diffusers'
AutoencoderTiny folders; the author's state dicts, an encoder and a decoder in two files of a folder
(taesd_encoder.pth, taesd_decoder.pth; also .safetensors) or one of them by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError
from streamenc.models.images.image import RATE, ImageModel, video
from streamenc.spec import ImageSize, Port, StreamSpec

CLASS_NAME = "AutoencoderTiny"
# Of the normalisation that newer models have in the blocks of the smallest grid.
GROUPS = 4
Side = Literal["encoder", "decoder"]


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution of 3 x 3 or a block.

    index   In the layout's names.
    pooled  Channels within the block's normalised branch; 0 where it has none.
    scales  A convolution that halves the grid, or stands behind its doubling: it has no bias.
    """

    index: int
    channels: int
    width: int
    block: bool
    pooled: int = 0
    scales: bool = False


class _ConvBlock(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        channels, width = layer.channels, layer.width
        sizes = ((channels, width), (width, width), (width, width))
        self.conv = nn.Sequential(
            *(m for size in sizes for m in (nn.Conv2d(*size, 3, padding=1), nn.ReLU()))
        )[:-1]
        self.skip = nn.Conv2d(channels, width, 1, bias=False) if channels != width else None
        self.pool = None
        if layer.pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(channels, layer.pooled, 1, bias=False),
                nn.GroupNorm(GROUPS, layer.pooled),
                nn.ReLU(),
                nn.Conv2d(layer.pooled, channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + (x if self.skip is None else self.skip(x)))


class _TinyModel(ImageModel):
    """One side: its layers, in a row."""

    def __init__(self, side: Side, layers: tuple[Layer, ...], rate: Any) -> None:
        fps = options.rate("rate", rate)
        scale = 1 << sum(layer.scales for layer in layers)
        latents = layers[-1].width if side == "encoder" else layers[0].channels
        features = Port("features", fps, latents, axes=2)
        # Scaled to the next multiple by diffusers' preparation, with this filter.
        image = ImageSize(scale, filter="lanczos")
        ports = (video(fps, image), features) if side == "encoder" else (features, video(fps))
        super().__init__("taesd", ports)
        self.shape, self.scale = layers, scale
        self.layers = nn.ModuleList(_module(layer, side) for layer in layers)


def _module(layer: Layer, side: Side) -> nn.Module:
    if layer.block:
        return _ConvBlock(layer)
    stride = 2 if layer.scales and side == "encoder" else 1
    return nn.Conv2d(layer.channels, layer.width, 3, stride, 1, bias=not layer.scales)


class TinyEncoder(_TinyModel):
    """Images -> latents."""

    def images(self, x: Tensor) -> Tensor:
        x = (x + 1) / 2
        for layer in self.layers:
            x = layer(x)
        return x

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height // self.scale, width // self.scale


class TinyDecoder(_TinyModel):
    """Latents -> images."""

    def images(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](torch.tanh(x / 3) * 3))
        for layer, shape in zip(self.layers[1:], self.shape[1:], strict=True):
            if shape.scales:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = layer(x)
        return 2 * x - 1

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height * self.scale, width * self.scale


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of the published model promises; it has no variants."""
    layers = [Layer(0, 3, 64, False), Layer(1, 64, 64, True)]
    for _ in range(3):
        layers += [Layer(2, 64, 64, False, scales=True), *[Layer(3, 64, 64, True)] * 3]
    with torch.device("meta"):
        layers.append(Layer(4, 64, 4, False))
        return TinyEncoder("encoder", tuple(layers), RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    if checkpoint.config.get("_class_name", CLASS_NAME) != CLASS_NAME:
        return False
    return any(_prefix(checkpoint, side) is not None for side in ("encoder", "decoder"))


def _start(prefix: str, side: str) -> str:
    """The number of the first layer with tensors: the author counts the decoder's clamp too."""
    return "0" if side == "encoder" or prefix.endswith("layers.") else "1"


def _prefix(checkpoint: Checkpoint, side: str) -> str | None:
    """What stands before the numbers of a side's layers; None where it is not there."""
    for prefix in (f"{side}.layers.", f"{side}.", ""):
        start = _start(prefix, side)
        name = f"{prefix}{start}.weight"
        if name not in checkpoint or f"{prefix}3.conv.0.weight" not in checkpoint:
            continue
        if prefix or (start == "0") == ("0.weight" in checkpoint):
            shape = checkpoint.shape(name)
            if len(shape) == 4 and (side == "decoder" or shape[1] == 3):
                return prefix
    return None


def _layers(checkpoint: Checkpoint, side: str) -> tuple[str, tuple[Layer, ...]]:
    """A side's prefix and layers. Raises CheckpointError where it is not there."""
    prefix = _prefix(checkpoint, side)
    config = checkpoint.config
    act, up = config.get("act_fn", "relu"), config.get("upsample_fn", "nearest")
    if prefix is None or act != "relu" or up != "nearest":
        what = "no" if prefix is None else f"act_fn {act!r} and upsample_fn {up!r} in its"
        raise CheckpointError(
            f"{checkpoint.name}: {what} {side} of TAESD's layout; wanted one with relu and nearest "
            "among its tensors: load the folder with both files, or the part that is there"
        )
    at = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    indices = sorted({int(m[1]) for name in checkpoint.names if (m := at.match(name))})
    layers: list[Layer] = []
    for index in indices:
        name = f"{prefix}{index}"
        block = f"{name}.conv.0.weight" in checkpoint
        shape = checkpoint.shape(f"{name}.conv.0.weight" if block else f"{name}.weight")
        if len(shape) != 4:
            raise CheckpointError(
                f"{checkpoint.name}: {name}.weight has shape {shape}; wanted a convolution's"
            )
        pool = f"{name}.pool.0.weight"
        pooled = checkpoint.shape(pool, 1)[0] if pool in checkpoint else 0
        scales = not block and f"{name}.bias" not in checkpoint
        # Layers without tensors: a clamp, an activation, and what doubles the grid.
        gap = side == "decoder" and (scales or len(layers) == 1)
        expected = layers[-1].index + 1 + gap if layers else int(_start(prefix, side))
        if index != expected or (scales and index in (indices[0], indices[-1])):
            raise CheckpointError(
                f"{checkpoint.name}: {name} has {'no bias' if scales else 'a bias'} and stands "
                f"where layer {expected} was wanted: a tensor of TAESD's layout is missing"
            )
        layers.append(Layer(index, shape[1], shape[0], block, pooled, scales))
    return prefix, tuple(layers)


def load(
    name: str, checkpoint: Checkpoint, part: str, *, rate: Any = RATE
) -> tuple[TinyEncoder | None, TinyDecoder | None]:
    """The encoder and the decoder, as `part` asks for them.

    rate  Images a second, for times alone.

    Raises UsageError for a rate that is none, CheckpointError for weights that do not fit.
    """
    encoder: TinyEncoder | None = None
    decoder: TinyDecoder | None = None
    if part in ("both", "encoder"):
        prefix, layers = _layers(checkpoint, "encoder")
        with torch.device("meta"):
            encoder = TinyEncoder("encoder", layers, rate)
        _fill(encoder, prefix, checkpoint)
    if part in ("both", "decoder"):
        prefix, layers = _layers(checkpoint, "decoder")
        with torch.device("meta"):
            decoder = TinyDecoder("decoder", layers, rate)
        _fill(decoder, prefix, checkpoint)
    return encoder, decoder


def _fill(model: _TinyModel, prefix: str, checkpoint: Checkpoint) -> None:
    origins = {}
    for name in model.state_dict():
        _, index, rest = name.split(".", 2)
        origins[name] = f"{prefix}{model.shape[int(index)].index}.{rest}"
    fill(model, origins, checkpoint)
