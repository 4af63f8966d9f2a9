"""Row: a small model of the zoo, and what tests have to be told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What a model promises of its steps: lead, hop, lead_out, hop_out, delay, limit.
Promise = tuple[int, int, int, int, int, int]
ALONE: Promise = (1, 1, 1, 1, 0, 0)  # each image by itself
Config = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A small model.

    name      What tests print.
    family    As in the registry.
    save      Writes weights to a folder.
    promises  Of the encoder, and of the decoder where there is one.
    """

    name: str
    family: str
    save: Callable[[Path], None] | None
    promises: list[Promise] = field(hash=False)
    load: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    float32_error: float = 1e-5

    @property
    def sides(self) -> tuple[str, ...]:
        return ("encoder", "decoder")[: len(self.promises)]


def other(key: str, value: Any) -> Callable[[Config], None]:
    """Another value in a config; the weights stay as they are."""

    def change(config: Config) -> None:
        assert config[key] != value
        config[key] = value

    return change
