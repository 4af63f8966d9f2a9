"""Published tokenizers of video."""

from __future__ import annotations

from torch import Tensor

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
