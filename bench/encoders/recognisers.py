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


def save_voxtral(folder: Path) -> None:
    """The encoder with 4 of its 32 layers, which are alike."""
    import torch
    from transformers import VoxtralRealtimeEncoderConfig
    from transformers.models.voxtral_realtime import modeling_voxtral_realtime as source

    torch.manual_seed(0)
    config = VoxtralRealtimeEncoderConfig(num_hidden_layers=4)
    source.VoxtralRealtimeEncoder(config).save_pretrained(folder)


ENCODERS = [
    Encoder("Moonshine streaming tiny", "moonshine_streaming", save_moonshine),
    Encoder("Voxtral Realtime, 4 of 32 layers", "voxtral_realtime", save_voxtral),
]
