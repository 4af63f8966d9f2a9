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
    """The encoder with 2 of its 32 layers, which are alike."""
    import torch
    from transformers import VoxtralRealtimeEncoderConfig
    from transformers.models.voxtral_realtime import modeling_voxtral_realtime as source

    torch.manual_seed(0)
    config = VoxtralRealtimeEncoderConfig(num_hidden_layers=2)
    source.VoxtralRealtimeEncoder(config).save_pretrained(folder)


def save_qwen(folder: Path) -> None:
    """The encoder of the one of 0.6 B."""
    import torch
    from transformers import Qwen3ASREncoderConfig
    from transformers.models.qwen3_asr import modeling_qwen3_asr as source

    torch.manual_seed(0)
    config = Qwen3ASREncoderConfig(
        d_model=896, encoder_layers=18, encoder_attention_heads=14, encoder_ffn_dim=3584
    )
    source.Qwen3ASREncoder(config).save_pretrained(folder)


def save_nemotron(folder: Path) -> None:
    """The encoder with 6 of its 24 layers, which are alike."""
    import torch
    from transformers import NemotronAsrStreamingEncoder, NemotronAsrStreamingEncoderConfig

    torch.manual_seed(0)
    config = NemotronAsrStreamingEncoderConfig(num_hidden_layers=6, num_mel_bins=128)
    NemotronAsrStreamingEncoder(config).save_pretrained(folder)


ENCODERS = [
    Encoder("Moonshine streaming tiny", "moonshine_streaming", save_moonshine),
    Encoder("Voxtral Realtime, 2 of 32 layers", "voxtral_realtime", save_voxtral, seconds=6.0),
    Encoder("Qwen3-ASR 0.6B", "qwen3_asr", save_qwen, seconds=8.0),
    Encoder(
        "Nemotron ASR streaming, 6 of 24 layers",
        "nemotron_asr_streaming",
        save_nemotron,
        seconds=12.0,
    ),
]
