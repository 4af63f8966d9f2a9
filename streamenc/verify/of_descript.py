"""Published codecs of the DAC family."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from streamenc.verify.published import Published, Subject


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
