"""Video-LLaVA: the features of videos and images that its language model reads (arXiv 2311.10122).

Two towers, one for videos and one for images, each a CLIP, and a projector behind both. A frame
gives (batch, channels, frames, 1, tokens), or a grid (batch, channels, frames, rows, columns).

Layouts: transformers' folders (LanguageBind/Video-LLaVA-7B-hf) and the original ones
(LanguageBind/Video-LLaVA-7B); of neither is the language model read. They are not the same network:

    transformers'  Each frame is alone.
    original       Before each block of the video tower, the places of eight frames see each other:
                   videos go through in windows of eight frames, which are those that were sampled
                   from a clip. A last window of fewer is filled as the published sampling would.

Which one it is, the tensors say, and `spec.note` tells it.

Preparation: what the checkpoint says of it; without that the centre 224 x 224 of a frame whose
shorter side is scaled to 224, bicubic, with CLIP's mean and std. The published code of the original
layout also mirrors every second video at random, which is not done here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.images.image import RATE, Preparation, published_preparation
from streamenc.models.images.vit.clip import (
    CLIP_COLOURS,
    CLIP_LAYOUT,
    clip_shape,
    vision_config,
)
from streamenc.models.images.vit.transformer import (
    FeedForward,
    Layout,
    Output,
    TransformerShape,
    VisionTransformer,
    check_used,
    known_act,
)
from streamenc.spec import ImageSize, StreamSpec

log = logging.getLogger(__name__)

FAMILY = "video_llava"
TOWERS = ("video", "image")
OUTPUTS = ("tokens", "patches")
MAX_FRAMES = 1 << 10
_PATCHES = "embeddings.patch_embedding.weight"
_TEMPORAL = {
    "temporal.embedding": "temporal_embedding",
    "temporal.norm": "temporal_layer_norm1",
    **{
        f"temporal.attention.{ours}": f"temporal_attn.{theirs}_proj"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
    },
}
_LAYOUT = Layout(CLIP_LAYOUT.outside, CLIP_LAYOUT.blocks, {**CLIP_LAYOUT.inside, **_TEMPORAL})
# Where the projector's two products are.
_PROJECTORS = {
    True: ("model.mm_projector.0", "model.mm_projector.2"),
    False: ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
}
# LanguageBind's towers, which the original layout's config does not describe, and those that
# transformers has without a word.
_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}
_ACT = {True: "gelu", False: "quick_gelu"}
_NOTES = {
    True: "windows of {frames} sampled frames, each a clip of its own",
    False: "each frame alone: this layout has no attention between frames",
}


def _preparation(shape: TransformerShape) -> Preparation:
    side = shape.patch * shape.positions
    return Preparation(ImageSize(shape.patch, (side, side), side, "bicubic"), *CLIP_COLOURS)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "original" or "transformers"."""
    frames = 8 if variant == "original" else 0
    shape = TransformerShape(FAMILY, 1024, 24, 16, 4096, 14, 16, 1e-5, frames=frames)
    with torch.device("meta"):
        output = Output("all", (23,), (False,))
        head = FeedForward(1024, 4096, "gelu", out=4096)
        note = _NOTES[bool(frames)].format(frames=frames)
        return VisionTransformer(shape, output, _preparation(shape), RATE, head, 4096, note).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config or tensors are those of one of the layouts; the original one's config says
    that it is a llava."""
    stated = checkpoint.config.get("model_type")
    if stated and stated != "llava":
        return bool(stated == FAMILY)
    return any(_tower(checkpoint, tower) for tower in TOWERS)


def _tower(checkpoint: Checkpoint, tower: str) -> tuple[str, bool] | None:
    """What stands before a tower's names, and whether that is the original layout; None where there
    is no such tower."""
    known = [(f"model.{tower}_tower.{tower}_tower.", True)]
    for model in ("", "model."):
        known += [(f"{model}{tower}_tower.{part}", False) for part in ("vision_model.", "")]
    return next((found for found in known if found[0] + _PATCHES in checkpoint), None)


def _shape_of(checkpoint: Checkpoint, prefix: str, original: bool) -> TransformerShape:
    """Raises CheckpointError where config and tensors do not give a network."""
    config = vision_config(checkpoint)
    kind = config.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "LanguageBindVideo", "LanguageBindImage"):
        raise CheckpointError(
            f"{checkpoint.name}: its vision_config has model_type {kind!r}; wanted a "
            "clip_vision_model"
        )
    config = {"hidden_act": _ACT[original], **(config or _LARGE)}
    shape = clip_shape(checkpoint, config, "clip")
    frames = 0
    if (name := prefix + CLIP_LAYOUT.blocks.format(0) + "temporal_embedding") in checkpoint:
        found = checkpoint.shape(name)
        if len(found) != 3 or not 2 <= found[1] <= MAX_FRAMES:
            raise CheckpointError(
                f"{checkpoint.name}: {name} has shape {found}; wanted (1, 2 to {MAX_FRAMES} "
                f"frames, {shape.width})"
            )
        frames = found[1]
    return replace(shape, family=FAMILY, frames=frames)


def _published_output(
    checkpoint: Checkpoint, tower: str, original: bool, count: int
) -> tuple[Any, str]:
    """The hidden states that the language model reads, of a tower of `count` layers, and which of
    their tokens.

    Raises CheckpointError where the config asks for another selection.
    """
    config = checkpoint.config
    if original:
        layers = config.get("mm_vision_select_layer", -2)
        said = config.get("mm_vision_select_feature", "patch")
        known = {"patch": "patches", "cls_patch": "tokens"}
    else:
        layers = config.get("vision_feature_layer", -2)
        said = config.get("vision_feature_select_strategy", "default")
        known = {"default": "patches", "full": "tokens"}
    numbers = layers if isinstance(layers, list) else [layers]
    right = all(type(n) is int and -count - 1 <= n <= count for n in numbers)
    if not isinstance(said, str) or said not in known or not numbers or not right:
        raise CheckpointError(
            f"{checkpoint.name}: its config.json selects the hidden states {layers!r}, and of them "
            f"{said!r}; wanted whole numbers up to {count}, and one of {', '.join(known)}"
        )
    # Of videos all tokens are read, whatever is said of images.
    return numbers, "tokens" if tower == "video" else known[said]


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    tower: str = "video",
    output: Any = None,
    projector: Any = True,
    layer: Any = None,
    layers: Any = None,
    rate: Any = RATE,
) -> tuple[VisionTransformer, None]:
    """The encoder; there is no decoder. All options also come as strings.

    tower   "video" or "image": which of the two; both have the same projector.
    output  "tokens", a row of the class token and all patches, or "patches", a grid of these; None
            for what the published model reads: tokens of videos, patches of images.
    projector  Whether they go through the projector, to the language model's width.
    layer, layers  Without the projector, the hidden states that come out, their channels one below
            the other: 9, "6,9", [0, -2] or "all"; None for those that the projector takes, which
            is -2. Layers beyond the last one wanted are neither loaded nor computed.
    rate    Images a second, for times alone.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes features; it has no decoder")
    tower = options.choice("tower", tower, TOWERS)
    found = _tower(checkpoint, tower)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is the first layer of "
            f"the tower ({tower}_tower.vision_model.{_PATCHES}, or the original names)"
        )
    prefix, original = found
    shape = _shape_of(checkpoint, prefix, original)
    numbers, published = _published_output(checkpoint, tower, original, shape.layers)
    projected = options.flag("projector", projector)
    if projected and not layer is layers is None:
        raise UsageError(
            "the projector takes the hidden states that the config names; layer and layers are for "
            "projector=false"
        )
    taken = numbers if layer is layers is None else layers
    wanted = hidden_states(layer, taken if layer is None else None, shape.layers)
    kind = published if output is None else options.choice("output", output, OUTPUTS)
    others: dict[str, Origin] = {}
    note = _NOTES[bool(shape.frames)].format(frames=shape.frames)
    with torch.device("meta"):
        head, channels = None, 0
        if projected:
            width = shape.width * len(wanted)
            head, channels = _projector(checkpoint, width, original, others)
        encoder = VisionTransformer(
            shape,
            Output("all" if kind == "tokens" else kind, wanted, (False,) * len(wanted)),
            published_preparation(checkpoint, _preparation(shape)),
            rate,
            head,
            channels,
            note,
        )
    fill(encoder, encoder.origins(_LAYOUT, prefix, others), checkpoint)
    check_used(checkpoint, _LAYOUT, prefix, encoder)
    log.info(
        "%s: the %s tower in %s layout, %s",
        *(checkpoint.name, tower, "the original" if original else "transformers'", note),
    )
    return encoder, None


def _projector(
    checkpoint: Checkpoint, width: int, original: bool, origins: dict[str, Origin]
) -> tuple[nn.Module, int]:
    """The projector, and its channels. Raises CheckpointError.

    origins  Gets where its parameters come from.
    """
    config: Mapping[str, Any] = checkpoint.config
    if original and (kind := config.get("mm_projector_type", "mlp2x_gelu")) != "mlp2x_gelu":
        raise CheckpointError(
            f"{checkpoint.name}: mm_projector_type is {kind!r}; wanted mlp2x_gelu, or "
            "projector=false"
        )
    act = known_act(checkpoint, "gelu" if original else config.get("projector_hidden_act", "gelu"))
    biased = original or config.get("multimodal_projector_bias", True)
    prefix = "" if original or f"{_PROJECTORS[False][0]}.weight" in checkpoint else "model."
    names = [prefix + name for name in _PROJECTORS[original]]
    shape = checkpoint.shape(f"{names[0]}.weight")
    if len(shape) != 2 or not shape[0]:
        raise CheckpointError(
            f"{checkpoint.name}: {names[0]}.weight has shape {shape}; wanted (channels, {width})"
        )
    for ours, theirs in zip(("fc1", "fc2"), names, strict=True):
        for end in ("weight", "bias"):
            origins[f"head.{ours}.{end}"] = f"{theirs}.{end}"
    head = FeedForward(width, shape[0], act, biased=("fc1", "fc2") if biased else (), out=shape[0])
    return head, shape[0]
