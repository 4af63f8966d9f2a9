"""A contact sheet of encoded pictures: original, reconstruction and code map, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streamenc.errors import OutputError
from streamenc.frames import StreamInfo

Pixels = np.ndarray[Any, Any]  # uint8 (height, width, 3)

CELL_HEIGHT_PIXELS = 216
MAX_CELL_WIDTH_PIXELS = 480
MARGIN_PIXELS = 16
CAPTION_PIXELS = 24
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (130, 130, 136)


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
        """Of the reconstruction, where both pictures have the same size; endless where they are
        equal."""
        a, b = self.original, self.reconstruction
        if a is None or b is None or a.shape != b.shape:
            return None
        error = np.square(a.astype(np.float64) - b).mean()
        return 10 * math.log10(255**2 / error) if error else math.inf


def draw_sheet(info: StreamInfo, moments: Sequence[Moment], path: Path) -> None:
    """Writes the sheet as a PNG. Raises OutputError where `path` cannot be written."""
    maps = list(_maps(info, moments))
    rows, columns = info.shape[2], info.shape[3]
    what = "codes" if info.kind == "codes" else "latents, their first three components"
    captions = {"original": "original", "reconstruction": "reconstruction"}
    shown = [n for n in captions if any(getattr(m, n) is not None for m in moments)]
    widths = [_width([getattr(m, name) for m in moments]) for name in shown]
    widths.append(_width(maps))
    left = 84
    width = left + sum(widths) + MARGIN_PIXELS * (len(widths) + 1)
    top = 72
    row_height = CELL_HEIGHT_PIXELS + CAPTION_PIXELS + 4
    sheet = Image.new("RGB", (max(width, 420), top + row_height * len(moments) + 8), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size=size) for size in (18, 14))
    title = f"{info.model or info.kind}, {rows} x {columns} {info.kind}, {float(info.rate):g}/s"
    pen.text((MARGIN_PIXELS, 14), title, INK, large)
    x = left + MARGIN_PIXELS
    for caption, cell in zip([captions[name] for name in shown] + [what], widths, strict=True):
        pen.text((x, 46), caption, FAINT, small)
        x += cell + MARGIN_PIXELS
    for index, (moment, code_map) in enumerate(zip(moments, maps, strict=True)):
        y = top + index * row_height
        pen.text((MARGIN_PIXELS, y), f"{moment.seconds:.2f} s", INK, small)
        x = left + MARGIN_PIXELS
        for name, cell in zip([*shown, ""], widths, strict=True):
            picture = getattr(moment, name) if name else code_map
            if picture is not None:
                sheet.paste(_scaled(picture, cell, smooth=bool(name)), (x, y))
            db = moment.psnr_db if name == "reconstruction" else None
            if db is not None:
                words = f"PSNR {db:.1f} dB" if math.isfinite(db) else "equal"
                pen.text((x, y + CELL_HEIGHT_PIXELS + 3), words, FAINT, small)
            x += cell + MARGIN_PIXELS
    try:
        sheet.save(path, format="png")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


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
    values = values - values.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(values @ values.T)
    parts = vectors[:, ::-1][:, :3].T @ values
    if len(parts) < 3:
        parts = np.concatenate([parts] * 3)[:3]
    low, high = np.percentile(parts, (1, 99), axis=1, keepdims=True)
    scaled = (parts - low) / np.maximum(high - low, 1e-12)
    colours: np.ndarray[Any, Any] = (255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return colours


def _width(pictures: Sequence[Pixels | None]) -> int:
    """Of a column: the widest of its pictures at a row's height."""
    ratios = [p.shape[1] / p.shape[0] for p in pictures if p is not None]
    return min(MAX_CELL_WIDTH_PIXELS, round(CELL_HEIGHT_PIXELS * max(ratios, default=1)))


def _scaled(picture: Pixels, width: int, *, smooth: bool) -> Image.Image:
    height = min(CELL_HEIGHT_PIXELS, round(width * picture.shape[0] / picture.shape[1]))
    size = (max(1, round(height * picture.shape[1] / picture.shape[0])), max(1, height))
    # Cells of a code map have edges.
    way = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(picture).resize(size, way)
