"""Pages: drawings below each other, and the names in their titles."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from streamenc.cli.look.page import BETWEEN_PIXELS, PAPER, short_name, write_page
from streamenc.errors import OutputError


def test_drawings_stand_below_each_other(tmp_path: Path) -> None:
    path = tmp_path / "page.image"
    drawings = [Image.new("RGB", size, c) for size, c in (((30, 20), "red"), ((50, 10), "blue"))]
    write_page(drawings, path)
    with Image.open(path) as page:
        assert page.format == "PNG" and page.size == (50, 30 + BETWEEN_PIXELS)
        assert page.getpixel((29, 19)) == (255, 0, 0) and page.getpixel((30, 19)) == PAPER
        assert page.getpixel((49, page.height - 1)) == (0, 0, 255)


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_page([Image.new("RGB", (8, 8))], tmp_path / "no" / "page.png")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("kyutai/mimi", "kyutai/mimi"),
        ("nano", "nano"),
        ("", ""),
        ("/home/me/models/mimi-tiny/", "mimi-tiny"),
        ("./weights.safetensors", "weights.safetensors"),
        ("~/mimi", "mimi"),
    ],
)
def test_a_path_is_named_by_its_end(model: str, name: str) -> None:
    assert short_name(model) == name
