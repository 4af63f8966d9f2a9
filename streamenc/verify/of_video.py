"""Published tokenizers of video."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.configs import read_config
from streamenc.models.wan.wan import CLASS_NAME
from streamenc.verify.published import Published, Subject


def cosmos(subject: Subject) -> Published:
    """diffusers' AutoencoderKLCosmos, over a whole clip."""
    from diffusers import AutoencoderKLCosmos

    model = subject.pretrained(AutoencoderKLCosmos)

    def encode(video: Tensor) -> Tensor:
        latents: Tensor = model.encode(video).latent_dist.mode()
        return latents

    def decode(latents: Tensor) -> Tensor:
        video: Tensor = model.decode(latents).sample
        return video

    mode = subject.options.get("mode", "exact")
    apart = f"mode={mode} looks at other frames than the whole clip" if mode != "exact" else ""
    return Published("diffusers", encode, decode=decode, apart=apart)


def wan(subject: Subject) -> Published:
    """diffusers' AutoencoderKLWan or AutoencoderKLQwenImage, over a whole clip."""
    import diffusers

    normalised = options.flag("normalised", subject.options.get("normalised", False))
    # Qwen-Image's names and layers are those of Wan 2.1.
    stated = read_config(Path(subject.source).expanduser() / "config.json").get("_class_name")
    model = subject.pretrained(
        getattr(diffusers, stated if stated in CLASS_NAME else CLASS_NAME[0])
    )
    config, like = model.config, subject.like
    mean, std = (
        torch.tensor(values).to(like).view(-1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )

    def encode(video: Tensor) -> Tensor:
        latents: Tensor = model.encode(video).latent_dist.mode()
        return (latents - mean) / std if normalised else latents

    def decode(latents: Tensor) -> Tensor:
        video: Tensor = model.decode(latents * std + mean if normalised else latents).sample
        return video

    return Published("diffusers", encode, decode=decode)
