"""VibeVoice's acoustic tokenizer, as transformers has it."""

from __future__ import annotations

import json
from pathlib import Path

from bench import weights
from bench.encoders import Encoder

FAMILY = "vibevoice_acoustic_tokenizer"
RATIOS, DEPTHS, WIDTH, LATENT = (2, 2, 4, 5, 5, 8), (3, 3, 3, 3, 3, 3, 8), 32, 64


def save(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": FAMILY}))
    weights.written(folder / "model.safetensors", _shapes, 0)


def _shapes() -> weights.Shapes:
    widths = [WIDTH << index for index in range(len(DEPTHS))]
    yield from _conv("encoder.stem.conv.conv", (WIDTH, 1, 7))
    yield from _conv("decoder.stem.conv.conv", (widths[-1], LATENT, 7))
    yield from _conv("encoder.head.conv", (LATENT, widths[-1], 7))
    yield from _conv("decoder.head.conv", (1, WIDTH, 7))
    for side, sizes, depths in (
        ("encoder", widths, DEPTHS),
        ("decoder", widths[::-1], DEPTHS[::-1]),
    ):
        for stage, (width, depth) in enumerate(zip(sizes, depths, strict=True)):
            there = f"{side}.conv_layers.{stage - 1}" if stage else f"{side}.stem"
            if stage and side == "encoder":
                shape = (width, width // 2, 2 * RATIOS[stage - 1])
                yield from _conv(f"{there}.conv.conv", shape)
            elif stage:
                shape = (2 * width, width, 2 * RATIOS[-stage])
                yield f"{there}.convtr.convtr.weight", shape
                yield f"{there}.convtr.convtr.bias", (width,)
            for block in range(depth):
                yield from _block(f"{there}.stage.{block}", width)


def _block(there: str, width: int) -> weights.Shapes:
    for name in ("norm.weight", "ffn_norm.weight", "gamma", "ffn_gamma"):
        yield f"{there}.{name}", (width,)
    yield from _conv(f"{there}.mixer.conv", (width, 1, 7))
    yield from _conv(f"{there}.ffn.linear1", (4 * width, width))
    yield from _conv(f"{there}.ffn.linear2", (width, 4 * width))


def _conv(name: str, shape: tuple[int, ...]) -> weights.Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


ENCODERS = [
    Encoder("VibeVoice's acoustic tokenizer", FAMILY, save),
    Encoder("VibeVoice's acoustic tokenizer, decode", FAMILY, save, part="decoder"),
]
