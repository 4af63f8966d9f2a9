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
