"""Published codecs of the DAC family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.models.dac.snacnet import Noise
from streamenc.verify.published import Absent, Published, Subject


def dac(subject: Subject) -> Published:
    """transformers' DacModel, over whole clips, which its processor fills up to whole frames."""
    from transformers import DacModel

    model = subject.pretrained(DacModel)

    def padded(audio: Tensor) -> Tensor:
        return F.pad(audio, (0, -audio.shape[-1] % model.config.hop_length))

    def encode(audio: Tensor) -> Tensor:
        codes: Tensor = model.encode(padded(audio)).audio_codes
        return codes

    def latents(audio: Tensor) -> Tensor:
        found: Tensor = model.encoder(padded(audio))
        return found

    def decode(codes: Tensor) -> Tensor:
        audio: Tensor = model.decode(audio_codes=codes).audio_values
        return audio[:, None]

    return Published("transformers", encode, latents, decode)


def snac(subject: Subject) -> Published:
    """The snac package's SNAC, over whole clips; its codes as `layout="frames"` has them,
    its noise that of ours."""
    from snac import SNAC

    path = Path(subject.source).expanduser()
    if path.exists() and not (path / "pytorch_model.bin").is_file():
        raise Absent(f"snac reads folders with a pytorch_model.bin; {subject.source} is none")
    if subject.options.get("layout", "frames") != "frames":
        raise Absent("snac has a list of codes for each codebook: load layout=frames")
    model = SNAC.from_pretrained(subject.source).to(subject.like.device, subject.like.dtype)

    def encode(audio: Tensor) -> Tensor:
        codes = model.encode(audio)
        strides = zip(codes, model.vq_strides, strict=True)
        return torch.stack([code.repeat_interleave(s, dim=-1) for code, s in strides], dim=1)

    def latents(audio: Tensor) -> Tensor:
        found: Tensor = model.encoder(model.preprocess(audio))
        return found

    def decode(codes: Tensor) -> Tensor:
        rows = zip(codes.unbind(1), model.vq_strides, strict=True)
        audio: Tensor = model.decode([row[:, ::stride] for row, stride in rows])
        return audio

    if subject.codec.has_decoder:
        ours = [module for module in subject.codec.decoder.modules() if isinstance(module, Noise)]
        blocks = [module for module in model.modules() if type(module).__name__ == "NoiseBlock"]
        for block, noise in zip(blocks, ours, strict=True):
            block.forward = _with_noise(block, noise)
    return Published("snac", encode, latents, decode)


def _with_noise(block: Any, noise: Noise) -> Callable[[Tensor], Tensor]:
    """A published block on the numbers that ours has, where it would draw others at each call."""

    def forward(x: Tensor) -> Tensor:
        drawn = noise.normal(torch.arange(x.shape[-1], device=x.device)).to(x.dtype)
        if noise.kind == "zero":
            drawn = torch.zeros_like(drawn)
        y: Tensor = x + drawn * block.linear(x)
        return y

    return forward
