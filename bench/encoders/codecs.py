"""Mimi and EnCodec, as transformers has them."""

from __future__ import annotations

from pathlib import Path

from bench import weights
from bench.encoders import Encoder


def save_mimi(folder: Path) -> None:
    made = weights.transformers_folder(weights.mimi(folder), weights.MIMI_CONFIG)
    for file in made.iterdir():
        file.rename(folder / file.name)
    (folder / "mimi.safetensors").unlink()


ENCODERS = [
    Encoder("Mimi", "mimi", save_mimi, options={"tail": "transformers"}),
    Encoder("Mimi, decode", "mimi", save_mimi, options={"tail": "transformers"}, part="decoder"),
]
