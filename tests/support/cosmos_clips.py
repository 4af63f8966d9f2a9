"""Cosmos of several layouts beside diffusers' models, and clips of video for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import streamenc
from streamenc.stream import Stream
from tests.support import references

# Temporal and spatial factor, and what else differs.
CONFIGS: dict[str, dict[str, Any]] = {
    "4x8x8": {"temporal_compression_ratio": 4},
    "8x8x8": {},
    "8x16x16": {"spatial_compression_ratio": 16},
    "blocks": {"num_layers": 2, "attention_resolutions": (128,)},
    "small patches": {"patch_size": 2, "attention_resolutions": ()},
}


def pair(folder: Path, config: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """diffusers' model, and ours from its folder."""
    theirs = references.cosmos(**CONFIGS[config])
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **options)


def video(frames: int, height: int, width: int, dtype: torch.dtype, *, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    shape = (batch, 3, frames, height, width)
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(dtype)


def encoded(theirs: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        latents: Tensor = theirs.encode(x).latent_dist.mode()
        return latents


def decoded(theirs: Any, z: Tensor) -> Tensor:
    with torch.inference_mode():
        frames: Tensor = theirs.decode(z).sample
        return frames


def delivered(stream: Stream, x: Tensor, sizes: list[int]) -> Tensor:
    parts, start = [], 0
    while start < x.shape[2]:
        size = sizes[len(parts) % len(sizes)]
        parts.append(stream.push(x[:, :, start : start + size]))
        start += size
    return torch.cat([*parts, stream.flush()], dim=2)


def completed(x: Tensor, hop: int) -> Tensor:
    """With its last frame repeated, up to 1 + n * hop frames."""
    return torch.cat((x, x[:, :, -1:].expand(-1, -1, (1 - x.shape[2]) % hop, -1, -1)), dim=2)
