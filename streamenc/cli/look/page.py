"""Drawings of several streams, one below the other, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePath

from PIL import Image

from streamenc.io.files.output import write_output

PAPER = (250, 250, 248)
BETWEEN_PIXELS = 24


def write_page(drawings: Sequence[Image.Image], path: Path, overwrite: bool = True) -> None:
    """Raises OutputError where `path` cannot be written."""
    width = max(drawing.width for drawing in drawings)
    height = sum(drawing.height + BETWEEN_PIXELS for drawing in drawings) - BETWEEN_PIXELS
    page, top = Image.new("RGB", (width, height), PAPER), 0
    for drawing in drawings:
        page.paste(drawing, (0, top))
        top += drawing.height + BETWEEN_PIXELS
    content = BytesIO()
    page.save(content, format="png")
    write_output(path, content.getvalue(), overwrite)


def short_name(model: str) -> str:
    """A model's name for a title: of a path to a folder, the folder's own."""
    path = PurePath(model)
    is_path = path.is_absolute() or model.startswith((".", "~"))
    return path.name if is_path and path.name else model
