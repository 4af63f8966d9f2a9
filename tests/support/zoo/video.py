"""Models of video: Wan's VAE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.wan_clips import GROUPED, wan
from tests.support.zoo.row import Promise, Row, other


def save_wan(**overrides: Any) -> Callable[[Path], None]:
    return lambda folder: wan(**overrides).save_pretrained(folder)


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
]
PUBLISHED: dict[str, Promise] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": (1, 4, 1, 1, 0, 0),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae": (1, 4, 1, 1, 0, 0),
}
FIELDS = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": 113,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae": 113,
}
CONFIGURED = [("wan-2.2", other("latents_mean", [0.0] * 4))]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("wan", {"rate": 30}),
    ("wan-2.2", {"normalised": False}),
]
