"""Encoders of streaming speech recognisers, as transformers has them."""

from __future__ import annotations

from pathlib import Path

from bench.encoders import Encoder


def save_moonshine(folder: Path) -> None:
    """The tiny one's encoder."""
    import torch
    from transformers import MoonshineStreamingEncoderConfig
    from transformers.models.moonshine_streaming import modeling_moonshine_streaming as source

    torch.manual_seed(0)
    model = source.MoonshineStreamingEncoder(MoonshineStreamingEncoderConfig())
    model.save_pretrained(folder)


ENCODERS = [Encoder("Moonshine streaming tiny", "moonshine_streaming", save_moonshine)]
