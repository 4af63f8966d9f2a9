"""BEATs, as microsoft/unilm has it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.encoders import Encoder

CFG: dict[str, Any] = {
    "input_patch_size": 16,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
}
WIDTH, HIDDEN, HEADS = 768, 3072, 12


def save_beats(folder: Path) -> None:
    torch.save({"cfg": CFG, "model": _random(_beats_shapes())}, folder / "BEATs.pt")


def _random(shapes: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Weights that keep signals near unit size."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes:
        fan = math.prod(shape[1:]) if len(shape) > 1 else 100
        tensors[name] = torch.randn(shape, generator=generator) / math.sqrt(fan)
        if name.endswith(("norm.weight", "Norm.weight", "weight_g", "grep_a")):
            tensors[name] = tensors[name] + 1
    return tensors


def _both(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _beats_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "patch_embedding.weight", (512, 1, 16, 16)
    yield from _both("layer_norm", 512)
    yield from _both("post_extract_proj", WIDTH, 512)
    yield "encoder.pos_conv.0.bias", (WIDTH,)
    yield "encoder.pos_conv.0.weight_g", (1, 1, 128)
    yield "encoder.pos_conv.0.weight_v", (WIDTH, WIDTH // 16, 128)
    yield from _both("encoder.layer_norm", WIDTH)
    for index in range(12):
        there = f"encoder.layers.{index}."
        attention = f"{there}self_attn."
        yield f"{attention}relative_attention_bias.weight", (320, HEADS)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _both(attention + part, WIDTH, WIDTH)
        yield from _both(f"{attention}grep_linear", 8, WIDTH // HEADS)
        yield f"{attention}grep_a", (1, HEADS, 1, 1)
        yield from _both(f"{there}fc1", HIDDEN, WIDTH)
        yield from _both(f"{there}fc2", WIDTH, HIDDEN)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            yield from _both(there + norm, WIDTH)


ENCODERS = [Encoder("BEATs", "beats", save_beats, seconds=10.0)]
