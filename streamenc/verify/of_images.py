"""Published encoders and autoencoders of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from streamenc.verify.published import Absent, Published, Subject


def vit(subject: Subject) -> Published:
    """transformers' ViT, DINOv2 and DINOv3: class token or patches of the last hidden state."""
    from transformers import AutoModel

    if subject.options.keys() & {"layer", "layers", "norm"}:
        raise Absent("other hidden states than the last one are compared in streamenc's own tests")
    model, prepared = subject.pretrained(AutoModel), preparation(subject)
    patches = subject.options.get("output") == "patches"

    def encode(images: Tensor) -> Tensor:
        pixels = prepared(images)
        # Positions of other grids are resized as both were told to.
        more = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
        hidden = model(pixels, **more).last_hidden_state
        if not patches:
            return by_time(hidden[:, 0], images)
        rows, columns = (side // model.config.patch_size for side in pixels.shape[2:])
        grid = hidden[:, hidden.shape[1] - rows * columns :].transpose(1, 2)
        return by_time(grid.unflatten(2, (rows, columns)), images)

    return Published("transformers", encode)


def resnet(subject: Subject) -> Published:
    """transformers' ResNet: the pooled features."""
    from transformers import ResNetModel

    if subject.options.keys() & {"layer", "output"}:
        raise Absent("other outputs than the pooled one are compared in streamenc's own tests")
    model, prepared = subject.pretrained(ResNetModel), preparation(subject)

    def encode(images: Tensor) -> Tensor:
        return by_time(model(prepared(images)).pooler_output.flatten(1), images)

    return Published("transformers", encode)


def vqgan(subject: Subject) -> Published:
    """diffusers' VQModel."""
    from diffusers import VQModel

    model = subject.pretrained(VQModel)

    def encode(images: Tensor) -> Tensor:
        x = flat(images)
        latents = model.encode(x).latents
        codes = model.quantize(latents)[2][2]
        return by_time(codes.view(len(x), 1, *latents.shape[2:]), images)

    def decode(codes: Tensor) -> Tensor:
        grids = flat(codes)[:, 0]
        shape = (*grids.shape, model.config.vq_embed_dim)
        entries = model.quantize.get_codebook_entry(grids.reshape(-1), shape)
        return by_time(model.decode(entries, force_not_quantize=True).sample, codes)

    return Published("diffusers", encode, decode=decode)


def vae(subject: Subject) -> Published:
    """diffusers' AutoencoderKL: the mean of the latents, as it is."""
    from diffusers import AutoencoderKL

    model = subject.pretrained(AutoencoderKL)
    if subject.options.get("scaled") or subject.options.get("sample"):
        raise Absent("AutoencoderKL gives the mean, as it is; leave the options out")

    def encode(images: Tensor) -> Tensor:
        return by_time(model.encode(flat(images)).latent_dist.mean, images)

    def decode(latents: Tensor) -> Tensor:
        return by_time(model.decode(flat(latents)).sample, latents)

    return Published("diffusers", encode, decode=decode)


def taesd(subject: Subject) -> Published:
    """diffusers' AutoencoderTiny."""
    from diffusers import AutoencoderTiny

    model = subject.pretrained(AutoencoderTiny)

    def encode(images: Tensor) -> Tensor:
        return by_time(model.encode(flat(images)).latents, images)

    def decode(latents: Tensor) -> Tensor:
        return by_time(model.decode(flat(latents)).sample, latents)

    return Published("diffusers", encode, decode=decode)


def dcae(subject: Subject) -> Published:
    """diffusers' AutoencoderDC: the latents, as they are."""
    from diffusers import AutoencoderDC

    model = subject.pretrained(AutoencoderDC)

    def encode(images: Tensor) -> Tensor:
        return by_time(model.encode(flat(images)).latent, images)

    def decode(latents: Tensor) -> Tensor:
        return by_time(model.decode(flat(latents)).sample, latents)

    return Published("diffusers", encode, decode=decode)


def preparation(subject: Subject) -> Callable[[Tensor], Tensor]:
    """What transformers' processor does to the values of images, whose size is right already; ours
    where the checkpoint says nothing of it."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(subject.source, revision=subject.revision)
    except OSError:
        ours: Any = subject.codec.encoder
        return lambda images: ours.prepared(flat(images))

    def prepared(images: Tensor) -> Tensor:
        levels = (127.5 * (flat(images).double() + 1)).round().byte().permute(0, 2, 3, 1).cpu()
        said = {"do_resize": False, "do_center_crop": False}
        pixels = processor(list(levels.numpy()), return_tensors="pt", **said)["pixel_values"]
        return torch.as_tensor(pixels).to(subject.like)

    return prepared


def flat(x: Tensor) -> Tensor:
    """(batch, channels, time, ...) -> (batch * time, channels, ...)."""
    return x.transpose(1, 2).flatten(0, 1)


def by_time(y: Tensor, like: Tensor) -> Tensor:
    """And back: (batch * time, channels, ...) -> (batch, channels, time, ...)."""
    return y.view(like.shape[0], like.shape[2], *y.shape[1:]).transpose(1, 2)
