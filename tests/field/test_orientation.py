"""Which way up pictures and films come: as Pillow and FFmpeg's own programs show them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from streamenc import io
from streamenc.graph.node import BlockingSource
from tests.support.clips import write_clip
from tests.support.piped import standard_input
from tests.support.web import folder, web

EIGHT = range(1, 9)


def shown(path: Path | str, **options: Any) -> tuple[np.ndarray[Any, Any], BlockingSource]:
    """The first image, (height, width, 3), and the source that it came from."""
    source = io.source(str(path), kind="video", **options)
    assert isinstance(source, BlockingSource)
    try:
        source.open_blocking()
        frame = source.read()
        assert frame is not None
        return frame.data[:, 0].transpose(1, 2, 0), source
    finally:
        source.close_blocking()


def corners() -> Image.Image:
    """Four colours, one for each corner: every one of the eight looks different."""
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:24, :40], pixels[:24, 40:] = (250, 10, 10), (10, 250, 10)
    pixels[24:, :40], pixels[24:, 40:] = (10, 10, 250), (240, 240, 10)
    return Image.fromarray(pixels)


def check(path: Path | str, wanted: Image.Image) -> None:
    """Equal to `wanted` where no edge is near."""
    got, source = shown(path)
    assert not source.remarks
    assert got.shape == (wanted.height, wanted.width, 3)
    rows, columns = [n // 4 for n in (wanted.height, wanted.width)]
    for y in (rows, 3 * rows):
        for x in (columns, 3 * columns):
            assert np.abs(got[y, x].astype(int) - wanted.getpixel((x, y))).max() <= 12, (y, x)


@pytest.mark.parametrize("number", EIGHT)
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp", "avif"])
def test_pictures_are_upright_as_pillow_shows_them(
    tmp_path: Path, ending: str, number: int
) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "tiff":
        corners().save(path, tiffinfo={0x112: number})
    else:
        exif = Image.Exif()
        exif[0x112] = number
        corners().save(path, exif=exif)
    with Image.open(path) as picture:
        check(path, ImageOps.exif_transpose(picture).convert("RGB"))


@pytest.mark.parametrize("number", [2, 4, 7])
@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_pictures_from_servers_and_pipes_are_upright_too(
    tmp_path: Path, ending: str, number: int
) -> None:
    exif = Image.Exif()
    exif[0x112] = number
    path = tmp_path / f"a.{ending}"
    corners().save(path, exif=exif)
    with Image.open(path) as picture:
        wanted = ImageOps.exif_transpose(picture).convert("RGB")
    with web(folder(tmp_path)) as server:
        check(f"{server.address}/{path.name}", wanted)
    with standard_input(path.read_bytes()):
        check("-", wanted)


@pytest.mark.parametrize(
    "exif", [b"garbage", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02a\0\0\0\0\0\0\0"]
)
def test_an_animation_with_damaged_exif_is_shown_as_stored(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "a.webp"
    corners().save(path, save_all=True, append_images=[corners()], exif=b"Exif\0\0" + exif)
    check(path, corners())


@pytest.mark.parametrize("number", [1, 4, 5, 8])
@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_orientation_in_xmp(tmp_path: Path, ending: str, number: int) -> None:
    path = tmp_path / f"a.{ending}"
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/'
        '22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{number}"/></rdf:RDF></x:xmpmeta>'
    )
    corners().save(path, xmp=xmp.encode())
    with Image.open(path) as picture:
        check(path, ImageOps.exif_transpose(picture).convert("RGB"))


@pytest.mark.parametrize("number", [2, 7])
def test_all_pictures_of_an_animation_are_upright(tmp_path: Path, number: int) -> None:
    exif = Image.Exif()
    exif[0x112] = number
    path = tmp_path / "a.webp"
    corners().save(path, save_all=True, append_images=[corners()] * 2, exif=exif)
    with Image.open(path) as picture:
        check(path, ImageOps.exif_transpose(picture).convert("RGB"))


@pytest.mark.parametrize("number", EIGHT)
def test_heic_is_upright(tmp_path: Path, number: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x112] = number
    file = pillow_heif.from_bytes("RGB", corners().size, corners().tobytes())
    file[0].info["exif"] = exif.tobytes()  # written as the boxes irot and imir as well
    path = tmp_path / "a.heic"
    file.save(path)
    picture = corners()
    picture.getexif()[0x112] = number
    check(path, ImageOps.exif_transpose(picture))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [{}, {"hflip": True}, {"vflip": True}], ids=str)
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_films_of_mirrored_and_turned_cameras(
    tmp_path: Path, name: str, degrees: int, flip: dict[str, bool]
) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=80, height=48, pix_fmt="yuv420p")
        stream.set_display_rotation(degrees, **flip)
        image = av.VideoFrame.from_image(corners())
        container.mux(stream.encode(image) + stream.encode(None))
    with av.open(str(path)) as container:
        matrix = next(container.decode(video=0)).side_data.get("DISPLAYMATRIX")
        bytes_of = bytes(matrix) if matrix is not None else struct.pack("=5i", 1, 0, 0, 0, 1)
    a, b, _, c, d = (int(np.sign(n)) for n in struct.unpack("=5i", bytes_of[:20]))
    # Where each pixel goes: (x, y) -> (a x + c y, b x + d y), moved back into view.
    stored = np.asarray(corners())
    height, width = stored.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    wanted = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    wanted[to_y, to_x] = stored
    check(path, Image.fromarray(wanted))


def test_a_matrix_between_two_quarters_is_said(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", count=2)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"tkhd") + 44
    tilt = [round(n * 65536) for n in (np.cos(0.5), np.sin(0.5), 0, -np.sin(0.5), np.cos(0.5))]
    raw[at : at + 20] = struct.pack(">5i", *tilt)
    path.write_bytes(raw)
    got, source = shown(path)
    assert got.shape == (112, 192, 3)
    assert "turned to the nearest" in " ".join(source.remarks)
