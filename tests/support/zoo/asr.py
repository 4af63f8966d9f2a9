"""Encoders of streaming speech recognisers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import recognisers
from tests.support.zoo.row import Config, Promise, Row, other


def save_moonshine(folder: Path) -> None:
    """The encoder alone, as transformers saves it."""
    recognisers.moonshine().model.encoder.save_pretrained(folder)


def save_voxtral(folder: Path) -> None:
    recognisers.voxtral().save_pretrained(folder)


def save_qwen(folder: Path) -> None:
    """Segments of a second."""
    recognisers.qwen_asr(n_window_infer=100).save_pretrained(folder)


def save_omni(folder: Path) -> None:
    recognisers.qwen_omni(n_window_infer=100).save_pretrained(folder)


def save_nemotron(folder: Path) -> None:
    recognisers.nemotron().save_pretrained(folder)


def moonshine_heads(config: Config) -> None:
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4}


def audio(key: str, value: Any) -> Callable[[Config], None]:
    """Another value in the part of a config that is the encoder's."""
    return lambda config: other(key, value)(config["audio_config"])


ROWS = [
    Row("moonshine", "moonshine_streaming", save_moonshine, [(104, 32, 1, 1, 72, 0)]),
    Row(
        "moonshine-inclusive",
        "moonshine_streaming",
        save_moonshine,
        [(168, 32, 1, 1, 136, 0)],
        options={"bounds": "inclusive"},
    ),
    Row("voxtral", "voxtral_realtime", save_voxtral, [(361, 320, 1, 1, 41, 0)]),
    Row(
        "voxtral-embeddings",
        "voxtral_realtime",
        save_voxtral,
        [(1321, 1280, 1, 1, 41, 0)],
        options={"output": "embeddings"},
    ),
    Row(
        "qwen3-asr",
        "qwen3_asr",
        save_qwen,
        [(16_041, 16_000, 13, 13, 41, 0)],
        options={"output": "embeddings"},
    ),
    Row(
        "qwen3-omni",
        "qwen3_omni_moe",
        save_omni,
        [(16_041, 16_000, 13, 13, 41, 0)],
        options={"log_max": 1.5},
    ),
    Row("nemotron", "nemotron_asr_streaming", save_nemotron, [(2760, 3840, 3, 3, 0, 0)]),
    Row(
        "nemotron-causal",
        "nemotron_asr_streaming",
        save_nemotron,
        [(200, 1280, 1, 1, 0, 0)],
        options={"lookahead": 0},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "UsefulSensors/moonshine-streaming-tiny": (3920, 320, 1, 1, 3600, 0),
    "UsefulSensors/moonshine-streaming-small": (3920, 320, 1, 1, 3600, 0),
    "UsefulSensors/moonshine-streaming-medium": (3920, 320, 1, 1, 3600, 0),
    "mistralai/Voxtral-Mini-4B-Realtime-2602": (361, 320, 1, 1, 41, 0),
    "Qwen/Qwen3-ASR-0.6B": (128_041, 128_000, 104, 104, 41, 0),
    "Qwen/Qwen3-ASR-1.7B": (128_041, 128_000, 104, 104, 41, 0),
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": (128_041, 128_000, 104, 104, 41, 0),
    "nvidia/nemotron-speech-streaming-en-0.6b": (16_840, 17_920, 14, 14, 0, 0),
}
FIELDS = {
    "UsefulSensors/moonshine-streaming-tiny": 33680,
    "UsefulSensors/moonshine-streaming-small": 52880,
    "UsefulSensors/moonshine-streaming-medium": 72080,
    "mistralai/Voxtral-Mini-4B-Realtime-2602": 7670800,
    "nvidia/nemotron-speech-streaming-en-0.6b": 2599761,
}
CONFIGURED = [
    ("moonshine", moonshine_heads),
    ("moonshine", other("sliding_windows", [[5, 2], [4, 0], [6, 3]])),
    ("nemotron", lambda config: other("scale_input", False)(config["encoder_config"])),
    ("nemotron", lambda config: other("sliding_window", 5)(config["encoder_config"])),
    ("qwen3-omni", other("encoder_attention_heads", 3)),
    ("qwen3-omni", other("n_window_infer", 200)),
    ("voxtral", audio("sliding_window", 5)),
    ("voxtral", audio("rms_norm_eps", 1e-6)),
    ("voxtral", audio("rope_parameters", {"rope_type": "default", "rope_theta": 1e4})),
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("moonshine", {"bounds": "inclusive"}),
    ("voxtral", {"output": "embeddings"}),
    ("qwen3-asr", {"log_max": 2}),
    ("nemotron", {"lookahead": 1}),
]
