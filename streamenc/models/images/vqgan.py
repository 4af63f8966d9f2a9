"""VQGAN and MoVQ: images to codes on a grid, and back (arXiv 2012.09841, 2209.09002).

Images in [-1, 1] -> codes (batch, 1, images, height / 16, width / 16), say: the index of the
nearest of 1,024 to 16,384 codebook entries at each place. Height and width are multiples of the
factor, which the model's levels tell. Decoding gives images again.

MoVQ is a VQGAN in whose decoder the decoded entries modulate each normalisation: Kandinsky's
`movq`. Which one it is, the tensors say.

Layouts: diffusers' VQModel folders ("ORG/REPO/SUBFOLDER" on the Hub), and the names of
taming-transformers, latent-diffusion and MoVQGAN. Models with Gumbel quantisation are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError
from streamenc.layers.quantize import ResidualVQ
from streamenc.models.images.image import RATE, ImageModel, video
from streamenc.models.images.ldm import AutoencoderNames, AutoencoderShape, Level, Network, shape_of
from streamenc.models.signal import Signal
from streamenc.spec import ImageSize, Port, StreamSpec

CLASS_NAME = "VQModel"
_BOOK = "quantize.embedding.weight"


def _codes(rate: Any, quantizer: ResidualVQ) -> Port:
    entries = quantizer.codebooks.shape[1]
    dtype = "uint16" if entries <= 1 << 16 else "uint32"
    return Port("codes", options.rate("rate", rate), 1, dtype, axes=2)


class VQGANEncoder(ImageModel):
    """Images -> latents, of which `after` makes codes."""

    def __init__(self, shape: AutoencoderShape, quantizer: ResidualVQ, rate: Any) -> None:
        # Scaled to the next multiple by diffusers' preparation, with this filter.
        image = ImageSize(shape.spatial, filter="lanczos")
        ports = (video(options.rate("rate", rate), image), _codes(rate, quantizer))
        super().__init__("vqgan", ports, quantizer.codebooks.shape[1])
        self.network, self.quantizer = Network(shape), quantizer

    @property
    def width(self) -> int:
        return self.quantizer.codebooks.shape[2]

    def images(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height // self.network.shape.spatial, width // self.network.shape.spatial

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        latents = super().after(y, codebooks)
        assert isinstance(latents, Tensor)
        return self.quantizer.encode(latents.flatten(2)).reshape(len(y), 1, *y.shape[2:])


class VQGANDecoder(ImageModel):
    """Codes -> images."""

    def __init__(self, shape: AutoencoderShape, quantizer: ResidualVQ, rate: Any) -> None:
        ports = (_codes(rate, quantizer), video(options.rate("rate", rate)))
        super().__init__("vqgan", ports, quantizer.codebooks.shape[1])
        self.network, self.quantizer = Network(shape), quantizer

    def before(self, x: Signal) -> Tensor:
        codes = self.check_entries(super().before(x))
        latents = self.quantizer.decode(codes.flatten(2)).to(self.like.dtype)
        return latents.reshape(len(codes), latents.shape[1], *codes.shape[2:])

    def images(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        return height * self.network.shape.spatial, width * self.network.shape.spatial


# Of the published models: channels of the levels, channels and entries of the codebook.
_PUBLISHED = {
    "": (((128, 128), (128, 256), (256, 256), (256, 512), (512, 768)), 64, 8192),
    "movq": (((128, 128), (128, 256), (256, 256), (256, 512)), 4, 16384),
}


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "" for aMUSEd's, or "movq"."""
    widths, channels, entries = _PUBLISHED[variant]
    last = len(widths) - 1
    levels = tuple(
        Level(((a, b), (b, b)), attention=False, scales=i < last) for i, (a, b) in enumerate(widths)
    )
    with torch.device("meta"):
        both = (channels, channels)
        shape = AutoencoderShape("encoder", (3, channels), both, 128, levels, False, 32)
        return VQGANEncoder(shape, ResidualVQ(1, entries, channels), RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    if checkpoint.config.get("_class_name", CLASS_NAME) != CLASS_NAME:
        return False
    names = AutoencoderNames.of(checkpoint)
    return names is not None and _BOOK in names


def load(
    name: str, checkpoint: Checkpoint, part: str, *, rate: Any = RATE
) -> tuple[VQGANEncoder | None, VQGANDecoder | None]:
    """The encoder and the decoder, as `part` asks for them; both have the codebook.

    rate  Images a second, for times alone.

    Raises UsageError for a rate that is none, CheckpointError for weights that do not fit.
    """
    names = AutoencoderNames.of(checkpoint)
    if names is None or _BOOK not in names:
        raise CheckpointError(
            f"{checkpoint.name}: its {len(checkpoint.names)} tensors have no {_BOOK} beside a "
            "network from images of 3 channels; wanted a VQGAN"
        )
    entries, width = _matrix(checkpoint, names)
    with torch.device("meta"):
        quantizer = ResidualVQ(1, entries, width)
    book = names(_BOOK)
    fill(quantizer, {"codebooks": lambda checkpoint: checkpoint.get(book)[None]}, checkpoint)
    encoder: VQGANEncoder | None = None
    decoder: VQGANDecoder | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = VQGANEncoder(_shape(checkpoint, names, "encoder", width), quantizer, rate)
        fill(encoder.network, dict(encoder.network.origins(names)), checkpoint)
        names.check_used("encoder")
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = VQGANDecoder(_shape(checkpoint, names, "decoder", width), quantizer, rate)
        fill(decoder.network, dict(decoder.network.origins(names)), checkpoint)
        names.check_used("decoder")
    return encoder, decoder


def _matrix(checkpoint: Checkpoint, names: AutoencoderNames) -> Sequence[int]:
    shape = names.shape(_BOOK)
    if len(shape) != 2 or not all(shape):
        raise CheckpointError(
            f"{checkpoint.name}: {names(_BOOK)} has shape {shape}; wanted (entries, channels)"
        )
    return shape


def _shape(
    checkpoint: Checkpoint, names: AutoencoderNames, side: Any, width: int
) -> AutoencoderShape:
    """Raises CheckpointError where the side does not meet the codebook."""
    shape = shape_of(checkpoint, names, side)
    if shape.modulated and (side == "encoder" or shape.modulated != width):
        raise CheckpointError(
            f"{checkpoint.name}: the normalisations of its {side} are modulated by "
            f"{shape.modulated} channels where the codebook has {width}; wanted a VQGAN, or a MoVQ "
            "whose decoder is modulated by its entries"
        )
    inner, outer = shape.projected or shape.channels
    meets = outer if side == "encoder" else inner
    if meets != width:
        raise CheckpointError(
            f"{checkpoint.name}: the {side} has {meets} channels where the codebook has {width}; "
            "wanted the same: are they of two models?"
        )
    return shape
