"""Encoders of streaming speech recognisers."""

from __future__ import annotations

from pathlib import Path

from tests.support import recognisers
from tests.support.zoo.row import Config, Promise, Row, other


def save_moonshine(folder: Path) -> None:
    """The encoder alone, as transformers saves it."""
    recognisers.moonshine().model.encoder.save_pretrained(folder)


def moonshine_heads(config: Config) -> None:
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4}


ROWS = [
    Row("moonshine", "moonshine_streaming", save_moonshine, [(104, 32, 1, 1, 72, 0)]),
    Row(
        "moonshine-inclusive",
        "moonshine_streaming",
        save_moonshine,
        [(168, 32, 1, 1, 136, 0)],
        options={"bounds": "inclusive"},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "UsefulSensors/moonshine-streaming-tiny": (3920, 320, 1, 1, 3600, 0),
    "UsefulSensors/moonshine-streaming-small": (3920, 320, 1, 1, 3600, 0),
    "UsefulSensors/moonshine-streaming-medium": (3920, 320, 1, 1, 3600, 0),
}
FIELDS = {
    "UsefulSensors/moonshine-streaming-tiny": 33680,
    "UsefulSensors/moonshine-streaming-small": 52880,
    "UsefulSensors/moonshine-streaming-medium": 72080,
}
CONFIGURED = [
    ("moonshine", moonshine_heads),
    ("moonshine", other("sliding_windows", [[5, 2], [4, 0], [6, 3]])),
]
ASKED = [("moonshine", {"bounds": "inclusive"})]
