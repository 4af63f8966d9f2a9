"""A contact sheet of encoded images: original, reconstruction and code map, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streamenc.cli.look.page import PAPER, short_name
from streamenc.graph.frames import StreamInfo

Pixels = np.ndarray[Any, Any]  # uint8 (height, width, 3)

CELL_HEIGHT_PIXELS = 216
MAX_CELL_WIDTH_PIXELS = 480
MARGIN_PIXELS = 16
CAPTION_PIXELS = 24
TOP_PIXELS = 72
INK, FAINT = (30, 30, 34), (130, 130, 136)


@dataclass(slots=True)
class Moment:
    """One row of the sheet.

    codes  (channels, rows, columns): entries, or latents.
    original, reconstruction  uint8 (height, width, 3), where they are known.
    """

    seconds: float
    codes: np.ndarray[Any, Any]
    original: Pixels | None = None
    reconstruction: Pixels | None = None

    @property
    def psnr_db(self) -> float | None:
        """Of the reconstruction, where both images have the same size; endless where they are
        equal."""
        a, b = self.original, self.reconstruction
        if a is None or b is None or a.shape != b.shape:
            return None
        error = np.square(a.astype(np.float64) - b).mean()
        return 10 * math.log10(255**2 / error) if error else math.inf


def draw_sheet(
    info: StreamInfo, moments: Sequence[Moment], *, columns: int = 0, heading: str = ""
) -> Image.Image:
    """The sheet.

    columns  How many moments stand side by side, each with its images; 0 for 3 where there are
             codes alone, 2 where one image is beside them, else 1.
    heading  Stands before the title.
    """
    strips = _strips(info, moments)
    columns = min(columns or 4 - len(strips), len(moments))
    rows = -(-len(moments) // columns)
    large, small = (ImageFont.load_default(size=size) for size in (18, 14))
    rows_of, columns_of = info.shape[2:]
    title = f"{heading}{short_name(info.model) or info.kind}, {rows_of} x {columns_of} {info.kind}"
    title = f"{title}, {float(info.rate):.4g}/s"
    labels = [f"{moment.seconds:.2f} s" for moment in moments]
    left = math.ceil(max(small.getlength(label) for label in labels)) + MARGIN_PIXELS
    widths = [max(strip.width, math.ceil(small.getlength(strip.caption))) for strip in strips]
    group = left + sum(widths) + MARGIN_PIXELS * len(widths)
    width = MARGIN_PIXELS + max(columns * group, math.ceil(large.getlength(title)) + MARGIN_PIXELS)
    row_height = max(strip.height for strip in strips) + CAPTION_PIXELS + 4
    sheet = Image.new("RGB", (width, TOP_PIXELS + row_height * rows + 4), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN_PIXELS, 14), title, INK, large)
    for index, moment in enumerate(moments):
        row, column = divmod(index, columns)
        x, y = MARGIN_PIXELS + column * group, TOP_PIXELS + row * row_height
        pen.text((x, y - 2), labels[index], INK, small)
        x += left
        for strip, cell in zip(strips, widths, strict=True):
            if row == 0:
                pen.text((x, y - 26), strip.caption, FAINT, small)
            image = strip.images[index]
            if image is not None:
                sheet.paste(image, (x, y))
                if strip.caption == "reconstruction" and moment.psnr_db is not None:
                    db = moment.psnr_db
                    words = f"PSNR {db:.1f} dB" if math.isfinite(db) else "equal"
                    pen.text((x, y + image.height + 3), words, FAINT, small)
            x += cell + MARGIN_PIXELS
    return sheet


@dataclass(slots=True)
class _Strip:
    """What stands below one heading: an image for each moment, where there is one."""

    caption: str
    images: list[Image.Image | None]

    @property
    def width(self) -> int:
        return max(image.width for image in self.images if image is not None)

    @property
    def height(self) -> int:
        return max(image.height for image in self.images if image is not None)


def _strips(info: StreamInfo, moments: Sequence[Moment]) -> list[_Strip]:
    """The last one is that of the codes; what no moment has is left out."""
    strips = []
    for caption in ("original", "reconstruction"):
        images = [getattr(moment, caption) for moment in moments]
        if any(image is not None for image in images):
            scaled = [None if p is None else _scaled(p, smooth=True) for p in images]
            strips.append(_Strip(caption, scaled))
    caption = "codes" if info.kind == "codes" else "latents, 3 components"
    maps = [_scaled(code_map, smooth=False) for code_map in _maps(info, moments)]
    return [*strips, _Strip(caption, list(maps))]


def _maps(info: StreamInfo, moments: Sequence[Moment]) -> Iterator[Pixels]:
    if info.kind == "codes":
        for moment in moments:
            yield _coloured(moment.codes[0])
        return
    values = np.stack([moment.codes for moment in moments], axis=1).astype(np.float64)
    colours = _components(values.reshape(len(values), -1)).reshape(3, *values.shape[1:])
    for index in range(len(moments)):
        yield np.ascontiguousarray(colours[:, index].transpose(1, 2, 0))


def _coloured(codes: np.ndarray[Any, Any]) -> Pixels:
    """A colour for each entry, the same everywhere; entries side by side get colours far apart."""
    turns = codes.astype(np.float64)[..., None]
    hue = turns * 0.6180339887 % 1
    light = 0.62 + 0.3 * (turns * 0.7548776662 % 1 - 0.5)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3])))
    pixels: Pixels = (255 * np.clip(light * (0.35 + wave), 0, 1)).astype(np.uint8)
    return pixels


def _components(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(channels, points) -> uint8 (3, points): the directions of most variance, as colours."""
    values = np.nan_to_num(values)
    values = values - values.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(values @ values.T)
    main = vectors[:, ::-1][:, :3].T
    # A direction and its opposite are as good: the largest part of each is positive, everywhere.
    heaviest = np.take_along_axis(main, np.abs(main).argmax(axis=1)[:, None], axis=1)
    parts = (main * np.where(heaviest < 0, -1, 1)) @ values
    if len(parts) < 3:
        parts = np.concatenate([parts] * 3)[:3]
    low, high = np.percentile(parts, (1, 99), axis=1, keepdims=True)
    # A direction in which nothing varies but the rounding is not blown up into an image.
    least = max(1e-12, 1e-6 * float((high - low).max()))
    scaled = (parts - low) / np.maximum(high - low, least)
    colours: np.ndarray[Any, Any] = (255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return colours


def _scaled(image: Pixels, *, smooth: bool) -> Image.Image:
    """As high as a row, unless it becomes too wide."""
    height, width = image.shape[:2]
    factor = min(CELL_HEIGHT_PIXELS / height, MAX_CELL_WIDTH_PIXELS / width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    # Cells of a code map have edges.
    way = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(image).resize(size, way)
