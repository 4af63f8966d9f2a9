"""Models of video: Wan's VAE, LTX-Video's encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.ltx_clips import NEWER, ltx
from tests.support.wan_clips import GROUPED, wan
from tests.support.zoo.row import Promise, Row, other


def save_wan(**overrides: Any) -> Callable[[Path], None]:
    return lambda folder: wan(**overrides).save_pretrained(folder)


def save_ltx(**overrides: Any) -> Callable[[Path], None]:
    return lambda folder: ltx(**overrides).save_pretrained(folder)


# Two frames and patches of two pixels: with as few layers as show all kinds.
WAN_SMALL = {"dim_mult": [1, 1, 2], "temperal_downsample": [True, True]}
WAN_GROUPED = {**GROUPED, "dim_mult": [2, 2], "temperal_downsample": [True]}
ROWS = [
    Row("wan", "wan", save_wan(**WAN_SMALL), [(1, 4, 1, 1, 0, 0), (1, 1, 1, 4, 0, 0)]),
    Row(
        "wan-2.2",
        "wan",
        save_wan(**WAN_GROUPED),
        [(1, 2, 1, 1, 0, 0), (1, 1, 1, 2, 0, 0)],
        options={"normalised": True},
    ),
    Row("ltx", "ltx", save_ltx(), [(1, 4, 1, 1, 0, 0)]),
    Row("ltx-0.9.5", "ltx", save_ltx(**NEWER), [(1, 4, 1, 1, 0, 0)], options={"normalised": True}),
]
PUBLISHED: dict[str, Promise] = {
    "Lightricks/LTX-Video/vae": (1, 8, 1, 1, 0, 0),
    "Lightricks/LTX-2/vae": (1, 8, 1, 1, 0, 0),
    "Lightricks/LTX-Video-0.9.5/vae": (1, 8, 1, 1, 0, 0),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": (1, 4, 1, 1, 0, 0),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae": (1, 4, 1, 1, 0, 0),
}
FIELDS = {
    "Lightricks/LTX-Video/vae": 369,
    "Lightricks/LTX-2/vae": 226,
    "Lightricks/LTX-Video-0.9.5/vae": 226,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": 113,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae": 113,
}
CONFIGURED = [
    ("wan-2.2", other("latents_mean", [0.0] * 4)),
    ("ltx", other("resnet_norm_eps", 1e-3)),
    ("ltx-0.9.5", other("scaling_factor", 0.5)),
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("wan", {"rate": 30}),
    ("ltx", {"normalised": True}),
    ("wan-2.2", {"normalised": False}),
]
