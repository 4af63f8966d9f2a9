"""Drawings of several streams, one below the other, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from PIL import Image

from streamenc.errors import OutputError

PAPER = (250, 250, 248)
BETWEEN_PIXELS = 24


def write_page(drawings: Sequence[Image.Image], path: Path) -> None:
    """Raises OutputError where `path` cannot be written."""
    width = max(drawing.width for drawing in drawings)
    height = sum(drawing.height + BETWEEN_PIXELS for drawing in drawings) - BETWEEN_PIXELS
    page, top = Image.new("RGB", (width, height), PAPER), 0
    for drawing in drawings:
        page.paste(drawing, (0, top))
        top += drawing.height + BETWEEN_PIXELS
    try:
        page.save(path, format="png")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def short_name(model: str) -> str:
    """A model's name for a title: of a path to a folder, the folder's own."""
    path = PurePath(model)
    is_path = path.is_absolute() or model.startswith((".", "~"))
    return path.name if is_path and path.name else model
