"""LTX-Video's VAE of two kinds, as diffusers has it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import references

diffusers = pytest.importorskip("diffusers")

# Halved twice in all.
SMALL: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": [4, 6, 6],
    "down_block_types": ["LTXVideoDownBlock3D"] * 3,
    "decoder_block_out_channels": [4],
    "layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1],
    "spatio_temporal_scaling": [True, True, False],
    "decoder_spatio_temporal_scaling": [False],
    "decoder_inject_noise": [False, False],
    "upsample_residual": [False],
    "upsample_factor": [1],
    "patch_size": 2,
}
# Each kind of sampler of version 0.9.5.
NEWER: dict[str, Any] = {
    "block_out_channels": [4, 4, 8, 16],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 3,
    "spatio_temporal_scaling": [True, True, True],
    "downsample_type": ["spatial", "temporal", "spatiotemporal"],
}


# LTX-2, whose first convolution has as many channels as the latents.
SECOND: dict[str, Any] = {
    "block_out_channels": [4, 8, 16],
    "down_block_types": ["LTX2VideoDownBlock3D"] * 3,
    "spatio_temporal_scaling": True,
    "decoder_spatio_temporal_scaling": False,
    "downsample_type": ["spatial", "temporal", "spatiotemporal"],
    "upsample_type": ["spatiotemporal"],
}


def ltx(**overrides: Any) -> Any:
    """diffusers' model, small, with random weights, also of its latents' mean and deviation."""
    kind = "AutoencoderKLLTX2Video" if overrides.get("upsample_type") else "AutoencoderKLLTXVideo"
    model = getattr(diffusers, kind)(**{**SMALL, **overrides}).eval()
    references.randomise(model)
    model.latents_std.abs_().add_(0.5)
    return model
