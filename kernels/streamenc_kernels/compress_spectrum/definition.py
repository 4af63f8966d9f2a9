"""What `compress_spectrum` means, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def compress_spectrum_torch(real: Tensor, imag: Tensor, exponent: float, silence: float) -> Tensor:
    """The definition of `compress_spectrum`, and what runs on the CPU."""
    power = real.square() + imag.square() + silence
    loudness = power ** (exponent / 2)
    scale = loudness / power.sqrt()
    return torch.cat((real * scale, imag * scale, loudness), dim=-1)
