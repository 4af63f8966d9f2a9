"""Colours: each matrix and range against its own formula, from frames and through files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamenc.io.media.pictures.orientation import Orientation
from streamenc.io.media.pictures.pixels import Form, RgbPixels
from streamenc.io.media.videosource import VideoSource

# Weights of red and blue in the luma: BT.601, BT.709, BT.2020.
WEIGHTS = {601: (0.299, 0.114), 709: (0.2126, 0.0722), 2020: (0.2627, 0.0593)}
# FFmpeg's numbers.
TAGS = {601: 6, 709: 1, 2020: 9, None: 2}
LIMITED, FULL, UNSAID = 1, 2, 0


def rgb(image: Any) -> Any:
    """One image by itself."""
    return RgbPixels(stored(image))(image, stored(image))


def stored(image: Any, **changes: Any) -> Form:
    return Form(image.width, image.height, **changes)


def blocks(low: int, high: int, height: int, width: int, seed: int) -> Any:
    """Even blocks of 16 x 16, so that it does not matter how chroma is scaled."""
    values = np.random.default_rng(seed).integers(low, high, (height // 16, width // 16))
    return np.kron(values, np.ones((16, 16), np.int64)).astype(np.uint8)


def inside(height: int, width: int) -> Any:
    """Where no other block is near."""
    mask = np.zeros((height, width), bool)
    mask.reshape(height // 16, 16, width // 16, 16)[:, 4:12, :, 4:12] = True
    return mask


def planes(height: int, width: int) -> tuple[Any, Any, Any]:
    return (
        blocks(30, 220, height, width, 1),
        blocks(90, 166, height, width, 2),
        blocks(90, 166, height, width, 3),
    )


def formula(luma: Any, cb: Any, cr: Any, matrix: int, full: bool) -> Any:
    """RGB (3, height, width) in [0, 255], as the recommendations define it."""
    red, blue = WEIGHTS[matrix]
    y, u, v = luma.astype(float), cb.astype(float) - 128, cr.astype(float) - 128
    y, u, v = (y / 255, u / 255, v / 255) if full else ((y - 16) / 219, u / 224, v / 224)
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return 255 * np.clip(np.stack([r, g, b]), 0, 1)


def image(height: int, width: int, matrix: int | None, range: int) -> Any:
    frame = av.VideoFrame(width, height, "yuv420p")
    luma, cb, cr = planes(height, width)
    for plane, values in zip(frame.planes, (luma, cb[::2, ::2], cr[::2, ::2]), strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        rows[: plane.height, : plane.width] = values
    frame.colorspace, frame.color_range = TAGS[matrix], range
    return frame


@pytest.mark.parametrize("range", [LIMITED, FULL, UNSAID])
@pytest.mark.parametrize("matrix", [601, 709, 2020, None])
@pytest.mark.parametrize(("height", "width"), [(112, 208), (720, 160)])
def test_colours_are_those_of_the_formula(
    height: int, width: int, matrix: int | None, range: int
) -> None:
    frame = image(height, width, matrix, range)
    data = rgb(frame)
    assert data.shape == (3, 1, height, width)
    meant = matrix or (709 if height >= 720 else 601)
    wanted = formula(*planes(height, width), meant, range == FULL)
    error = (data[:, 0] - wanted)[:, inside(height, width)]
    assert np.abs(error).max() <= 0.51
    assert abs(error.mean()) < 0.05


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
@pytest.mark.parametrize(
    ("matrix", "range"), [(709, LIMITED), (601, FULL), (709, FULL), (601, LIMITED), (None, UNSAID)]
)
def test_tags_come_through_files(tmp_path: Path, name: str, matrix: int | None, range: int) -> None:
    height, width = 112, 208
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, width=width, height=height, pix_fmt="yuv420p",
            options={"qp": "0", "preset": "ultrafast"},
        )  # fmt: skip
        stream.codec_context.colorspace = TAGS[matrix]
        stream.codec_context.color_range = range
        container.mux(stream.encode(image(height, width, matrix, range)) + stream.encode(None))
    source = VideoSource(str(tmp_path / name))
    try:
        source.open_blocking()
        frame = source.read()
    finally:
        source.close_blocking()
    assert frame is not None
    wanted = formula(*planes(height, width), matrix or 601, range == FULL)
    assert np.abs(frame.data[:, 0] - wanted)[:, inside(height, width)].max() <= 0.51


@pytest.mark.parametrize("format", ["rgb24", "bgr0", "gbrp", "bgra"])
def test_rgb_stays_as_it_is(format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (62, 94, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=format)
    data = rgb(frame)
    np.testing.assert_array_equal(data[:, 0].transpose(1, 2, 0), pixels)


def test_ten_bits_become_eight() -> None:
    frame = image(112, 208, 709, LIMITED)
    deep = frame.reformat(format="yuv420p10le")
    deep.colorspace, deep.color_range = TAGS[709], LIMITED
    data = rgb(deep)
    wanted = formula(*planes(112, 208), 709, False)
    assert np.abs(data[:, 0] - wanted)[:, inside(112, 208)].max() <= 1


@pytest.mark.parametrize("format", ["gray", "gray10le", "ya8"])
@pytest.mark.parametrize("range", [LIMITED, FULL, UNSAID])
def test_grey_has_the_levels_of_its_range(format: str, range: int) -> None:
    levels = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
    frame = av.VideoFrame.from_ndarray(levels, "gray").reformat(format=format)
    frame.color_range = range
    data = rgb(frame)
    assert (data[0] == data[1]).all() and (data[1] == data[2]).all()
    wanted = levels if range != LIMITED else np.clip((levels - 16.0) * 255 / 219, 0, 255)
    assert np.abs(data[0, 0] - wanted).max() <= (1.7 if "10" in format else 0.51)


def test_another_size_gets_the_first_one() -> None:
    first, other = image(112, 208, 709, LIMITED), image(224, 416, 709, LIMITED)
    pixels = RgbPixels(stored(first))
    shape = (3, 1, 112, 208)
    assert pixels(other, stored(other)).shape == pixels(first, stored(first)).shape == shape
    assert (pixels.width, pixels.height) == (208, 112)


def test_other_proportions_get_black_beside_them() -> None:
    first = image(112, 208, 709, LIMITED)
    pixels = RgbPixels(stored(first))
    white = av.VideoFrame.from_ndarray(np.full((100, 100, 3), 255, np.uint8), "rgb24")
    data = pixels(white, stored(white))
    assert data.shape == (3, 1, 112, 208) and pixels.within(stored(white)) == (112, 112)
    assert (data[..., 48:160] == 255).all()
    assert not data[..., :48].any() and not data[..., 160:].any()
    turned = stored(first, orientation=Orientation.of_angle(90))
    assert pixels.within(turned) == (60, 112)
    assert not pixels(first, turned)[..., :74].any()


@pytest.mark.parametrize(
    ("aspect", "width"),
    [(Fraction(16, 15), 768), (Fraction(8, 9), 640), (Fraction(1280, 1281), 720)],
)
def test_oblong_pixels_become_square(aspect: Fraction, width: int) -> None:
    levels = np.linspace(0, 255, 720).astype(np.uint8)[None].repeat(32, 0)
    frame = av.VideoFrame.from_ndarray(levels, "gray")
    form = stored(frame, pixel_aspect=aspect)
    data = RgbPixels(form)(frame, form)
    assert data.shape == (3, 1, 32, width)
    assert np.abs(data[0, 0, 0] - np.linspace(0, 255, width)).max() <= 1.2


def test_what_is_transparent_keeps_its_colour_and_is_noticed() -> None:
    pixels = np.full((16, 16, 4), (10, 20, 30, 255), np.uint8)
    rgba = av.VideoFrame.from_ndarray(pixels, "rgba")
    converter = RgbPixels(stored(rgba))
    converter(rgba, stored(rgba))
    assert not converter.transparent
    pixels[3, 3, 3] = 254
    rgba = av.VideoFrame.from_ndarray(pixels, "rgba")
    data = converter(rgba, stored(rgba))
    assert converter.transparent
    np.testing.assert_array_equal(data[:, 0], np.moveaxis(pixels[..., :3], 2, 0))
