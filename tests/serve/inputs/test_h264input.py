"""H264Input: access units into a model of images, equal wherever it is taken up again."""

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import InputError, SnapshotError
from streamenc.serve.inputs import replay
from streamenc.serve.limits import Limits
from tests.serve.inputs.compressed import h264_units, pictures
from tests.serve.inputs.packets import again, image_model, made, packed, told
from tests.support.profile import examples

SPEC, ASKED = image_model(unit=16), {"format": "h264"}
UNITS = h264_units(pictures(25, 64, 96))
REORDERED = h264_units(pictures(30, 64, 96), every=12, bframes=2)
OTHERS = [(pts + 20, unit) for pts, unit in h264_units(pictures(8, 32, 128), every=4)]


def packet(unit, known=True, cut=False):
    pts, payload = unit
    return packed(payload, *((3600 * pts, 3600) if known else ()), cut=cut)


def pushed(input, units, known=True):
    return [chunk for unit in units for chunk in input.push(packet(unit, known))]


def reference(units):
    """(3, 1, height, width) of each, by FFmpeg's own conversion."""
    decoder = av.CodecContext.create("h264", "r")
    frames = [f for _, unit in units for f in decoder.decode(av.Packet(unit))]
    frames += decoder.decode(None)
    return [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.mark.parametrize("known", [True, False])
def test_an_image_for_each_unit_at_once(known):
    input = made(SPEC, **ASKED)
    for number, unit in enumerate(UNITS):
        (chunk,) = input.push(packet(unit, known))
        assert (chunk.pts, chunk.duration, chunk.items) == (3600 * number, 3600, 1)
        assert chunk.data.shape == (1, 3, 1, 64, 96) and not chunk.discontinuity
    assert input.flush() == []


def test_the_images_are_those_of_ffmpeg():
    chunks = pushed(made(SPEC, **ASKED), UNITS)
    for chunk, image in zip(chunks, reference(UNITS), strict=True):
        off = np.abs(chunk.data[0, :, 0].transpose(1, 2, 0).astype(int) - image)
        assert off.mean() < 4  # they differ in how they round


def test_images_that_come_in_another_order():
    assert [pts for pts, _ in REORDERED] != sorted(pts for pts, _ in REORDERED)
    input = made(SPEC, **ASKED)
    chunks = pushed(input, REORDERED) + input.flush()
    assert [chunk.pts for chunk in chunks] == [3600 * n for n in range(30)]


@settings(max_examples=examples(40, fast=8), deadline=None)
@given(
    units=st.sampled_from([UNITS, REORDERED, UNITS[:20] + OTHERS]),
    restored=st.sets(st.integers(0, 30), max_size=5),
)
def test_taken_up_anywhere(units, restored):
    input, other = made(SPEC, **ASKED), made(SPEC, **ASKED)
    got, wanted = [], []
    for number, unit in enumerate(units):
        if number in restored:
            input = again(input, SPEC, **ASKED)
        got += input.push(packet(unit))
        wanted += other.push(packet(unit))
    assert told(got + input.flush()) == told(wanted + other.flush())


def test_only_what_came_since_a_key_frame_is_kept(monkeypatch):
    monkeypatch.setattr(replay, "MAX_KEPT_BYTES", sum(len(unit) for _, unit in UNITS[:10]))
    input = made(SPEC, **ASKED)
    pushed(input, UNITS)
    assert input.exact and input.state() is not None


def test_more_than_is_kept(monkeypatch):
    """It goes on with the next key frame."""
    monkeypatch.setattr(replay, "MAX_KEPT_BYTES", 100)
    input = made(SPEC, **ASKED)
    pushed(input, UNITS[:5])
    assert not input.exact
    input = again(input, SPEC, **ASKED)
    assert not input.exact and "not all kept" in input.why
    chunks = pushed(input, UNITS[5:])
    clear = [chunk for chunk in chunks if chunk.pts >= 36_000]
    assert chunks[0].discontinuity and not any(chunk.discontinuity for chunk in clear[1:])
    other = made(SPEC, **ASKED)
    wanted = [chunk for chunk in pushed(other, UNITS) if chunk.pts >= 36_000]
    assert [one[0] for one in told(clear)] == [one[0] for one in told(wanted)]


def test_a_flag_begins_anew():
    input = made(SPEC, **ASKED)
    pushed(input, UNITS[:4])
    with pytest.raises(InputError, match="key frame"):
        input.push(packet(UNITS[5], cut=True))
    (chunk,) = input.push(packet(UNITS[10], cut=True))
    assert chunk.discontinuity and chunk.pts == 36_000


def test_another_size_in_the_middle():
    other = h264_units(pictures(4, 32, 128))
    input = made(SPEC, **ASKED)
    chunks = pushed(input, UNITS[:3]) + pushed(input, other, known=False) + input.flush()
    assert {chunk.data.shape for chunk in chunks} == {(1, 3, 1, 64, 96)}
    assert len(chunks) == 7


def test_larger_images_than_are_taken():
    input = made(SPEC, Limits(max_pixels=64 * 90), **ASKED)
    assert pushed(input, UNITS[:3]) == [] and input.lost == 3


@pytest.mark.parametrize("payload", [b"", b"\0\0\2", b"ftyp", UNITS[1][1][:0]])
def test_what_is_no_access_unit(payload):
    with pytest.raises(InputError, match="Annex B"):
        made(SPEC, **ASKED).check(packed(payload))


def test_what_is_damaged_is_left_out_and_flagged():
    input = made(SPEC, **ASKED)
    units = list(UNITS)
    units[4] = (4, units[4][1][:5] + bytes(40))
    chunks = pushed(input, units)
    assert input.lost >= 1
    flagged = [chunk.pts // 3600 for chunk in chunks if chunk.discontinuity]
    assert flagged and 4 not in [chunk.pts // 3600 for chunk in chunks]


@settings(max_examples=examples(200, fast=40), deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 12), st.integers(3, 400), st.integers(0, 255))),
    restored=st.integers(0, 12),
)
def test_any_damage(damage, restored):
    units = [(pts, bytearray(unit)) for pts, unit in UNITS[:13]]
    for number, at, value in damage:
        units[number][1][at % len(units[number][1])] = value
    input, other = made(SPEC, **ASKED), made(SPEC, **ASKED)
    got, wanted = [], []
    for number, (pts, unit) in enumerate(units):
        if number == restored:
            input = again(input, SPEC, **ASKED)
        for one, chunks in ((input, got), (other, wanted)):
            try:
                chunks += one.push(packet((pts, bytes(unit))))
            except InputError:
                chunks += []
    assert told(got) == told(wanted)


def test_damaged_states():
    input = made(SPEC, **ASKED)
    pushed(input, UNITS[:3])
    blob = input.state()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(blob)
        damaged[rng.integers(len(blob))] = rng.integers(256)
        other = made(SPEC, **ASKED)
        try:
            other.restore(bytes(damaged[: rng.integers(len(blob) // 2, len(blob) + 1)]))
        except SnapshotError:
            continue
        other.flush()
