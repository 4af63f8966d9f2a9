"""What an encoder costs, live and at once, beside the published implementation over the whole clip.

Each module of this folder has `ENCODERS`, a list of `Encoder`; `python -m bench encoders` measures
all of them, `--only NAME` those whose name has NAME in it. The published implementation is that of
`streamenc verify`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Encoder:
    """A model of the published size with random weights, or one side of it.

    name       What the table is called: "DAC 44 kHz".
    family     As in streamenc.models.families.
    save       Writes the weights to a folder, in the published layout, without any download.
    seconds    Of sound or video, or number of images or texts, in the clip.
    options    As for `streamenc.load`.
    part       Which side is measured; a decoder on what the encoder makes of the clip.
    size       Of images and video, (height, width); None for what the model says.
    """

    name: str
    family: str
    save: Callable[[Path], None]
    seconds: float = 4.0
    options: dict[str, Any] = field(default_factory=dict)
    part: Literal["encoder", "decoder"] = "encoder"
    size: tuple[int, int] | None = None


def found(only: str = "") -> list[Encoder]:
    """Those whose name has `only` in it, in the order of their modules."""
    modules = [
        importlib.import_module(f"{__name__}.{module.name}")
        for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
    ]
    encoders: list[Encoder] = [encoder for module in modules for encoder in module.ENCODERS]
    return [encoder for encoder in encoders if only.lower() in encoder.name.lower()]
