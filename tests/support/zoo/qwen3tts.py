"""Qwen3-TTS-Tokenizer-12Hz."""

from __future__ import annotations

from typing import Any

from tests.support import qwen3tts
from tests.support.zoo.row import Config, Promise, Row


def decoding(key: str, value: Any) -> Any:
    def change(config: Config) -> None:
        assert config["decoder_config"][key] != value
        config["decoder_config"][key] = value

    return change


ROWS = [
    Row(
        "qwen3-tts",
        "qwen3_tts_tokenizer_12hz",
        qwen3tts.save,
        [(24, 24, 1, 1, 0, 0), (1, 1, 24, 24, 0, 0)],
    ),
]
PUBLISHED: dict[str, Promise] = {
    "Qwen/Qwen3-TTS-Tokenizer-12Hz": (1920, 1920, 1, 1, 0, 0),
}
FIELDS = {"Qwen/Qwen3-TTS-Tokenizer-12Hz": 1919480}
CONFIGURED = [
    ("qwen3-tts", decoding("sliding_window", 6)),
    ("qwen3-tts", decoding("rms_norm_eps", 1e-6)),
    ("qwen3-tts", decoding("rope_theta", 5_000)),
]
ASKED: list[tuple[str, dict[str, Any]]] = [("qwen3-tts", {"tail": "moshi"})]
