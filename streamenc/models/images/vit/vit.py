"""ViT and DINOv2: features of single images (arXiv 2010.11929, 2304.07193, 2309.16588).

An image is cut into patches of 14 or 16 pixels; with a class token before them (and registers, in
some models) they go through a transformer. `output` says what comes out of the hidden states:

    cls      The class token, (batch, channels, images).
    patches  A grid of patches, (batch, channels, images, rows, columns).

ViT and DINOv2 differ in the layer scale and the positions: ViT has them for one grid; DINOv2's are
bicubically resized to any, here as in transformers (its authors' code adds 0.1 to the number of
patches there). ViT's are too, where `size` asks for it.

Preparation: what the checkpoint says of it (preprocessor_config.json, processor_config.json);
without that the published defaults, which are for ViT 224 x 224 at once, bilinear, mean and std
0.5, and for DINOv2 the centre 224 x 224 of an image whose shorter side is scaled to 256, bicubic,
with ImageNet's mean and std.

Layout: transformers' folders of ViTModel, Dinov2Model and Dinov2WithRegistersModel, with or without
a head on top, which is not read; also by the names that they have in memory in transformers 5.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.images.image import (
    IMAGENET,
    RATE,
    Preparation,
    chosen_size,
    published_preparation,
)
from streamenc.models.images.vit.transformer import (
    BIASED,
    TRANSFORMER_KEYS,
    Layout,
    Output,
    TransformerShape,
    VisionTransformer,
    check_config,
    check_used,
    known_act,
    shape_numbers,
)
from streamenc.spec import ImageSize, StreamSpec

FAMILIES = ("vit", "dinov2", "dinov2_with_registers")
OUTPUTS = ("cls", "patches")
_PATCHES = "embeddings.patch_embeddings.projection"
_RESIZED = {
    "vit": "bicubic",
    "dinov2": "bicubic float32",
    "dinov2_with_registers": "bicubic antialias float32",
}
_OUTSIDE = {
    "patches": _PATCHES,
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "registers": "embeddings.register_tokens",
    "norm": "layernorm",
}
_ATTENTION = {
    **{f"attention.{name}": f"attention.attention.{name}" for name in ("query", "key", "value")},
    "attention.out": "attention.output.dense",
}
_VIT = {
    **_ATTENTION,
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_SCALES = {"scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"}
_DINOV2 = {**_ATTENTION, **_SCALES}
_SWIGLU = {**_DINOV2, "mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}


def _layout(checkpoint: Checkpoint, shape: TransformerShape, prefix: str) -> Layout:
    blocks = "encoder.layer.{}."
    if shape.family == "vit":
        inside: dict[str, Any] = _VIT
    elif not shape.gated:
        inside = _DINOV2
    else:
        inside = _SWIGLU
        parts = ("mlp.gate_proj", "mlp.up_proj")
        # transformers 5 has that product in two parts in memory.
        if f"{prefix}{blocks.format(0)}{parts[0]}.weight" in checkpoint:
            inside = {**inside, "mlp.fc1": parts}
    return Layout(_OUTSIDE, blocks, inside)


# Of the published models: width, layers, heads.
_PUBLISHED = {"vit-base": (768, 12, 12), "dinov2-base": (768, 12, 12), "dinov2-small": (384, 12, 6)}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-12},
    "dinov2": {"patch_size": 14, "image_size": 224, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-6},
}


def _default_preparation(shape: TransformerShape) -> Preparation:
    if shape.family == "vit":
        side = shape.patch * shape.positions
        half = (0.5, 0.5, 0.5)
        return Preparation(ImageSize(shape.patch, (side, side), 0, "bilinear"), half, half)
    return Preparation(ImageSize(shape.patch, (224, 224), 256, "bicubic"), *IMAGENET)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "vit-base", "dinov2-small", ..."""
    family = variant.partition("-")[0]
    width, layers, heads = _PUBLISHED[variant]
    patch, positions = (16, 14) if family == "vit" else (14, 37)
    shape = TransformerShape(family, width, layers, heads, 4 * width, patch, positions, 1e-6)
    with torch.device("meta"):
        output = Output("cls", (layers,), (True,))
        return VisionTransformer(shape, output, _default_preparation(shape), RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config or tensors are those of one of the families."""
    if stated := checkpoint.config.get("model_type"):
        return stated in FAMILIES
    return _prefix(checkpoint) is not None


# From the names that tensors have in transformers 5 in memory to those that folders have.
_RENAMED = (
    (r"\b(?<!encoder\.)layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"\b(?<!encoder\.)layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"\b(?<!encoder\.)layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.down_proj\.", ".mlp.weights_out."),
)


def _as_published(name: str) -> str:
    for pattern, to in _RENAMED:
        name = re.sub(pattern, to, name)
    return name


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the names, of models with a head on top."""
    prefixes = ("", *(f"{family}." for family in FAMILIES))
    return next((prefix for prefix in prefixes if f"{prefix}{_PATCHES}.weight" in checkpoint), None)


def _shape_of(checkpoint: Checkpoint, prefix: str, family: str) -> TransformerShape:
    """Raises CheckpointError where config and tensors do not give a network."""
    check_config(checkpoint)
    config = {**_DEFAULTS[family], **checkpoint.config}
    hidden_key, ratio = "intermediate_size", config.get("mlp_ratio", 4)
    if family != "vit":
        hidden_key, width = "mlp_ratio x hidden_size", config.get("hidden_size")
        if type(ratio) in (int, float) and 0 < ratio < 1 << 16 and type(width) is int:
            config[hidden_key] = int(width * ratio)
    width, layers, heads, patch, side, hidden = shape_numbers(
        checkpoint, config, (*TRANSFORMER_KEYS, "image_size", hidden_key)
    )
    act = known_act(checkpoint, config.get("hidden_act", "gelu"))
    gated = family != "vit" and bool(config.get("use_swiglu_ffn"))
    if gated:
        hidden, act = (int(hidden * 2 / 3) + 7) // 8 * 8, "silu"
    registers: tuple[int, ...] = (1, 0, width)
    if family == "dinov2_with_registers":
        registers = checkpoint.shape(tokens := f"{prefix}embeddings.register_tokens")
        if len(registers) != 3 or registers[1] > 1 << 10:
            raise CheckpointError(
                f"{checkpoint.name}: {tokens} has shape {registers}; wanted (1, some, {width})"
            )
    return TransformerShape(
        family,
        width,
        layers,
        heads,
        hidden,
        patch,
        side // patch,
        eps=config["layer_norm_eps"],
        act=act,
        biased=BIASED if config.get("qkv_bias", True) else BIASED[3:],
        registers=registers[1],
        scaled=family != "vit",
        gated=gated,
        resized=_RESIZED[family],
    )


def chosen_output(
    shape: TransformerShape, output: str, layer: Any, layers: Any, norm: Any
) -> Output:
    """What users ask for by the options of `load`. Raises UsageError."""
    wanted = hidden_states(layer, layers, shape.layers)
    normed = [n == shape.layers if norm is None else options.flag("norm", norm) for n in wanted]
    return Output(options.choice("output", output, OUTPUTS), wanted, tuple(normed))


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    output: str = "cls",
    layer: Any = None,
    layers: Any = None,
    norm: Any = None,
    size: Any = None,
    rate: Any = RATE,
) -> tuple[VisionTransformer, None]:
    """The encoder; there is no decoder. All options also come as strings.

    output  "cls" or "patches"; see the module.
    layer, layers  The hidden states that come out, their channels one below the other: 9, "6,9",
            [0, -1] or "all". 0 is the transformer's input, 12 or -1 the last layer of a base model,
            which is the default. Layers beyond the last one wanted are neither loaded nor computed.
    norm    Whether the final LayerNorm is applied to them: True to all, False to none; None to the
            last layer alone, as transformers does. (DINOv2's own code normalises all.)
    size    Of the images: None for the published one, 224 x 224; "any" for all multiples of the
            patch; or pixels, 448 or "700x392" (WIDTHxHEIGHT). Positions are resized to it.
    rate    Images a second, for times alone.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes features; it has no decoder")
    checkpoint = checkpoint.renamed(_as_published)
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in ViT or "
            f"DINOv2 ({_PATCHES}.weight)"
        )
    stated, given = checkpoint.config.get("model_type"), name.partition(":")[0]
    family = stated if stated in FAMILIES else given if given in FAMILIES else FAMILIES[0]
    shape = _shape_of(checkpoint, prefix, family)
    wanted = chosen_output(shape, output, layer, layers, norm)
    how = published_preparation(checkpoint, _default_preparation(shape))
    with torch.device("meta"):
        encoder = VisionTransformer(shape, wanted, chosen_size(how, size), rate)
    layout = _layout(checkpoint, shape, prefix)
    fill(encoder, encoder.origins(layout, prefix), checkpoint)
    check_used(checkpoint, layout, prefix, encoder)
    return encoder, None
