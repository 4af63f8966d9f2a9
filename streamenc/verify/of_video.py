"""Published tokenizers of video."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.configs import read_config
from streamenc.models.ltx import CLASS_NAME as LTX_CLASSES
from streamenc.models.wan.wan import CLASS_NAME as WAN_CLASSES
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
    model = subject.pretrained(getattr(diffusers, _class_name(subject, WAN_CLASSES)))
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


def ltx(subject: Subject) -> Published:
    """diffusers' AutoencoderKLLTXVideo or -LTX2Video, over a whole clip; ours has no decoder."""
    import diffusers

    model = subject.pretrained(getattr(diffusers, _class_name(subject, LTX_CLASSES)))
    normalised = options.flag("normalised", subject.options.get("normalised", False))
    mean, std = (value.view(-1, 1, 1, 1) for value in (model.latents_mean, model.latents_std))

    def encode(video: Tensor) -> Tensor:
        latents: Tensor = model.encode(video).latent_dist.mode()
        return (latents - mean) * model.config.scaling_factor / std if normalised else latents

    return Published("diffusers", encode)


def _class_name(subject: Subject, known: tuple[str, ...]) -> str:
    """What a folder's config says; the first one known where it says nothing."""
    path = Path(subject.source).expanduser() / "config.json"
    stated = read_config(path).get("_class_name") if path.is_file() else None
    return stated if stated in known else known[0]
