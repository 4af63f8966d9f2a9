"""Models of sound of every kind: BEATs, and SALMONN's ears."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support import hearing
from tests.support.zoo.row import Promise, Row


def save_beats(folder: Path) -> None:
    hearing.save_beats(folder / "BEATs.pt")


def save_qformer(folder: Path) -> None:
    """Two vectors for each window of 17 frames."""
    tensors = hearing.salmonn_tensors(10, 6, queries=2)
    torch.save({"model": tensors}, folder / "salmonn_v1.pth")


ROWS = [
    Row("beats", "beats", save_beats, [(10480, 10240, 8, 8, 240, 0)], options={"window_ms": 640}),
    Row(
        "beats-overlapping",
        "beats",
        save_beats,
        [(10480, 5120, 4, 4, 5360, 0)],
        options={"window_ms": 960, "hop_ms": 320, "ahead_ms": 320, "layers": "0,2"},
    ),
    Row("salmonn", "salmonn", hearing.save_salmonn, [(19200, 19200, 3, 3, 0, 0)]),
    Row(
        "salmonn-qformer",
        "salmonn",
        save_qformer,
        [(17, 17, 2, 2, 0, 0)],
        options={"inputs": "features"},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "lpepino/beats_ckpts/BEATs_iter3_plus_AS2M.pt": (158960, 158720, 496, 496, 240, 0),
    "tsinghua-ee/SALMONN": (480_000, 480_000, 88, 88, 0, 0),
    "tsinghua-ee/SALMONN-7B": (480_000, 480_000, 88, 88, 0, 0),
}
FIELDS = {
    "lpepino/beats_ckpts/BEATs_iter3_plus_AS2M.pt": 158960,
    "tsinghua-ee/SALMONN": 480_000,
    "tsinghua-ee/SALMONN-7B": 480_000,
}
ASKED = [("beats", {"window_ms": 960}), ("salmonn", {"second_per_window": 0.2})]
