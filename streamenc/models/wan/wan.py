"""The VAE of Wan 2.1 and 2.2, and of Qwen-Image: video to latents and back (arXiv 2503.20314).

Video -> convolutions that are causal along time, and attention within each frame -> a latent for
the first frame, and one for each further 4, on a grid of 8 x 8 pixels (Wan 2.2: 16 x 16). No
layer sees more than a few frames back, so a stream without end needs no more memory than its
beginning, and equals the published model over the whole clip.

What a user hands over and gets: video (batch, 3, time, height, width), floats in [-1, 1] or bytes;
latents (batch, 16 or 48, latents, height, width), the mean of the model's Gaussians: nothing is
sampled. Height and width are multiples of 8 or 16, and stay the same through a stream. Decoding
gives 1 frame for the first latent and 4 for each other, cut to [-1, 1] as published.

The published code leaves out frames beyond 1 + 4 n without a word. Here such a tail is completed by
repeating its last frame.

Layouts: diffusers' AutoencoderKLWan and AutoencoderKLQwenImage folders, and the original names
(Wan2.1_VAE.pth, Wan2.2_VAE.pth).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeVar

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError
from streamenc.models.images.image import video
from streamenc.models.signal import Signal
from streamenc.models.videomodel import Statistics, VideoModel
from streamenc.models.wan.layout import WanNames, origins, shape_of
from streamenc.models.wan.vaechain import Layer, Side, WanChain, WanShape
from streamenc.spec import ImageSize, Port, StreamSpec

CLASS_NAME = ("AutoencoderKLWan", "AutoencoderKLQwenImage")
# Frames a second of the video that the diffusion models make, by the channels of their latents.
_RATES = {48: 24}
_RATE = 16
# Mean and deviation of each channel of the latents, which original files come without.
_STATISTICS = {
    16: (
        "-0.7571 -0.7089 -0.9113 0.1075 -0.1745 0.9653 -0.1517 1.5508 0.4134 -0.0715 0.5517 "
        "-0.3632 -0.1922 -0.9497 0.2503 -0.2921",
        "2.8184 1.4541 2.3275 2.6558 1.2196 1.7708 2.6052 2.0743 3.2687 2.1526 2.8652 1.5579 "
        "1.6382 1.1253 2.8251 1.9160",
    ),
    48: (
        "-0.2289 -0.0052 -0.1323 -0.2339 -0.2799 0.0174 0.1838 0.1557 -0.1382 0.0542 0.2813 "
        "0.0891 0.1570 -0.0098 0.0375 -0.1825 -0.2246 -0.1207 -0.0698 0.5109 0.2665 -0.2108 "
        "-0.2158 0.2502 -0.2055 -0.0322 0.1109 0.1567 -0.0729 0.0899 -0.2799 -0.1230 -0.0313 "
        "-0.1649 0.0117 0.0723 -0.2839 -0.2083 -0.0520 0.3748 0.0152 0.1957 0.1433 -0.2944 0.3573 "
        "-0.0548 -0.1681 -0.0667",
        "0.4765 1.0364 0.4514 1.1677 0.5313 0.4990 0.4818 0.5013 0.8158 1.0344 0.5894 1.0901 "
        "0.6885 0.6165 0.8454 0.4978 0.5759 0.3523 0.7135 0.6804 0.5833 1.4146 0.8986 0.5659 "
        "0.7069 0.5338 0.4889 0.4917 0.4069 0.4999 0.6866 0.4093 0.5709 0.6065 0.6415 0.4944 "
        "0.5726 1.2042 0.5458 1.6887 0.3971 1.0600 0.3943 0.5537 0.5444 0.4089 0.7468 0.7744",
    ),
}


class _WanModel(VideoModel):
    """What both sides have. `statistics`: None for latents as the network has them."""

    chain: WanChain

    def __init__(
        self, shape: WanShape, rate: Fraction, statistics: Statistics | None = None
    ) -> None:
        super().__init__()
        self.chain, self.statistics, self._rate = WanChain(shape), statistics, rate

    def _spec(self, items: tuple[Port, Port]) -> StreamSpec:
        return StreamSpec(
            name="wan",
            input=items[0],
            output=items[1],
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            note="a tail that is no whole hop is completed, where the published code leaves it out",
        )

    def _latents(self) -> Port:
        shape = self.chain.shape
        return Port("features", self._rate / shape.temporal, shape.latent, axes=2)


class WanEncoder(_WanModel):
    """Video -> latents."""

    def __init__(
        self, shape: WanShape, rate: Fraction, statistics: Statistics | None = None
    ) -> None:
        super().__init__(shape, rate, statistics)
        self.shrinks = shape.spatial
        frames = video(self._rate, ImageSize(shape.spatial))
        self.spec = self._spec((frames, self._latents()))

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        if codebooks is not None:
            self.check_codebooks(codebooks)
        return y if self.statistics is None else self.statistics.there(y)


class WanDecoder(_WanModel):
    """Latents -> video."""

    def __init__(
        self, shape: WanShape, rate: Fraction, statistics: Statistics | None = None
    ) -> None:
        super().__init__(shape, rate, statistics)
        self.grows, self.holds = shape.spatial, "latents"
        self.spec = self._spec((self._latents(), video(self._rate)))

    def before(self, x: Signal) -> Tensor:
        x = super().before(x)
        return x if self.statistics is None else self.statistics.back(x)


Made = TypeVar("Made", WanEncoder, WanDecoder)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    if checkpoint.config.get("_class_name", CLASS_NAME[0]) not in CLASS_NAME:
        return False
    return WanNames.of(checkpoint) is not None


def published_spec(variant: str) -> StreamSpec:
    """What a published encoder promises: "2.1" or "2.2"."""
    grouped = variant == "2.2"
    width = 160 if grouped else 96
    times = (False, True, True, None)
    levels: list[tuple[Layer, ...]] = []
    into = width
    for factor, time in zip((1, 2, 4, 4), times, strict=True):
        out = width * factor
        layers = [Layer("block", into, out), Layer("block", out, out)]
        if time is not None:
            layers.append(Layer("sampler", out, out, time))
        levels.append(tuple(layers))
        into = out
    shape = WanShape(
        "encoder", 2 if grouped else 1, width, tuple(levels), grouped, 48 if grouped else 16
    )
    with torch.device("meta"):
        return WanEncoder(shape, Fraction(_RATES.get(shape.latent, _RATE))).spec


def load(
    name: str, checkpoint: Checkpoint, part: str, *, rate: Any = None, normalised: Any = False
) -> tuple[WanEncoder | None, WanDecoder | None]:
    """The encoder and the decoder, as `part` asks for them.

    rate        Frames a second of the video, for times alone; None for what the diffusion models
                make: 16, of Wan 2.2 24.
    normalised  Latents less their published mean, over their published deviation, as the diffusion
                models take them; else as the network gives them.

    Raises UsageError for options that make no sense, CheckpointError for weights that do not fit.
    """
    names = WanNames.of(checkpoint)
    if names is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is the first layer of "
            "Wan's VAE (encoder.conv_in.weight, or encoder.conv1.weight)"
        )
    how = options.flag("normalised", normalised)
    encoder: WanEncoder | None = None
    decoder: WanDecoder | None = None
    if part in ("both", "encoder"):
        encoder = _made(WanEncoder, "encoder", names, rate, how)
    if part in ("both", "decoder"):
        decoder = _made(WanDecoder, "decoder", names, rate, how)
    return encoder, decoder


def _made(kind: type[Made], side: Side, names: WanNames, rate: Any, normalised: bool) -> Made:
    checkpoint, shape = names.checkpoint, shape_of(names, side)
    _check_config(checkpoint, shape)
    if rate is None:
        rate = _RATES.get(shape.latent, _RATE)
    fps = options.rate("rate", rate)
    statistics = _statistics(checkpoint, shape.latent) if normalised else None
    try:
        with torch.device("meta"):
            model = kind(shape, fps, statistics)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name}: no shortcut fits its {side}: {error}") from error
    fill(model.chain, origins(model.chain, names), checkpoint)
    names.check_used(side)
    return model


def _check_config(checkpoint: Checkpoint, shape: WanShape) -> None:
    """Raises CheckpointError where the config is of another network than the tensors."""
    times = [layer.time for layer in shape.samplers]
    found = {
        "patch_size": shape.patch,
        "is_residual": shape.grouped,
        "z_dim": shape.latent,
        "temperal_downsample": times if shape.side == "encoder" else times[::-1],
    }
    for key, value in found.items():
        stated = checkpoint.config.get(key)
        if stated is not None and stated != value:
            raise CheckpointError(
                f"{checkpoint.name}: its config.json has {key} {stated!r}, and its {shape.side}'s "
                f"tensors are those of {value!r}; are they of two models?"
            )


def _statistics(checkpoint: Checkpoint, channels: int) -> Statistics:
    """Of the config, or the published ones. Raises CheckpointError."""
    published = [[*map(float, text.split())] for text in _STATISTICS.get(channels, ())]
    mean, std = published or ([], [])
    config = checkpoint.config
    return Statistics.of(
        checkpoint, channels, config.get("latents_mean", mean), config.get("latents_std", std)
    )
