"""The contact sheet: what stands where, and figures that can be checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamenc.cli.look.contactsheet import CELL_HEIGHT_PIXELS, Moment, _components, draw_sheet
from streamenc.graph.frames import StreamInfo

CODES = StreamInfo(
    "codes", Fraction(1, 25), Fraction(25, 8), (1, None, 4, 6), "uint16", "dv", 64_000
)
RED = np.broadcast_to(np.array([255, 0, 0], np.uint8), (32, 48, 3))


def codes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64_000, (1, 4, 6)).astype(np.uint16)


def colours_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        return {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}


def test_psnr() -> None:
    moment = Moment(0.0, codes(0), RED, RED.copy())
    assert moment.psnr_db == math.inf
    moment.reconstruction = np.where(RED == 255, 235, RED).astype(np.uint8)
    assert moment.psnr_db == pytest.approx(10 * math.log10(255**2 * 3 / 400))
    moment.reconstruction = RED[:16]
    assert moment.psnr_db is None and Moment(0.0, codes(0)).psnr_db is None


def test_each_moment_has_a_row_with_all_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    heights = []
    for count in (1, 3):
        draw_sheet(CODES, [Moment(float(n), codes(n), RED, RED) for n in range(count)]).save(path)
        with Image.open(path) as sheet:
            heights.append(sheet.height)
            width = sheet.width
    assert heights[1] - heights[0] >= 2 * CELL_HEIGHT_PIXELS
    assert (255, 0, 0) in colours_of(path)
    draw_sheet(CODES, [Moment(0.0, codes(0))]).save(path)
    with Image.open(path) as sheet:
        assert sheet.width < width
    assert (255, 0, 0) not in colours_of(path)
    # A map of 24 entries has about as many colours, beside paper and letters in shades of grey.
    vivid = {c for c in colours_of(path) if max(c) - min(c) > 40}
    assert 20 <= len(vivid) <= 24


def test_the_same_entry_has_the_same_colour_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    same = np.full((1, 4, 6), 777, np.uint16)
    draw_sheet(CODES, [Moment(0.0, same), Moment(1.0, same)]).save(path)
    assert len({c for c in colours_of(path) if max(c) - min(c) > 40}) == 1


@pytest.mark.parametrize("channels", [1, 2, 16])
def test_latents_show_where_they_vary_most(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    info = replace(
        CODES, kind="features", shape=(channels, None, 4, 6), dtype="float32", codebook_size=0
    )
    halves = np.zeros((channels, 4, 6))
    halves[:, :, 3:] = 5.0
    draw_sheet(info, [Moment(0.0, halves)]).save(path)
    assert {(0, 0, 0), (255, 255, 255)} & colours_of(path)
    draw_sheet(info, [Moment(0.0, np.zeros((channels, 4, 6)))]).save(path)


@pytest.mark.parametrize("columns, across", [(0, 3), (1, 1), (2, 2), (9, 5)])
def test_moments_stand_side_by_side(columns: int, across: int, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    draw_sheet(CODES, [Moment(float(n), codes(n)) for n in range(5)], columns=columns).save(path)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet).astype(int)
    vivid = np.ptp(pixels, axis=2) > 40
    for axis, wanted in ((0, across), (1, -(-5 // across))):
        lit = vivid.any(axis).astype(int)
        # Cells in shades of grey leave holes of at most a cell: blocks are what lies further apart.
        starts = np.flatnonzero(lit)
        assert 1 + np.count_nonzero(np.diff(starts) > 26) == pytest.approx(wanted)


def test_words_do_not_run_off_the_sheet(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    draw_sheet(replace(CODES, model="long-" * 30), [Moment(0.0, codes(0)[:, :, :1])]).save(path)
    with Image.open(path) as sheet:
        margin = np.asarray(sheet)[:, -8:]
    assert (margin == margin[0, 0]).all()


def test_latents_that_are_no_numbers_are_shown_as_zero(tmp_path: Path) -> None:
    info = replace(CODES, kind="features", shape=(16, None, 4, 6), codebook_size=0)
    values = np.random.default_rng(0).standard_normal((16, 4, 6))
    values[3, 1, 2], values[5, 0, 0] = np.nan, 0
    draw_sheet(info, [Moment(0.0, values)])


def test_colours_of_latents_do_not_hang_on_a_sign() -> None:
    values = np.random.default_rng(0).standard_normal((8, 24))
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    np.testing.assert_array_equal(_components(values), _components(values + 5))
    assert _components(values @ turned).shape == (3, 24)
