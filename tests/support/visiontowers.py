"""The published transformers over images, small, with random weights."""

from __future__ import annotations

from typing import Any

from tests.support.references import randomise, transformers

# Positions for 3 x 3 patches.
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
}
_TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 12,
    **{f"{name}_token_id": 0 for name in ("bos", "eos", "pad")},
}
_KINDS = {
    "clip": ("CLIPVision", "CLIPVisionModel"),
    "clip projected": ("CLIPVision", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipVision", "SiglipVisionModel"),
    "siglip2": ("Siglip2Vision", "Siglip2VisionModel"),
    "dinov3": ("DINOv3ViT", "DINOv3ViTModel"),
}


def tower(kind: str, seed: int = 0, **overrides: Any) -> Any:
    """A vision tower by itself, as transformers has it."""
    config, model = _KINDS[kind]
    sizes = {**TOWER, **overrides}
    if kind == "siglip2":
        sizes = {"num_patches": 9, **{k: v for k, v in sizes.items() if k != "image_size"}}
    made = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**sizes)).eval()
    randomise(made, seed)
    return made


def whole(kind: str, seed: int = 0, **overrides: Any) -> Any:
    """CLIP, SigLIP or SigLIP 2 with its text side."""
    name = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}[kind]
    tower_ = {**TOWER, **overrides}
    if kind == "siglip2":
        tower_["num_patches"] = 9
    extra = {"projection_dim": 10} if kind == "clip" else {}
    config = getattr(transformers, f"{name}Config")(
        text_config=_TEXT, vision_config=tower_, **extra
    )
    made = getattr(transformers, f"{name}Model")(config).eval()
    randomise(made, seed)
    return made
