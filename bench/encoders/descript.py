"""DAC, as transformers has it, and SNAC, as the package snac."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from bench.encoders import Encoder
from streamenc.models.dac import snac
from streamenc.models.dac.dac import PUBLISHED


def save_dac(variant: str) -> Callable[[Path], None]:
    """Writes the published size with transformers' own random weights, in which the convolutions
    that raise the rate are those of torch."""

    def save(folder: Path) -> None:
        from transformers import DacConfig, DacModel

        torch.manual_seed(0)
        DacModel(DacConfig(**PUBLISHED[variant])).save_pretrained(folder)

    return save


def save_snac(variant: str) -> Callable[[Path], None]:
    """Writes the published size with the package's own random weights."""

    def save(folder: Path) -> None:
        from snac import SNAC

        torch.manual_seed(0)
        config = snac.PUBLISHED[variant]
        torch.save(SNAC(**config).state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(config))

    return save


ENCODERS = [
    Encoder("DAC 16 kHz", "dac", save_dac("16khz")),
    Encoder("DAC 44 kHz", "dac", save_dac("44khz")),
    Encoder("DAC 44 kHz, decode", "dac", save_dac("44khz"), part="decoder"),
    Encoder("SNAC 24 kHz", "snac", save_snac("24khz")),
    Encoder("SNAC 24 kHz, decode", "snac", save_snac("24khz"), part="decoder"),
]
