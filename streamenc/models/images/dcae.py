"""DC-AE, the deep compression autoencoder: images to latents and back (arXiv 2410.10733).

Images in [-1, 1] -> latents (batch, channels, images, height / 32, width / 32), 64 or 128; height
and width are multiples of that. It is deterministic: nothing is sampled, and nothing is scaled,
where diffusion models scale by their `scaling_factor`. Decoding gives images again, which may leave
[-1, 1] by a little, as with the published model.

Layout: diffusers' AutoencoderDC folders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError
from streamenc.models.images.dcnetwork import (
    ACTIVATIONS,
    BLOCKS,
    NORMS,
    CompressionNetwork,
    CompressionShape,
    Side,
    Stage,
)
from streamenc.models.images.image import RATE, ImageModel, video
from streamenc.spec import ImageSize, Port, StreamSpec

CLASS_NAME = "AutoencoderDC"
MAX_STAGES, MAX_BLOCKS, MAX_KERNEL = 12, 1000, 31
_WIDTHS = (128, 256, 512, 512, 1024, 1024)
_SCALES = ((), (), (), (5,), (5,), (5,))
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": _SCALES,
    "decoder_qkv_multiscales": _SCALES,
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "decoder_conv_act_fn": "relu",
}
# How the grid changes on either side, how else it may, and what says whether there is a shortcut.
_CHANGES = {
    "encoder": (
        "downsample_block_type",
        "pixel_unshuffle",
        ("Conv", "conv"),
        "encoder_out_shortcut",
    ),
    "decoder": ("upsample_block_type", "pixel_shuffle", ("interpolate",), "decoder_in_shortcut"),
}
# Of the published models: latents, and widths of the stages.
_PUBLISHED = {
    "f32c32": (32, _WIDTHS),
    "f64c128": (128, (*_WIDTHS, 2048)),
    "f128c512": (512, (*_WIDTHS, 2048, 2048)),
}


class DCAEEncoder(ImageModel):
    """Images -> latents."""

    def __init__(self, shape: CompressionShape, rate: Any) -> None:
        fps = options.rate("rate", rate)
        # Scaled to the next multiple by diffusers' preparation, with this filter.
        image = ImageSize(shape.spatial, filter="lanczos")
        ports = (video(fps, image), Port("features", fps, shape.latents, axes=2))
        super().__init__("dcae", ports)
        self.network = CompressionNetwork(shape)

    def images(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height // self.network.shape.spatial, width // self.network.shape.spatial


class DCAEDecoder(ImageModel):
    """Latents -> images."""

    def __init__(self, shape: CompressionShape, rate: Any) -> None:
        fps = options.rate("rate", rate)
        super().__init__("dcae", (Port("features", fps, shape.latents, axes=2), video(fps)))
        self.network = CompressionNetwork(shape)

    def images(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height * self.network.shape.spatial, width * self.network.shape.spatial


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "f32c32", "f64c128" or "f128c512"."""
    latents, widths = _PUBLISHED[variant]
    with torch.device("meta"):
        stages = tuple(Stage(width, 1) for width in widths)
        return DCAEEncoder(CompressionShape("encoder", latents, stages), RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the config says so: the tensors alone do not tell the heads."""
    return bool(checkpoint.config.get("_class_name") == CLASS_NAME)


def load(
    name: str, checkpoint: Checkpoint, part: str, *, rate: Any = RATE
) -> tuple[DCAEEncoder | None, DCAEDecoder | None]:
    """The encoder and the decoder, as `part` asks for them.

    rate  Images a second, for times alone.

    Raises UsageError for a rate that is none, CheckpointError for weights that do not fit.
    """
    if not checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.name}: no config.json beside the weights, which says how the network is "
            "built; load the folder that holds both"
        )
    encoder: DCAEEncoder | None = None
    decoder: DCAEDecoder | None = None
    if part in ("both", "encoder"):
        shape = _shape_of(checkpoint, "encoder")
        with torch.device("meta"):
            encoder = DCAEEncoder(shape, rate)
        _fill(encoder.network, checkpoint)
    if part in ("both", "decoder"):
        shape = _shape_of(checkpoint, "decoder")
        with torch.device("meta"):
            decoder = DCAEDecoder(shape, rate)
        _fill(decoder.network, checkpoint)
    return encoder, decoder


def _shape_of(checkpoint: Checkpoint, side: Side) -> CompressionShape:
    """Raises CheckpointError where the config does not give a network."""
    config = {**_DEFAULTS, **checkpoint.config}
    widths, counts = config[f"{side}_block_out_channels"], config[f"{side}_layers_per_block"]
    latents, heads = config["latent_channels"], config["attention_head_dim"]
    listed = isinstance(widths, list | tuple) and isinstance(counts, list | tuple)
    numbers = [latents, heads, *widths, *counts] if listed else []
    if (
        config["in_channels"] != 3
        or not numbers
        or not all(type(n) is int and 0 <= n < 1 << 16 for n in numbers)
        or 0 in (latents, heads, *widths, *counts[1:])
        or len(widths) != len(counts)
        or not 2 <= len(widths) <= MAX_STAGES
        or sum(counts) > MAX_BLOCKS
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has, of the {side}, {widths!r} channels and "
            f"{counts!r} layers, {latents!r} latents, heads of {heads!r}, and images of "
            f"{config['in_channels']!r} channels; wanted whole numbers, of 2 to {MAX_STAGES} "
            "stages, of which the first alone may have no layers, and images of 3"
        )
    count = len(widths)
    kinds = _each(checkpoint, config, f"{side}_block_types", BLOCKS, count)
    norms, acts = ["rms_norm"] * count, ["silu"] * count
    if side == "decoder":
        norms = _each(checkpoint, config, "decoder_norm_types", NORMS, count)
        acts = _each(checkpoint, config, "decoder_act_fns", tuple(ACTIVATIONS), count)
    (act,) = _each(checkpoint, config, "decoder_conv_act_fn", tuple(ACTIVATIONS), 1)
    key, shuffled, others, shortcut_key = _CHANGES[side]
    (how,) = _each(checkpoint, config, key, (shuffled, *others), 1)
    scales = _scales(checkpoint, config, f"{side}_qkv_multiscales", count)
    shortcut = bool(config.get(shortcut_key, True))
    halved = not counts[0]
    pairs = zip(widths[halved:], widths[1 + halved :], strict=False)
    attending = [n for n, kind in zip(widths, kinds, strict=True) if kind == BLOCKS[1]]
    if (
        any(4 * near % far for near, far in pairs)
        or (side == "encoder" and how == shuffled and any(n % 4 for n in widths[1:]))
        or (shortcut and widths[-1] % latents)
        or any(n % heads for n in attending)
    ):
        raise CheckpointError(
            f"{checkpoint.name}: the stages of its {side} have {list(widths)} channels, with "
            f"{latents} latents and heads of {heads}; wanted each to divide four times the one "
            "before, the last to be a multiple of the latents, and those with attention of the "
            "heads"
        )
    stages = tuple(
        Stage(*stage) for stage in zip(widths, counts, kinds, scales, norms, acts, strict=True)
    )
    return CompressionShape(side, latents, stages, heads, how == shuffled, shortcut, act)


def _each(
    checkpoint: Checkpoint, config: dict[str, Any], key: str, known: tuple[str, ...], count: int
) -> list[str]:
    """One word for each stage, or one for all. Raises CheckpointError."""
    said = config[key]
    words = [said] * count if isinstance(said, str) else said
    if (
        not isinstance(words, list | tuple)
        or len(words) != count
        or not all(isinstance(word, str) and word in known for word in words)
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has {key} {said!r}; wanted {count} of "
            f"{', '.join(known)}"
        )
    return list(words)


def _scales(
    checkpoint: Checkpoint, config: dict[str, Any], key: str, count: int
) -> list[tuple[int, ...]]:
    """The kernels of each stage. Raises CheckpointError."""
    said = config[key]
    if (
        not isinstance(said, list | tuple)
        or len(said) != count
        or not all(isinstance(kernels, list | tuple) for kernels in said)
        or not all(type(n) is int and 0 < n <= MAX_KERNEL and n % 2 for k in said for n in k)
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has {key} {said!r}; wanted {count} lists of odd "
            f"numbers up to {MAX_KERNEL}"
        )
    return [tuple(kernels) for kernels in said]


def _fill(network: CompressionNetwork, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where the tensors are not those of the network."""
    side = f"{network.shape.side}."
    origins: dict[str, Origin] = {name: side + name for name in network.state_dict()}
    for name in origins:
        if ".to_qkv." in name:
            origins[name] = _projections([side + name.replace("to_qkv", f"to_{n}") for n in "qkv"])
        elif ".to_out." in name:
            origins[name] = _projections([side + name])
    fill(network, origins, checkpoint)
    checkpoint.check_used(side, besides=(".num_batches_tracked",))


def _projections(names: list[str]) -> Origin:
    """Products over channels, one below the other, as one convolution of a single place."""

    def read(checkpoint: Checkpoint) -> Tensor:
        return torch.cat([checkpoint.get(name) for name in names])[..., None, None]

    return read
