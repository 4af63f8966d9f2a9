"""MOSS-Audio-Tokenizer."""

from __future__ import annotations

from tests.support import moss
from tests.support.zoo.row import Config, Promise, Row


def shorter(config: Config) -> None:
    config["encoder_kwargs"][1]["context_duration"] = 0.01


ROWS = [
    Row(
        "moss",
        "moss-audio-tokenizer",
        moss.save,
        [(12, 12, 1, 1, 0, 0), (1, 1, 12, 12, 0, 0)],
    ),
]
LARGE = "OpenMOSS-Team/MOSS-Audio-Tokenizer"
PUBLISHED: dict[str, Promise] = {LARGE: (1920, 1920, 1, 1, 0, 0)}
FIELDS: dict[str, int | None] = {LARGE: 16240320}
CONFIGURED = [("moss", shorter)]
