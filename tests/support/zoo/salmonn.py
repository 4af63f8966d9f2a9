"""Models of sound of every kind: BEATs."""

from __future__ import annotations

from pathlib import Path

from tests.support import hearing
from tests.support.zoo.row import Promise, Row


def save_beats(folder: Path) -> None:
    hearing.save_beats(folder / "BEATs.pt")


ROWS = [
    Row("beats", "beats", save_beats, [(10480, 10240, 8, 8, 240, 0)], options={"window_ms": 640}),
    Row(
        "beats-overlapping",
        "beats",
        save_beats,
        [(10480, 5120, 4, 4, 5360, 0)],
        options={"window_ms": 960, "hop_ms": 320, "ahead_ms": 320, "layers": "0,2"},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "lpepino/beats_ckpts/BEATs_iter3_plus_AS2M.pt": (158960, 158720, 496, 496, 240, 0),
}
FIELDS = {"lpepino/beats_ckpts/BEATs_iter3_plus_AS2M.pt": 158960}
ASKED = [("beats", {"window_ms": 960})]
