"""The VAE of latent diffusion: images to latents and back (arXiv 2112.10752).

Images in [-1, 1] -> latents (batch, 4, images, height / 8, width / 8), with the published
models; height and width are multiples of 8. Latents are the mean of the model's Gaussians: nothing
is sampled, and nothing is scaled, where diffusion models scale by 0.18215 or so. Decoding gives
images again, which may leave [-1, 1] by a little, as with the published model.

Layouts: diffusers' AutoencoderKL folders, and latent-diffusion's names (also of a whole diffusion
model, first_stage_model.encoder...).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError
from streamenc.models.images.image import RATE, ImageModel, video
from streamenc.models.images.ldm import AutoencoderNames, AutoencoderShape, Level, Network, shape_of
from streamenc.spec import ImageSize, Port, StreamSpec

CLASS_NAME = "AutoencoderKL"


class VAEEncoder(ImageModel):
    """Images -> latents."""

    def __init__(self, shape: AutoencoderShape, rate: Any) -> None:
        fps = options.rate("rate", rate)
        both = shape.projected[1] if shape.projected else shape.channels[1]
        # Scaled to the next multiple by diffusers' preparation, with this filter.
        image = ImageSize(shape.spatial, filter="lanczos")
        super().__init__("vae", (video(fps, image), Port("features", fps, both // 2, axes=2)))
        self.network = Network(shape)

    def images(self, x: Tensor) -> Tensor:
        mean: Tensor = self.network(x).chunk(2, dim=1)[0]
        return mean

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height // self.network.shape.spatial, width // self.network.shape.spatial


class VAEDecoder(ImageModel):
    """Latents -> images."""

    def __init__(self, shape: AutoencoderShape, rate: Any) -> None:
        fps = options.rate("rate", rate)
        latents = shape.projected[0] if shape.projected else shape.channels[0]
        super().__init__("vae", (Port("features", fps, latents, axes=2), video(fps)))
        self.network = Network(shape)

    def images(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height * self.network.shape.spatial, width * self.network.shape.spatial


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of the published model promises; it has no variants."""
    widths = ((128, 128), (128, 256), (256, 512), (512, 512))
    levels = tuple(
        Level(((a, b), (b, b)), attention=False, scales=i < 3) for i, (a, b) in enumerate(widths)
    )
    with torch.device("meta"):
        return VAEEncoder(
            AutoencoderShape("encoder", (3, 8), (8, 8), 128, levels, True, 32), RATE
        ).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    if checkpoint.config.get("_class_name", CLASS_NAME) != CLASS_NAME:
        return False
    names = AutoencoderNames.of(checkpoint)
    return names is not None and "quantize.embedding.weight" not in names


def load(
    name: str, checkpoint: Checkpoint, part: str, *, rate: Any = RATE
) -> tuple[VAEEncoder | None, VAEDecoder | None]:
    """The encoder and the decoder, as `part` asks for them.

    rate  Images a second, for times alone.

    Raises UsageError for a rate that is none, CheckpointError for weights that do not fit.
    """
    names = AutoencoderNames.of(checkpoint)
    if names is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is the first layer of "
            "such a VAE (encoder.conv_in.weight of 3 channels)"
        )
    encoder: VAEEncoder | None = None
    decoder: VAEDecoder | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = VAEEncoder(shape_of(checkpoint, names, "encoder"), rate)
        fill(encoder.network, dict(encoder.network.origins(names)), checkpoint)
        names.check_used("encoder")
    if part in ("both", "decoder"):
        shape = shape_of(checkpoint, names, "decoder")
        if shape.modulated:
            raise CheckpointError(
                f"{checkpoint.name}: the normalisations of its decoder are modulated, as in MoVQ; "
                "wanted a VAE. Load it as vqgan, with its codebook"
            )
        with torch.device("meta"):
            decoder = VAEDecoder(shape, rate)
        fill(decoder.network, dict(decoder.network.origins(names)), checkpoint)
        names.check_used("decoder")
    return encoder, decoder
