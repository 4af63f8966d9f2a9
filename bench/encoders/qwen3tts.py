"""Qwen3-TTS-Tokenizer-12Hz, as its package has it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from bench import weights
from bench.encoders import Encoder

FAMILY = "qwen3_tts_tokenizer_12hz"
CONFIG = {
    "model_type": FAMILY,
    "encoder_config": {"num_quantizers": 32},
    "decoder_config": {
        "codebook_dim": 512,
        "head_dim": 64,
        "hidden_size": 512,
        "intermediate_size": 1024,
    },
    "encoder_valid_num_quantizers": 16,
}
LAYERS, HIDDEN, INSIDE, FED, LATENT, RATES = 8, 512, 1024, 1024, 1024, (8, 5, 4, 3)


def save(folder: Path) -> None:
    mimi = weights.transformers_folder(weights.mimi(folder), weights.MIMI_CONFIG)
    tensors = {
        f"encoder.{name}": tensor
        for name, tensor in load_file(mimi / "model.safetensors").items()
        if not name.startswith(("decoder", "upsample"))
    }
    decoder = load_file(weights.written(folder / "decoder.safetensors", _decoder_shapes, 1))
    for name, tensor in decoder.items():
        if name.endswith("conv2.conv.weight"):
            tensor *= 0.3  # a residual unit adds to what comes, and sines are added to it
    save_file(tensors | decoder, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for made in (*mimi.iterdir(), mimi.with_suffix(".safetensors"), folder / "decoder.safetensors"):
        made.unlink()
    mimi.rmdir()


def _decoder_shapes() -> weights.Shapes:
    for kind, levels in (("rvq_first", 1), ("rvq_rest", 15)):
        there = f"decoder.quantizer.{kind}"
        yield f"{there}.input_proj.weight", (256, 512, 1)
        yield f"{there}.output_proj.weight", (512, 256, 1)
        for level in range(levels):
            yield f"{there}.vq.layers.{level}._codebook.cluster_usage", (2048,)
            yield f"{there}.vq.layers.{level}._codebook.embedding_sum", (2048, 256)
    yield from _with_bias("decoder.pre_conv.conv", (LATENT, 512, 3))
    there = "decoder.pre_transformer"
    yield from _with_bias(f"{there}.input_proj", (HIDDEN, LATENT))
    yield from _with_bias(f"{there}.output_proj", (LATENT, HIDDEN))
    yield f"{there}.norm.weight", (HIDDEN,)
    for index in range(LAYERS):
        layer = f"{there}.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
        for projection in "qkv":
            yield f"{layer}.self_attn.{projection}_proj.weight", (INSIDE, HIDDEN)
        yield f"{layer}.self_attn.o_proj.weight", (HIDDEN, INSIDE)
        yield f"{layer}.mlp.gate_proj.weight", (FED, HIDDEN)
        yield f"{layer}.mlp.up_proj.weight", (FED, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", (HIDDEN, FED)
        yield f"{layer}.self_attn_layer_scale.scale", (HIDDEN,)
        yield f"{layer}.mlp_layer_scale.scale", (HIDDEN,)
    for index in range(2):
        there = f"decoder.upsample.{index}"
        yield from _with_bias(f"{there}.0.conv", (LATENT, LATENT, 2), outputs=LATENT)
        yield from _with_bias(f"{there}.1.dwconv.conv", (LATENT, 1, 7))
        yield from _with_bias(f"{there}.1.norm", (LATENT,))
        yield from _with_bias(f"{there}.1.pwconv1", (4 * LATENT, LATENT))
        yield from _with_bias(f"{there}.1.pwconv2", (LATENT, 4 * LATENT))
        yield f"{there}.1.gamma", (LATENT,)
    width = 1536
    yield from _with_bias("decoder.decoder.0.conv", (width, LATENT, 7))
    for index, rate in enumerate(RATES, start=1):
        there, narrow = f"decoder.decoder.{index}.block", width // 2
        yield from _snake(f"{there}.0", width)
        yield from _with_bias(f"{there}.1.conv", (width, narrow, 2 * rate), outputs=narrow)
        width = narrow
        for unit in (2, 3, 4):
            for half, kernel in ((1, 7), (2, 1)):
                yield from _snake(f"{there}.{unit}.act{half}", width)
                yield from _with_bias(f"{there}.{unit}.conv{half}.conv", (width, width, kernel))
    yield from _snake("decoder.decoder.5", width)
    yield from _with_bias("decoder.decoder.6.conv", (1, width, 7))


def _with_bias(name: str, shape: tuple[int, ...], outputs: int | None = None) -> weights.Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", (outputs or shape[0],)


def _snake(name: str, width: int) -> weights.Shapes:
    yield f"{name}.alpha", (width,)
    yield f"{name}.beta", (width,)


ENCODERS = [
    Encoder("Qwen3-TTS-Tokenizer-12Hz", FAMILY, save),
    Encoder("Qwen3-TTS-Tokenizer-12Hz, decode", FAMILY, save, part="decoder"),
]
