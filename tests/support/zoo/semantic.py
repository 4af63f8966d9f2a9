"""Models whose attention knows distances, and codecs that hear with them: WavLM."""

from __future__ import annotations

from typing import Any

from tests.support import references
from tests.support.zoo.row import Promise, Row, other
from tests.support.zoo.sound import CHUNKED, save_speech

ROWS = [
    Row("wavlm", "wavlm", save_speech("wavlm"), [(90, 80, 4, 4, 10, 0)], options=CHUNKED),
    Row(
        "wavlm-stable",
        "wavlm",
        save_speech("wavlm", **references.STABLE),
        [(250, 80, 4, 4, 170, 0)],
        options={**CHUNKED, "ahead": 2, "layers": [0, 3], "norm_seconds": 0},
    ),
    Row(
        "wavlm-sliding",
        "wavlm",
        save_speech("wavlm"),
        [(410, 80, 16, 4, 330, 0)],
        options={"mode": "sliding", "window_ms": 25, "hop_ms": 5, "ahead_ms": 5},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "microsoft/wavlm-base-plus": (5200, 5120, 16, 16, 80, 0),
    "microsoft/wavlm-large": (5200, 5120, 16, 16, 80, 0),
}
CONFIGURED = [
    ("wavlm", other("layer_norm_eps", 1e-6)),
    ("wavlm", other("max_bucket_distance", 13)),
    ("wavlm-sliding", other("max_bucket_distance", 13)),
]
ASKED: list[tuple[str, dict[str, Any]]] = [("wavlm", {"left": 2})]
