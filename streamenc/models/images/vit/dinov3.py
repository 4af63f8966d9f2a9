"""DINOv3: features of single images of any size (arXiv 2508.10104).

A ViT whose positions are rotary, with registers; the larger models have a gated middle. `output`
says what comes out of the hidden states:

    cls      The class token, (batch, channels, images).
    patches  A grid of patches, (batch, channels, images, rows, columns).

Preparation: what the checkpoint says of it; without that 224 x 224 pixels at once, bilinear, with
ImageNet's mean and std.

Layout: transformers' folders of DINOv3ViTModel; also by the names that they have in memory.
"""

from __future__ import annotations

from typing import Any

import torch

from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.images.image import (
    IMAGENET,
    RATE,
    Preparation,
    chosen_size,
    published_preparation,
)
from streamenc.models.images.vit.transformer import (
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
from streamenc.models.images.vit.vit import chosen_output
from streamenc.spec import ImageSize, StreamSpec

FAMILY = "dinov3_vit"
_PATCHES = "embeddings.patch_embeddings.weight"
_REGISTERS = "embeddings.register_tokens"
_OUTSIDE = {
    "patches": "embeddings.patch_embeddings",
    "cls": "embeddings.cls_token",
    "registers": _REGISTERS,
    "norm": "norm",
}
_INSIDE: dict[str, str | tuple[str, ...]] = {
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.out": "attention.o_proj",
    "scale1": "layer_scale1.lambda1",
    "scale2": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}
_GATED: dict[str, str | tuple[str, ...]] = {**_INSIDE, "mlp.fc1": ("mlp.gate_proj", "mlp.up_proj")}
# Which of our products have a bias where the config says so, and what it says without a word.
_BIASES = {
    "query_bias": (("query",), True),
    "key_bias": (("key",), False),
    "value_bias": (("value",), True),
    "proj_bias": (("out",), True),
    "mlp_bias": (("fc1", "fc2"), True),
}
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "patch_size": 16,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
}
# Of the published models: width, layers, heads.
_PUBLISHED = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
MAX_REGISTERS = 1 << 10


def _preparation(shape: TransformerShape) -> Preparation:
    return Preparation(ImageSize(shape.patch, (224, 224), 0, "bilinear"), *IMAGENET)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "small", "base" or "large"."""
    width, layers, heads = _PUBLISHED[variant]
    shape = TransformerShape(FAMILY, width, layers, heads, 4 * width, 16, 0, 1e-5, rotary=100.0)
    with torch.device("meta"):
        output = Output("cls", (layers,), (True,))
        return VisionTransformer(shape, output, _preparation(shape), RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config or tensors are those of this family."""
    if stated := checkpoint.config.get("model_type"):
        return bool(stated == FAMILY)
    return _PATCHES in checkpoint and _REGISTERS in checkpoint


def _shape_of(checkpoint: Checkpoint) -> TransformerShape:
    """Raises CheckpointError where config and tensors do not give a network."""
    check_config(checkpoint)
    config = {**_DEFAULTS, **checkpoint.config}
    width, layers, heads, patch, hidden = shape_numbers(
        checkpoint, config, (*TRANSFORMER_KEYS, "intermediate_size")
    )
    registers, base = config.get("num_register_tokens", 0), config["rope_theta"]
    if (
        type(registers) is not int
        or not 0 <= registers <= MAX_REGISTERS
        or type(base) not in (int, float)
        or not 1 < base < 1e9
        or width // heads % 4
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has num_register_tokens {registers!r}, rope_theta "
            f"{base!r} and {width // heads} channels in a head; wanted a number up to "
            f"{MAX_REGISTERS}, one above 1, and a multiple of 4"
        )
    biased: list[str] = []
    for key, (products, usual) in _BIASES.items():
        biased += products if config.get(key, usual) else ()
    return TransformerShape(
        FAMILY,
        width,
        layers,
        heads,
        hidden,
        patch,
        positions=0,
        eps=config["layer_norm_eps"],
        act=known_act(checkpoint, config.get("hidden_act", "gelu")),
        biased=tuple(biased),
        registers=registers,
        scaled=True,
        gated=bool(config.get("use_gated_mlp")),
        rotary=float(base),
    )


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
            last layer alone, as transformers does.
    size    Of the images: None for the published one, 224 x 224; "any" for all multiples of the
            patch; or pixels, 448 or "720x400" (WIDTHxHEIGHT).
    rate    Images a second, for times alone.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes features; it has no decoder")
    checkpoint = checkpoint.renamed(lambda tensor: tensor.removeprefix("model."))
    if _PATCHES not in checkpoint:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in DINOv3 "
            f"({_PATCHES})"
        )
    shape = _shape_of(checkpoint)
    wanted = chosen_output(shape, output, layer, layers, norm)
    how = published_preparation(checkpoint, _preparation(shape))
    with torch.device("meta"):
        encoder = VisionTransformer(shape, wanted, chosen_size(how, size), rate)
    layout = Layout(_OUTSIDE, "layer.{}.", _GATED if shape.gated else _INSIDE)
    fill(encoder, encoder.origins(layout, ""), checkpoint)
    check_used(checkpoint, layout, "", encoder)
    return encoder, None
