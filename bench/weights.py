"""Checkpoints of the published sizes and layouts with random weights: nothing is downloaded.

Gains keep signals near unit size, and codebooks are wide enough that codes spread, so that equal
codes prove something.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]

MIMI_RATIOS = (4, 5, 6, 8)
ENCODEC_RATIOS = (2, 4, 5, 8)
# For transformers' config.json: its defaults are the published sizes.
MIMI_CONFIG = {"model_type": "mimi"}
MIMI_SMALL_CONFIG: dict[str, Any] = {
    "model_type": "mimi",
    "num_filters": 4,
    "hidden_size": 32,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "sliding_window": 20,
    "codebook_size": 64,
    "codebook_dim": 16,
    "num_quantizers": 9,
}
ENCODEC_CONFIG = {"model_type": "encodec"}
HUBERT_CONFIG = {"model_type": "hubert"}
GAIN = 1.3
# Channels of the first convolution of Cosmos' encoder and of its three stages; the decoder's first
# one has the last of them, and its stages go back.
COSMOS_WIDTHS, COSMOS_SMALL_WIDTHS = (128, 256, 512, 512), (8, 12, 16, 16)
COSMOS_LATENT, COSMOS_CODE_CHANNELS, COSMOS_PATCH_CHANNELS = 16, 6, 3 * 4**3


def mimi(folder: Path, *, small: bool = False, seed: int = 0) -> Path:
    """Kyutai's single file of Mimi, written once per folder.

    `small` has few channels and layers, for what only has to run: a folder, as it has a config.
    """
    if not small:
        return written(folder / "mimi.safetensors", _mimi_shapes, seed)
    folder = folder / "mimi-small"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MIMI_SMALL_CONFIG))
    shapes = partial(_mimi_shapes, 4, 32, layers=2, inside=64, books=(9, 64, 16))
    written(folder / "model.safetensors", shapes, seed)
    return folder


def encodec(folder: Path, *, seed: int = 0) -> Path:
    """The encodec package's 24 kHz model as safetensors, written once per folder."""
    return written(folder / "encodec.safetensors", _encodec_shapes, seed)


def hubert(folder: Path, *, seed: int = 0) -> Path:
    """A transformers folder of HuBERT base, written once per folder."""
    folder = folder / "hubert"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HUBERT_CONFIG))
    written(folder / "model.safetensors", _hubert_shapes, seed)
    return folder


def cosmos(
    folder: Path, kind: str = "CV8x8x8", *, small: bool = False, part: str = "both", seed: int = 0
) -> Path:
    """A diffusers folder of a Cosmos video tokenizer, CV8x8x8, CV4x8x8, DV8x8x8 or DV4x8x8.

    diffusers itself knows the CV ones only. `small` has few channels, for what only has to run;
    `part` may leave the decoder out.
    """
    temporal = int(kind[2])
    widths = COSMOS_SMALL_WIDTHS if small else COSMOS_WIDTHS
    folder = folder / f"{kind}{'-small' * small}{'' if part == 'both' else f'-{part}'}"
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "_class_name": "AutoencoderKLCosmos",
        "encoder_block_out_channels": widths,
        "decode_block_out_channels": (widths[1], *widths[2:], widths[-1]),
        "spatial_compression_ratio": 8,
        "temporal_compression_ratio": temporal,
    }
    (folder / "config.json").write_text(json.dumps(config))
    embedding = COSMOS_LATENT if kind[0] == "C" else COSMOS_CODE_CHANNELS
    sides = ("encoder", "decoder") if part == "both" else (part,)
    shapes = partial(_cosmos_shapes, sides, widths, temporal, embedding)
    written(folder / "diffusion_pytorch_model.safetensors", shapes, seed)
    return folder


def transformers_folder(checkpoint: Path, config: dict[str, str]) -> Path:
    """The same weights under the names of the transformers library, with a config.json."""
    folder = checkpoint.with_suffix("")
    if not folder.exists():
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(checkpoint).items():
            renamed = _transformers_name(name)
            if renamed.endswith("in_proj_weight"):
                tensors |= _split_projection(renamed, tensor)
            else:
                tensors[renamed] = tensor
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def written(path: Path, shapes: Callable[[], Shapes], seed: int) -> Path:
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: _random(name, shape, generator) for name, shape in shapes()}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        save_file(tensors, unfinished)
        unfinished.replace(path)
    return path


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    kind = name.rpartition(".")[2]
    if kind in ("cluster_usage", "cluster_size", "_initialized", "inited"):
        return torch.ones(shape)
    normal = torch.randn(shape, generator=generator)
    if kind in ("embedding_sum", "embed", "embed_avg"):
        # Each level quantises what the one before left over.
        level = int(name.partition(".layers.")[2].partition(".")[0])
        return normal * (0.5 * math.pow(0.9, level))
    if kind == "scale":
        return 0.3 + 0.1 * normal
    if kind == "weight_g":
        return GAIN * (1 + 0.1 * normal)
    if len(shape) == 1:
        return (1.0 if "norm" in name and kind == "weight" else 0.0) + 0.1 * normal
    # A transposed convolution's outputs get two taps of each input.
    taps = 2 * shape[0] if "convtr" in name and shape[1] > 1 else math.prod(shape[1:])
    return normal * GAIN / math.sqrt(taps)


def _mimi_shapes(
    filters: int = 64,
    width: int = 512,
    *,
    layers: int = 8,
    inside: int = 2048,
    books: tuple[int, int, int] = (32, 2048, 256),
) -> Shapes:
    """books: how many codebooks, of how many entries of which size."""
    yield from _seanet(filters, width, MIMI_RATIOS, last_kernel=3)
    yield "downsample.conv.conv.conv.weight", (width, width, 4)
    yield "upsample.convtr.convtr.convtr.weight", (width, 1, 4)
    for side in ("encoder", "decoder"):
        for index in range(layers):
            there = f"{side}_transformer.transformer.layers.{index}"
            for norm in ("norm1", "norm2"):
                yield f"{there}.{norm}.weight", (width,)
                yield f"{there}.{norm}.bias", (width,)
            yield f"{there}.self_attn.in_proj_weight", (3 * width, width)
            yield f"{there}.self_attn.out_proj.weight", (width, width)
            yield f"{there}.linear1.weight", (inside, width)
            yield f"{there}.linear2.weight", (width, inside)
            yield f"{there}.layer_scale_1.scale", (width,)
            yield f"{there}.layer_scale_2.scale", (width,)
    count, entries, dim = books
    for kind, levels in (("rvq_first", 1), ("rvq_rest", count - 1)):
        yield f"quantizer.{kind}.input_proj.weight", (dim, width, 1)
        yield f"quantizer.{kind}.output_proj.weight", (width, dim, 1)
        for level in range(levels):
            book = f"quantizer.{kind}.vq.layers.{level}._codebook"
            yield f"{book}._initialized", (1,)
            yield f"{book}.cluster_usage", (entries,)
            yield f"{book}.embedding_sum", (entries, dim)


def _encodec_shapes() -> Shapes:
    for name, shape in _seanet(32, 128, ENCODEC_RATIOS, last_kernel=7, lstm=True):
        if name.endswith(".weight"):
            yield f"{name}_g", (shape[0], 1, 1)
            yield f"{name}_v", shape
        else:
            yield name, shape
    for level in range(32):
        book = f"quantizer.vq.layers.{level}._codebook"
        yield f"{book}.inited", (1,)
        yield f"{book}.cluster_size", (1024,)
        yield f"{book}.embed", (1024, 128)
        yield f"{book}.embed_avg", (1024, 128)


def _hubert_shapes() -> Shapes:
    yield "masked_spec_embed", (768,)
    for index, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        there = f"feature_extractor.conv_layers.{index}"
        yield f"{there}.conv.weight", (512, 512 if index else 1, kernel)
    yield from _affine("feature_extractor.conv_layers.0.layer_norm", 512)
    yield from _affine("feature_projection.layer_norm", 512)
    yield from _affine("feature_projection.projection", 768, 512)
    yield "encoder.pos_conv_embed.conv.weight_g", (1, 1, 128)
    yield "encoder.pos_conv_embed.conv.weight_v", (768, 48, 128)
    yield "encoder.pos_conv_embed.conv.bias", (768,)
    yield from _affine("encoder.layer_norm", 768)
    for index in range(12):
        there = f"encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _affine(f"{there}.attention.{part}", 768, 768)
        yield from _affine(f"{there}.feed_forward.intermediate_dense", 3072, 768)
        yield from _affine(f"{there}.feed_forward.output_dense", 768, 3072)
        yield from _affine(f"{there}.layer_norm", 768)
        yield from _affine(f"{there}.final_layer_norm", 768)


def _cosmos_shapes(
    sides: tuple[str, ...], widths: tuple[int, ...], temporal: int, embedding: int
) -> Shapes:
    latent, patch = COSMOS_LATENT, COSMOS_PATCH_CHANNELS
    if "encoder" in sides:
        yield from _affine("quant_conv", embedding, latent, 1, 1, 1)
        yield from _factorised("encoder.conv_in", widths[0], patch)
        before = widths[0]
        for stage, width in enumerate(widths[1:]):
            there = f"encoder.down_blocks.{stage}"
            for block in range(2):
                yield from _cosmos_block(f"{there}.resnets.{block}", width, before)
                before = width
            if stage == 0:
                yield from _sampler(f"{there}.downsamplers.0", width, ("conv1", "conv2"), temporal)
        yield from _cosmos_middle("encoder.mid_block", before)
        yield from _affine("encoder.norm_out.norm", before)
        yield from _factorised("encoder.conv_out", latent, before)
    if "decoder" in sides:
        yield from _affine("post_quant_conv", latent, embedding, 1, 1, 1)
        before = widths[-1]
        yield from _factorised("decoder.conv_in", before, latent)
        yield from _cosmos_middle("decoder.mid_block", before)
        for stage, width in enumerate((*widths[:1:-1], widths[1])):
            there = f"decoder.up_blocks.{stage}"
            for block in range(3):
                yield from _cosmos_block(f"{there}.resnets.{block}", width, before)
                before = width
            # Time waits for the second sampler, and takes space with it.
            if stage == (temporal == 8):
                yield from _sampler(f"{there}.upsamplers.0", width, ("conv2", "conv1"), temporal)
        yield from _affine("decoder.norm_out.norm", before)
        yield from _factorised("decoder.conv_out", patch, before)


def _cosmos_block(there: str, width: int, before: int) -> Shapes:
    for index, channels in ((1, before), (2, width)):
        yield from _affine(f"{there}.norm{index}.norm", channels)
        yield from _factorised(f"{there}.conv{index}", width, channels)
    if before != width:
        yield from _affine(f"{there}.conv_shortcut", width, before, 1, 1, 1)


def _cosmos_middle(there: str, width: int) -> Shapes:
    for block in range(2):
        yield from _cosmos_block(f"{there}.resnets.{block}", width, width)
    for kind in ("attentions", "temp_attentions"):
        yield from _affine(f"{there}.{kind}.0.norm.norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _affine(f"{there}.{kind}.0.{part}", width, width, 1, 1, 1)


def _sampler(there: str, width: int, names: tuple[str, str], temporal: int) -> Shapes:
    """names: of the convolution within frames, and of that along time, where time is sampled."""
    space, time = names
    yield from _affine(f"{there}.{space}", width, width, 1, 3, 3)
    if temporal == 8:
        yield from _affine(f"{there}.{time}", width, width, 3, 1, 1)
    yield from _affine(f"{there}.conv3", width, width, 1, 1, 1)


def _factorised(there: str, out: int, into: int) -> Shapes:
    yield from _affine(f"{there}.conv_s", out, into, 1, 3, 3)
    yield from _affine(f"{there}.conv_t", out, out, 3, 1, 1)


def _affine(name: str, *shape: int) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _seanet(
    filters: int, latent: int, ratios: tuple[int, ...], *, last_kernel: int, lstm: bool = False
) -> Shapes:
    """Names as both original packages have them; those with an LSTM also have shortcuts."""
    width = filters
    yield from _conv("encoder.model.0.conv.conv", (width, 1, 7))
    for stage, ratio in enumerate(ratios):
        yield from _block(f"encoder.model.{3 * stage + 1}", width, lstm)
        yield from _conv(f"encoder.model.{3 * stage + 3}.conv.conv", (2 * width, width, 2 * ratio))
        width *= 2
    last = 3 * len(ratios) + 2
    if lstm:
        yield from _lstm(f"encoder.model.{last - 1}.lstm", width)
    yield from _conv(f"encoder.model.{last + lstm}.conv.conv", (latent, width, last_kernel))

    yield from _conv("decoder.model.0.conv.conv", (width, latent, 7))
    if lstm:
        yield from _lstm("decoder.model.1.lstm", width)
    for stage, ratio in enumerate(reversed(ratios)):
        first = 3 * stage + 2 + lstm
        there = f"decoder.model.{first}.convtr.convtr"
        yield f"{there}.weight", (width, width // 2, 2 * ratio)
        width //= 2
        yield f"{there}.bias", (width,)
        yield from _block(f"decoder.model.{first + 1}", width, lstm)
    yield from _conv(f"decoder.model.{last + lstm}.conv.conv", (1, width, last_kernel))


def _block(there: str, width: int, shortcut: bool) -> Shapes:
    yield from _conv(f"{there}.block.1.conv.conv", (width // 2, width, 3))
    yield from _conv(f"{there}.block.3.conv.conv", (width, width // 2, 1))
    if shortcut:
        yield from _conv(f"{there}.shortcut.conv.conv", (width, width, 1))


def _conv(there: str, shape: tuple[int, ...]) -> Shapes:
    yield f"{there}.weight", shape
    yield f"{there}.bias", (shape[0],)


def _lstm(there: str, width: int) -> Shapes:
    for layer in range(2):
        for kind in ("ih", "hh"):
            yield f"{there}.weight_{kind}_l{layer}", (4 * width, width)
            yield f"{there}.bias_{kind}_l{layer}", (4 * width,)


_RENAMES = [
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"^downsample\.conv\.conv\.conv\.", "downsample.conv."),
    (r"^upsample\.convtr\.convtr\.convtr\.", "upsample.conv."),
    (r"\.(conv\.conv|convtr\.convtr)\.", ".conv."),
    (r"_transformer\.transformer\.", "_transformer."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.rvq_first\.", ".semantic_residual_vector_quantizer."),
    (r"\.rvq_rest\.", ".acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.(\d+)\._codebook\.", r".layers.\1.codebook."),
    (r"\.embedding_sum$", ".embed_sum"),
    (r"\._initialized$", ".initialized"),
]


def _transformers_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _split_projection(name: str, weight: Tensor, heads: int = 8) -> dict[str, Tensor]:
    """Query, key and value; rotary pairs (2i, 2i + 1) become (i, i + dim / 2)."""

    def half_pairs(w: Tensor) -> Tensor:
        return w.view(heads, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)

    q, k, v = weight.chunk(3)
    parts = {"q": half_pairs(q), "k": half_pairs(k), "v": v}
    return {
        name.replace("in_proj_weight", f"{p}_proj.weight"): w.contiguous() for p, w in parts.items()
    }
