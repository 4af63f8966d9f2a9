"""CLIP, SigLIP and SigLIP 2: features of single images that meet those of texts (arXiv 2103.00020,
2303.15343, 2502.14786).

`output` says what comes out:

    pooled     What transformers calls so: of CLIP the class token of the last layer, normalised; of
               SigLIP what its attention makes of all patches. (batch, channels, images).
    embedding  CLIP's after its projection, beside which texts have theirs; not yet of length 1.
               SigLIP has none: its pooled features are that.
    cls        CLIP's class token, (batch, channels, images).
    patches    A grid of patches, (batch, channels, images, rows, columns).

SigLIP 2 of one size (patch16-224, say) is a SigLIP, with other weights. Its NaFlex variant takes
images of any size in multiples of the patch. The published one pads their patches to one count and
masks what it added; here nothing is added, which is the same.

Preparation: what the checkpoint says of it; without that the centre 224 x 224 of an image whose
shorter side is scaled to 224 for CLIP, and the model's size at once for SigLIP, both bicubic; for
NaFlex the square of its learnt positions, bilinear.

Layout: transformers' folders of the whole models, whose text side is not read, and of their vision
models, with or without the projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.images.image import (
    RATE,
    Preparation,
    chosen_size,
    published_preparation,
)
from streamenc.models.images.vit.transformer import (
    TRANSFORMER_KEYS,
    AttentionPooling,
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

FAMILIES = ("clip", "siglip", "siglip2")
OUTPUTS = {
    "clip": ("pooled", "embedding", "cls", "patches"),
    "siglip": ("pooled", "patches"),
    "siglip2": ("pooled", "patches"),
}
CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = (0.5, 0.5, 0.5)
_VISION = "_vision_model"
_PATCHES = "embeddings.patch_embedding.weight"
_PROJECTION = "visual_projection.weight"
_OUTSIDE = {
    "patches": "embeddings.patch_embedding",
    "cls": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "early_norm": "pre_layrnorm",
    "norm": "post_layernorm",
}
_INSIDE = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
}
CLIP_LAYOUT = Layout(_OUTSIDE, "encoder.layers.{}.", _INSIDE)
_HEAD = {
    "probe": "probe",
    "in_proj.weight": "attention.in_proj_weight",
    "in_proj.bias": "attention.in_proj_bias",
    "out.weight": "attention.out_proj.weight",
    "out.bias": "attention.out_proj.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
    **{f"mlp.fc{n}.{end}": f"mlp.fc{n}.{end}" for n in (1, 2) for end in ("weight", "bias")},
}
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "clip": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "siglip2": {
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "num_patches": 256,
    },
}
# Of the published models: family, width, layers, heads, patch, size.
_PUBLISHED = {
    "clip-base": ("clip", 768, 12, 12, 32, 224),
    "clip-large": ("clip", 1024, 24, 16, 14, 224),
    "siglip2-base": ("siglip", 768, 12, 12, 16, 224),
    "siglip2-so400m": ("siglip", 1152, 27, 16, 14, 384),
    "siglip2-naflex": ("siglip2", 768, 12, 12, 16, 256),
}


def _preparation(shape: TransformerShape) -> Preparation:
    side = shape.patch * shape.positions
    if shape.family == "clip":
        return Preparation(ImageSize(shape.patch, (side, side), side, "bicubic"), *CLIP_COLOURS)
    filter_ = "bicubic" if shape.family == "siglip" else "bilinear"
    return Preparation(ImageSize(shape.patch, (side, side), 0, filter_), _HALF, _HALF)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "clip-base", "siglip2-so400m", ..."""
    family, width, layers, heads, patch, side = _PUBLISHED[variant]
    shape = TransformerShape(family, width, layers, heads, 4 * width, patch, side // patch, 1e-6)
    with torch.device("meta"):
        output = Output("cls", (layers,), (True,))
        return VisionTransformer(shape, output, _preparation(shape), RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config or tensors are those of one of the families."""
    if stated := checkpoint.config.get("model_type"):
        return isinstance(stated, str) and stated.removesuffix(_VISION) in FAMILIES
    return _prefix(checkpoint) is not None


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the names, as in the whole models."""
    return next((p for p in ("vision_model.", "") if p + _PATCHES in checkpoint), None)


def _family(name: str, checkpoint: Checkpoint, prefix: str) -> str:
    """As config, user or tensors say, in this order."""
    for said in (checkpoint.config.get("model_type"), name.partition(":")[0]):
        if isinstance(said, str) and (family := said.removesuffix(_VISION)) in FAMILIES:
            return family
    if prefix + _OUTSIDE["cls"] in checkpoint:
        return "clip"
    return "siglip" if len(checkpoint.shape(prefix + _PATCHES)) == 4 else "siglip2"


def clip_shape(checkpoint: Checkpoint, config: Mapping[str, Any], family: str) -> TransformerShape:
    """The network of a vision tower's config; what it does not say is as in transformers.

    Raises CheckpointError.
    """
    config = {**_DEFAULTS, **_OF_FAMILY[family], **config}
    size = "num_patches" if family == "siglip2" else "image_size"
    keys = (*TRANSFORMER_KEYS, size, "intermediate_size")
    width, layers, heads, patch, side, hidden = shape_numbers(checkpoint, config, keys)
    positions = side // patch
    if family == "siglip2":
        positions = math.isqrt(side)
        if positions**2 != side:
            raise CheckpointError(
                f"{checkpoint.name}: its config.json has num_patches {side}; wanted a square "
                "number, those of a grid of learnt positions"
            )
    return TransformerShape(
        family,
        width,
        layers,
        heads,
        hidden,
        patch,
        positions,
        eps=config["layer_norm_eps"],
        act=known_act(checkpoint, config["hidden_act"]),
        patch_bias=family != "clip",
        cls=family == "clip",
        early_norm=family == "clip",
        resized="bilinear antialias float32" if family == "siglip2" else "bicubic",
    )


def vision_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config of the vision tower in that of a whole model. Raises CheckpointError."""
    config = checkpoint.config.get("vision_config") or {}
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has vision_config {config!r}; wanted an object"
        )
    return config


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    output: str = "pooled",
    layer: Any = None,
    layers: Any = None,
    norm: Any = None,
    size: Any = None,
    rate: Any = RATE,
) -> tuple[VisionTransformer, None]:
    """The encoder; there is no decoder. All options also come as strings.

    output  "pooled", "embedding", "cls" or "patches"; see the module.
    layer, layers  Of "cls" and "patches", the hidden states that come out, their channels one below
            the other: 9, "6,9", [0, -2] or "all". 0 is the transformer's input, 12 or -1 the last
            layer of a base model, which is the default. Layers beyond the last one wanted are
            neither loaded nor computed.
    norm    Of "cls" and "patches", whether the final LayerNorm is applied: True to all, False to
            none; None as transformers does, which is to SigLIP's last layer alone.
    size    Of the images: None for the published one; "any" for all multiples of the patch; or
            pixels, 448 or "700x392" (WIDTHxHEIGHT). Positions are resized to it.
    rate    Images a second, for times alone.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes features; it has no decoder")
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in the "
            f"vision tower of CLIP or SigLIP ({_PATCHES}, with or without vision_model. before it)"
        )
    check_config(checkpoint)
    family = _family(name, checkpoint, prefix)
    whole = checkpoint.config.get("model_type") in FAMILIES or "vision_config" in checkpoint.config
    config = vision_config(checkpoint) if whole else checkpoint.config
    shape = clip_shape(checkpoint, config, family)
    kind = options.choice("output", output, OUTPUTS[family])
    if kind in ("pooled", "embedding"):
        if not layer is layers is norm is None:
            raise UsageError(
                f"output={kind} is of the last layer; layer, layers and norm are for cls and "
                "patches"
            )
        wanted: tuple[int, ...] = (shape.layers,)
        normed = [True]
    else:
        wanted = hidden_states(layer, layers, shape.layers)
        last = shape.layers if family != "clip" else None
        normed = [n == last if norm is None else options.flag("norm", norm) for n in wanted]
    how = published_preparation(checkpoint, _preparation(shape))
    others: dict[str, Origin] = {}
    if family == "siglip2":
        others["patches.weight"] = _as_convolution(prefix + _PATCHES, shape)
    with torch.device("meta"):
        head, channels = _head(checkpoint, config, kind, shape, prefix, others)
        tokens = "patches" if kind == "patches" or family != "clip" else "cls"
        encoder = VisionTransformer(
            shape,
            Output(tokens, wanted, tuple(normed)),
            chosen_size(how, size),
            rate,
            head,
            channels,
        )
    fill(encoder, encoder.origins(CLIP_LAYOUT, prefix, others), checkpoint)
    check_used(checkpoint, CLIP_LAYOUT, prefix, encoder)
    return encoder, None


def _head(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    kind: str,
    shape: TransformerShape,
    prefix: str,
    origins: dict[str, Origin],
) -> tuple[nn.Module | None, int]:
    """What makes the output of the tokens, and its channels, 0 where there is none.

    origins  Gets where its parameters come from.
    """
    if kind == "embedding":
        if _PROJECTION not in checkpoint:
            raise CheckpointError(
                f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is "
                f"{_PROJECTION}, without which there is no embedding; load output=pooled, or a "
                "whole CLIP"
            )
        found = checkpoint.shape(_PROJECTION)
        if len(found) != 2 or not found[0]:
            raise CheckpointError(
                f"{checkpoint.name}: {_PROJECTION} has shape {found}; wanted (channels, "
                f"{shape.width})"
            )
        origins["head.weight"] = _PROJECTION
        return nn.Linear(shape.width, found[0], bias=False), found[0]
    if kind != "pooled" or shape.family == "clip":
        return None, 0
    if not config.get("vision_use_head", True):
        raise UsageError("this model has no head that pools its patches; load output=patches")
    origins |= {f"head.{ours}": f"{prefix}head.{theirs}" for ours, theirs in _HEAD.items()}
    return AttentionPooling(shape), shape.width


def _as_convolution(name: str, shape: TransformerShape) -> Origin:
    """NaFlex's product over a patch's pixels, whose colours lie innermost."""
    patch, width = shape.patch, shape.width

    def read(checkpoint: Checkpoint) -> Tensor:
        weight = checkpoint.get(name, (width, patch * patch * 3))
        return weight.view(width, patch, patch, 3).permute(0, 3, 1, 2)

    return read
