"""WavLM, and codecs that hear with it or with HuBERT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import references
from tests.support.zoo.row import Config, Promise, Row, other
from tests.support.zoo.sound import CHUNKED, save_speech


def save_xcodec(family: str) -> Callable[[Path], None]:
    return lambda folder: references.xcodec(family).save_pretrained(folder)


def save_higgs(folder: Path) -> None:
    references.higgs(folder)


def layers_eps(config: Config) -> None:
    config["semantic_model_config"]["layer_norm_eps"] = 1e-6


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
    Row(
        "xcodec",
        "xcodec",
        save_xcodec("hubert"),
        [(720, 80, 2, 4, 640, 0), (18, 1, 9, 20, 17, 0)],
        options=CHUNKED,
    ),
    Row(
        "xcodec-sliding",
        "xcodec",
        save_xcodec("wavlm"),
        [(720, 80, 2, 4, 640, 0)],
        options={"mode": "sliding", "window_ms": 25, "hop_ms": 5, "ahead_ms": 5},
    ),
    Row(
        "xcodec-segment",
        "xcodec",
        save_xcodec("hubert"),
        [(160, 160, 8, 8, 0, 0)],
        options={"mode": "segment", "segment_ms": 10},
    ),
    Row(
        "higgs",
        "higgs_audio_v2_tokenizer",
        save_higgs,
        [(23134, 1920, 1, 2, 21214, 0), (10, 1, 142, 960, 9, 0)],
        options={"chunk_ms": 80, "left": 2, "norm_seconds": 0.2},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "microsoft/wavlm-base-plus": (5200, 5120, 16, 16, 80, 0),
    "microsoft/wavlm-large": (5200, 5120, 16, 16, 80, 0),
    "bosonai/higgs-audio-v2-tokenizer": (23134, 7680, 1, 8, 15454, 0),
    "hf-audio/xcodec-hubert-librispeech": (10160, 5120, 4, 16, 5040, 0),
    "hf-audio/xcodec-hubert-general": (10160, 5120, 4, 16, 5040, 0),
    "hf-audio/xcodec-hubert-general-balanced": (10160, 5120, 4, 16, 5040, 0),
    "hf-audio/xcodec-wavlm-mls": (10160, 5120, 4, 16, 5040, 0),
    "hf-audio/xcodec-wavlm-more-data": (10160, 5120, 4, 16, 5040, 0),
}
CONFIGURED = [
    ("wavlm", other("layer_norm_eps", 1e-6)),
    ("wavlm", other("max_bucket_distance", 13)),
    ("wavlm-sliding", other("max_bucket_distance", 13)),
    ("xcodec", layers_eps),
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("wavlm", {"left": 2}),
    ("xcodec", {"left": 2}),
    ("higgs", {"left": 1}),
    ("xcodec-sliding", {"ahead_ms": 10}),
]
