"""Wan's VAE and LTX-Video's encoder, as diffusers has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.encoders import Encoder

# Of Wan 2.2; diffusers' defaults are Wan 2.1.
WAN_22: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
    "scale_factor_spatial": 16,
}
# Five frames: the first one alone, and a step of four.
SECONDS = 5 / 16


def save_wan(**config: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        from diffusers import AutoencoderKLWan

        torch.manual_seed(0)
        AutoencoderKLWan(**config).save_pretrained(folder)

    return save


def save_ltx(folder: Path) -> None:
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(0)
    AutoencoderKLLTXVideo().save_pretrained(folder)


ENCODERS = [
    Encoder("Wan 2.1", "wan", save_wan(), SECONDS, size=(64, 64)),
    Encoder("Wan 2.1, decode", "wan", save_wan(), SECONDS, part="decoder", size=(64, 64)),
    Encoder("Wan 2.2", "wan", save_wan(**WAN_22), SECONDS, {"rate": 16}, size=(64, 64)),
    Encoder("LTX-Video", "ltx", save_ltx, 9 / 24, size=(128, 128)),
]
