"""Models of images that are transformers with a text beside them, or rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import videollava, visiontowers
from tests.support.zoo.row import ALONE, Config, Promise, Row, other


def save_tower(kind: str, **overrides: Any) -> Callable[[Path], None]:
    return lambda folder: visiontowers.tower(kind, **overrides).save_pretrained(folder)


def save_whole(kind: str) -> Callable[[Path], None]:
    return lambda folder: visiontowers.whole(kind).save_pretrained(folder)


def save_video_llava(folder: Path) -> None:
    videollava.video_llava().save_pretrained(folder)


def save_original_video_llava(folder: Path) -> None:
    videollava.Original().save(folder)


def in_tower(key: str, value: Any) -> Callable[[Config], None]:
    """Another value in the config of the vision tower."""

    def change(config: Config) -> None:
        other(key, value)(config["vision_config"])

    return change


ROWS = [
    Row(
        "dinov3",
        "dinov3_vit",
        save_tower("dinov3", num_register_tokens=2, use_gated_mlp=True),
        [ALONE],
        options={"size": "8x12", "output": "patches"},
    ),
    Row("clip", "clip", save_whole("clip"), [ALONE], options={"output": "embedding"}),
    Row(
        "clip-tower",
        "clip_vision_model",
        save_tower("clip"),
        [ALONE],
        options={"size": "any", "output": "patches", "layer": -2},
    ),
    Row("siglip", "siglip", save_whole("siglip"), [ALONE]),
    Row("siglip-tower", "siglip_vision_model", save_tower("siglip"), [ALONE]),
    Row("siglip2", "siglip2", save_whole("siglip2"), [ALONE], options={"size": "8x16"}),
    Row("video-llava", "video_llava", save_video_llava, [ALONE]),
    Row("video-llava-original", "video_llava", save_original_video_llava, [(4, 4, 4, 4, 0, 0)]),
    Row("siglip2-tower", "siglip2_vision_model", save_tower("siglip2"), [ALONE]),
]
PUBLISHED: dict[str, Promise] = dict.fromkeys(
    (
        "facebook/dinov3-vits16-pretrain-lvd1689m",
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "openai/clip-vit-base-patch32",
        "openai/clip-vit-large-patch14",
        "google/siglip2-base-patch16-224",
        "google/siglip2-so400m-patch14-384",
        "google/siglip2-base-patch16-naflex",
    ),
    ALONE,
) | {
    "LanguageBind/Video-LLaVA-7B": (8, 8, 8, 8, 0, 0),
    "LanguageBind/Video-LLaVA-7B-hf": ALONE,
}
FIELDS: dict[str, int | None] = {"LanguageBind/Video-LLaVA-7B": 8}
CONFIGURED = [
    ("dinov3", other("rope_theta", 50.0)),
    ("dinov3", other("hidden_act", "silu")),
    ("clip", in_tower("hidden_act", "gelu")),
    ("clip-tower", other("layer_norm_eps", 1e-6)),
    ("siglip", in_tower("hidden_act", "gelu")),
    ("siglip2", in_tower("num_attention_heads", 4)),
    ("siglip-tower", other("layer_norm_eps", 1e-5)),
    ("video-llava", other("projector_hidden_act", "quick_gelu")),
    ("video-llava-original", in_tower("hidden_act", "quick_gelu")),
    ("siglip2-tower", other("num_attention_heads", 4)),
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("clip", {"size": 8}),
    ("video-llava", {"output": "patches"}),
]
