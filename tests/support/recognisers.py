"""The published encoders of streaming speech recognisers, small, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.references import randomise, transformers

MOONSHINE_SMALL: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "frame_ms": 0.5,
    "sliding_windows": [[5, 3], [4, 0], [6, 2]],
}


def moonshine(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Moonshine streaming, small: frames of 8 samples, heads wider than the model."""
    config = transformers.MoonshineStreamingConfig(
        encoder_config={**MOONSHINE_SMALL, **overrides},
        vocab_size=30,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = transformers.MoonshineStreamingForConditionalGeneration(config).eval()
    randomise(model, seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("gamma"):  # one more of it is exact, so float64 may be compared
                value.copy_((value * 1024).round() / 1024)
    return model


VOXTRAL_SMALL: dict[str, Any] = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "head_dim": 8,
    "num_mel_bins": 16,
    "sliding_window": 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def voxtral(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Voxtral Realtime, small."""
    text = {
        "model_type": "voxtral_realtime_text",
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    audio = {"model_type": "voxtral_realtime_encoder", **VOXTRAL_SMALL, **overrides}
    config = transformers.VoxtralRealtimeConfig(audio_config=audio, text_config=text)
    model = transformers.VoxtralRealtimeForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


def exact_voxtral(model: Any) -> Any:
    """In float64 all through: transformers' norms and rotary positions are in float32."""
    model = model.double()
    model.set_attn_implementation("sdpa")
    tower = model.model.audio_tower
    for layer in tower.layers:
        layer.self_attn_layer_norm = _rms(layer.self_attn_layer_norm)
        layer.final_layer_norm = _rms(layer.final_layer_norm)
    tower.norm = _rms(tower.norm)
    rotary = tower.rotary_emb

    def positions(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        dim = model.config.audio_config.head_dim
        theta = model.config.audio_config.rope_parameters["rope_theta"]
        inverse = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.cat([position_ids[..., None] * inverse] * 2, dim=-1)
        return angles.cos(), angles.sin()

    rotary.forward = positions
    return model


def _rms(norm: Any) -> torch.nn.Module:
    exact = torch.nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon, dtype=torch.float64)
    exact.weight.data.copy_(norm.weight)
    return exact


# Segments of 2 s.
QWEN_SMALL: dict[str, Any] = {
    "d_model": 12,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "num_mel_bins": 10,
    "downsample_hidden_size": 3,
    "n_window": 50,
    "n_window_infer": 200,
    "output_dim": 14,
}


def qwen_asr(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Qwen3-ASR, small."""
    text = {
        "model_type": "qwen3",
        "vocab_size": 30,
        "hidden_size": 14,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    audio = {"model_type": "qwen3_asr_encoder", **QWEN_SMALL, **overrides}
    config = transformers.Qwen3ASRConfig(audio_config=audio, text_config=text, audio_token_id=5)
    model = transformers.Qwen3ASRForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


def qwen_omni(seed: int = 0, **overrides: Any) -> Any:
    """transformers' audio encoder of Qwen3-Omni, small."""
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as source

    config = source.Qwen3OmniMoeAudioEncoderConfig(**{**QWEN_SMALL, **overrides})
    model = source.Qwen3OmniMoeAudioEncoder(config).eval()
    randomise(model, seed)
    return model


# Chunks of 3 states.
NEMOTRON_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "num_mel_bins": 12,
    "subsampling_conv_channels": 4,
    "conv_kernel_size": 5,
    "sliding_window": 8,
    "default_num_lookahead_tokens": 2,
}


def nemotron(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Nemotron ASR streaming, small."""
    config = transformers.NemotronAsrStreamingConfig(
        encoder_config={**NEMOTRON_SMALL, **overrides},
        vocab_size=20,
        decoder_hidden_size=8,
        blank_token_id=19,
    )
    model = transformers.NemotronAsrStreamingForRNNT(config).eval()
    randomise(model, seed)
    return model


def exact_nemotron(model: Any) -> Any:
    """Its encoder in float64 all through: transformers' positions are in float32."""
    encoder = model.encoder.double()
    encoder.set_attn_implementation("sdpa")

    def positions(states: torch.Tensor, cached_frames: int | None = None) -> torch.Tensor:
        count, width = states.shape[1], states.shape[2]
        distances = torch.arange(count - 1, -count, -1, dtype=torch.float64)
        inverse = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = distances[:, None] * inverse
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[None]

    encoder.encode_positions.forward = positions
    return encoder
