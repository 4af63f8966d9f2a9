"""MOSS-Audio-Tokenizer of the size of Nano: the large one has 1.6 billion weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from bench import weights
from bench.encoders import Encoder

FAMILY = "moss-audio-tokenizer"


def transformer(into: int, width: int, out: int, **form: Any) -> dict[str, Any]:
    return {
        "module_type": "Transformer",
        "input_dimension": into,
        "d_model": width,
        "output_dimension": out,
        "causal": True,
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "max_period": 10_000,
        "gating": "none",
        "layer_scale": 0.01,
        "conv_layout": True,
        **form,
    }


def patch(size: int) -> dict[str, Any]:
    return {"module_type": "PatchedPretransform", "patch_size": size}


def _small() -> dict[str, Any]:
    """48 kHz stereo in 16 codebooks, with 22 million weights."""
    form = {"num_heads": 4, "num_layers": 3, "dim_feedforward": 1024}
    encoder = [patch(240), transformer(240, 256, 192, **form)]
    for out in (192, 192):
        encoder += [patch(2), transformer(384, 256, out, **form)]
    encoder += [patch(2), transformer(384, 256, 192, **form), patch(4)]
    decoder = [patch(4)]
    decoder += [transformer(192, 256, 384, **form), patch(2)]
    for _ in range(2):
        decoder += [transformer(192, 256, 384, **form), patch(2)]
    decoder += [transformer(192, 256, 240, **form), patch(240)]
    return {
        "model_type": FAMILY,
        "sampling_rate": 48_000,
        "downsample_rate": 3840,
        "number_channels": 2,
        "enable_channel_interleave": True,
        "causal_transformer_context_duration": 10.0,
        "encoder_kwargs": encoder,
        "decoder_kwargs": decoder,
        "quantizer_kwargs": {
            "quantizer_type": "rlfq",
            "input_dim": 768,
            "rvq_dim": 512,
            "output_dim": 768,
            "num_quantizers": 16,
            "codebook_size": 1024,
            "codebook_dim": 8,
        },
    }


def save(folder: Path, config: dict[str, Any]) -> None:
    """Random weights in the published layout."""
    (folder / "config.json").write_text(json.dumps(config))
    weights.written(folder / "model.safetensors", partial(_shapes, config), 0)


def _shapes(config: dict[str, Any]) -> weights.Shapes:
    for side in ("encoder", "decoder"):
        for index, module in enumerate(config[f"{side}_kwargs"]):
            if module["module_type"] == "Transformer":
                yield from _transformer(f"{side}.{index}", module)
    q = config["quantizer_kwargs"]
    inside, dim = q["rvq_dim"], q["codebook_dim"]
    yield from _normed("quantizer.input_proj", q["input_dim"], inside)
    yield from _normed("quantizer.output_proj", inside, q["output_dim"])
    for level in range(q["num_quantizers"]):
        there = f"quantizer.quantizers.{level}"
        yield from _normed(f"{there}.in_proj", inside, dim)
        yield from _normed(f"{there}.out_proj", dim, inside)
        yield f"{there}.codebook.weight", (q["codebook_size"], dim)


def _transformer(there: str, module: dict[str, Any]) -> weights.Shapes:
    width, fed = module["d_model"], module["dim_feedforward"]
    if module["input_dimension"] != width:
        yield f"{there}.input_proj.weight", (width, module["input_dimension"])
    for index in range(module["num_layers"]):
        layer = f"{there}.transformer.layers.{index}"
        for part in (1, 2):
            yield f"{layer}.norm{part}.weight", (width,)
            yield f"{layer}.norm{part}.bias", (width,)
            yield f"{layer}.layer_scale_{part}.scale", (width,)
        yield f"{layer}.self_attn.in_projs.0.weight", (3 * width, width)
        yield f"{layer}.self_attn.out_projs.0.weight", (width, width)
        yield f"{layer}.linear1.weight", (fed, width)
        yield f"{layer}.linear2.weight", (width, fed)
    if module["output_dimension"] != width:
        yield f"{there}.output_proj.weight", (module["output_dimension"], width)


def _normed(there: str, into: int, out: int) -> weights.Shapes:
    yield f"{there}.weight_g", (out, 1, 1)
    yield f"{there}.weight_v", (out, into, 1)
    yield f"{there}.bias", (out,)


NAME, SAVE = "MOSS-Audio-Tokenizer, 22 M", partial(save, config=_small())
ENCODERS = [
    Encoder(NAME, FAMILY, SAVE),
    Encoder(f"{NAME}, decode", FAMILY, SAVE, part="decoder"),
]
