"""ImageInput: single images into a model, of whatever size and kind they come."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.fit import Fit
from streamenc.serve.inputs.inputbase import TICK
from streamenc.serve.limits import Limits
from tests.serve.inputs.packets import again, array, image_model, made, packed, told
from tests.support.profile import examples

RNG = np.random.default_rng(5)


def pixels(height, width):
    """(height, width, 3)"""
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, format="PNG", **options):
    file = BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


def fitted(image, **wanted):
    """(height, width, 3) -> (3, 1, height, width), as Fit makes it."""
    planar = np.ascontiguousarray(image.transpose(2, 0, 1)[:, None])
    fit = Fit(filter="bilinear", **wanted)
    fit.open(StreamInfo("video", TICK, 25, (3, None, *planar.shape[2:]), "uint8"))
    return next(iter(fit.push(Frame(planar, 0, 0, 0)))).data


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_an_image_of_each_format(format):
    payload = encoded(pixels(40, 60), format)
    decoded = np.asarray(Image.open(BytesIO(payload)).convert("RGB"))
    (chunk,) = made(image_model((32, 32))).push(packed(payload, 900, 3600))
    assert np.array_equal(chunk.data[0], fitted(decoded, size=(32, 32), how="stretch"))
    assert (chunk.items, chunk.pts, chunk.duration) == (1, 900, 3600)
    assert chunk.data.dtype == np.uint8 and not chunk.discontinuity


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1"])
def test_other_colours_of_png(mode):
    image = Image.fromarray(pixels(32, 32))
    file = BytesIO()
    if mode == "I;16":
        Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(file, "PNG")
    else:
        image.convert(mode).save(file, "PNG")
    (chunk,) = made(image_model(unit=16)).push(packed(file.getvalue()))
    assert chunk.data.shape == (1, 3, 1, 32, 32)


def test_an_image_is_turned_as_it_says():
    image = pixels(32, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned with the clock
    (chunk,) = made(image_model()).push(packed(encoded(image, exif=exif)))
    wanted = np.rot90(image, -1).transpose(2, 0, 1)
    assert np.array_equal(chunk.data[0, :, 0], wanted)


def test_pixels_as_they_are():
    images = RNG.integers(0, 256, (3, 4, 32, 48), np.uint8)
    input = made(image_model(unit=16), format="rgb", rate=30.0)
    (chunk,) = input.push(array(images, 0))
    assert np.array_equal(chunk.data[0], images)
    assert (chunk.items, chunk.pts, chunk.duration) == (4, 0, 12_000)


def test_size_that_was_asked_for():
    image = pixels(50, 40)
    input = made(image_model(unit=16), size="64x32")
    (chunk,) = input.push(packed(encoded(image)))
    assert np.array_equal(chunk.data[0], fitted(image, size=(32, 64), how="crop"))


@pytest.mark.parametrize(
    ("size", "model"), [("33x32", {"unit": 16}), ("64x64", {"size": (32, 32)}), ("big", {})]
)
def test_sizes_that_cannot_be(size, model):
    with pytest.raises(UsageError):
        made(image_model(**model), size=size)
    with pytest.raises(UsageError, match="more pixels"):
        made(image_model(), Limits(max_pixels=100), size="64x64")
    with pytest.raises(UsageError, match="images a second"):
        made(image_model(), rate=1e-6)


def test_another_size_is_brought_to_the_first_and_flagged():
    input = made(image_model(unit=16))
    images = [pixels(32, 48), pixels(32, 48), pixels(70, 41), pixels(70, 41)]
    chunks = [input.push(packed(encoded(image)))[0] for image in images]
    assert [chunk.discontinuity for chunk in chunks] == [False, False, True, False]
    assert {chunk.data.shape for chunk in chunks} == {(1, 3, 1, 32, 48)}
    assert np.array_equal(chunks[2].data[0], fitted(images[2], size=(32, 48), how="crop"))


def test_times_that_are_counted_where_none_are_known():
    input = made(image_model(), rate=30.0)
    payload = encoded(pixels(8, 8))
    known = [(0, 0), (0, 0), (9000, 0), (0, 0), (20_000, 1500), (0, 0), (0, 0)]
    got = [input.push(packed(payload, *times))[0] for times in known]
    assert [(chunk.pts, chunk.duration) for chunk in got] == [
        (0, 3000), (3000, 3000), (9000, 3000), (12_000, 3000),
        (20_000, 1500), (21_500, 3000), (24_500, 3000),
    ]  # fmt: skip
    assert input.next_pts == 27_500


def test_counted_times_never_drift():
    input = made(image_model(), rate=29.97)
    payload = encoded(pixels(2, 2))
    ends = []
    for _ in range(300):
        (chunk,) = input.push(packed(payload))
        ends.append(chunk.pts + chunk.duration)
    assert ends[-1] == round(300 * 90_000 / 29.97)
    assert {b - a for a, b in zip(ends[:-1], ends[1:], strict=True)} == {3003, 3004}


def test_where_time_runs_back_a_new_stream_begins():
    input = made(image_model())
    payload = encoded(pixels(8, 8))
    times = [90_000, 90_000, 80_000, 81_000]
    chunks = [input.push(packed(payload, pts))[0] for pts in times]
    assert [chunk.pts for chunk in chunks] == times
    assert [chunk.discontinuity for chunk in chunks] == [False, False, True, False]
    (chunk,) = input.push(packed(payload, 99_000, cut=True))
    assert chunk.discontinuity and chunk.pts == 99_000
    input.flush()
    (chunk,) = input.push(packed(payload, 5))
    assert chunk.pts == 5 and not chunk.discontinuity


@settings(max_examples=examples(40, fast=10), deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(8, 40), st.integers(8, 40)), min_size=1, max_size=8),
    restored=st.sets(st.integers(0, 7)),
)
def test_taken_up_anywhere(sizes, restored):
    spec = image_model(unit=8)
    input, other = made(spec), made(spec)
    got, wanted = [], []
    for number, (height, width) in enumerate(sizes):
        if number in restored:
            input = again(input, spec)
        packet = packed(encoded(pixels(height, width)))
        got += input.push(packet)
        wanted += other.push(packet)
    assert told(got) == told(wanted)


def bomb(width, height):
    """A PNG that says it is large, of few bytes."""
    rows = zlib.compress(bytes(1000))

    def part(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")


def many_scans():
    progressive = encoded(pixels(64, 64), "JPEG", progressive=True)
    scan = progressive.index(b"\xff\xda")
    return progressive[:scan] + progressive[scan:-2] * 20 + progressive[-2:]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no image",
        bomb(60_000, 60_000),
        bomb(4097, 4097),
        bomb(1, 100_000),
        bomb(300, 300),
        many_scans(),
        encoded(pixels(32, 32))[:-40],
        encoded(pixels(32, 32), "JPEG")[:100],
        encoded(pixels(32, 32), "GIF"),
        encoded(pixels(32, 32), "BMP"),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
)
def test_what_is_no_image_changes_nothing(payload):
    input = made(image_model((32, 32)))
    input.push(packed(encoded(pixels(20, 20)), 100))
    before = input.state()
    with pytest.raises(InputError):
        input.push(packed(payload, 200))
    assert input.state() == before


@settings(max_examples=examples(300, fast=60), deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    damage=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=6),
    kept=st.integers(0, 2000),
)
def test_damaged_images(format, damage, kept):
    payload = bytearray(IMAGES[format][:kept])
    for at, value in damage:
        if payload:
            payload[at % len(payload)] = value
    input = made(image_model((32, 32)), Limits(max_pixels=2**16))
    try:
        (chunk,) = input.push(packed(bytes(payload)))
    except InputError:
        return
    assert chunk.data.shape == (1, 3, 1, 32, 32)


IMAGES = {format: encoded(pixels(24, 20), format) for format in ("PNG", "JPEG", "WEBP")}


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((4, 1, 8, 8), np.uint8),
        np.zeros((3, 0, 8, 8), np.uint8),
        np.zeros((3, 1, 0, 8), np.uint8),
        np.zeros((3, 1, 8, 20_000), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((3, 1, 8, 8), np.float32),
        np.zeros((3, 1, 65, 64), np.uint8),
    ],
)
def test_pixels_that_do_not_fit(data):
    input = made(image_model(), Limits(max_pixels=64 * 64), format="rgb")
    with pytest.raises(InputError):
        input.check(array(data))


def test_proportions_that_would_become_gigapixels():
    input = made(image_model((512, 512), shortest=512), Limits(max_pixels=2**18), format="rgb")
    with pytest.raises(InputError, match="other proportions"):
        input.push(array(np.zeros((3, 1, 4, 400), np.uint8)))


def test_damaged_states():
    spec = image_model(unit=8)
    input = made(spec)
    input.push(packed(encoded(pixels(20, 30))))
    blob = input.state()
    for at in range(len(blob)):
        for value in (0, 0x90, 0xC0, 0xFF, blob[at] ^ 1):
            damaged = blob[:at] + bytes([value]) + blob[at + 1 :]
            other = made(spec)
            try:
                other.restore(damaged)
            except SnapshotError:
                continue
            other.push(packed(encoded(pixels(9, 9)), other.next_pts, 1, cut=True))
    for kept in range(len(blob)):
        with pytest.raises(SnapshotError):
            made(spec).restore(blob[:kept])
