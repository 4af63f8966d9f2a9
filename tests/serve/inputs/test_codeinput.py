"""Codes, features and texts into a model, checked against what it takes."""

from fractions import Fraction

import msgspec
import numpy as np
import pytest

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.serve.limits import Limits
from streamenc.spec import Port
from tests.serve.inputs.packets import again, array, code_model, made, packed, spec_of, told

FEATURES = spec_of(Port("features", Fraction(50), 80))
GRIDS = spec_of(Port("codes", Fraction(24), 1, "uint16", 2), codebook_size=64_000)
TEXTS = spec_of(Port("text", Fraction(1), 1, "int64", 1))


def test_codes():
    input = made(code_model(entries=300))
    codes = np.random.default_rng(0).integers(0, 300, (8, 25))
    chunks = input.push(array(codes[:, :10].astype(np.uint16)))
    chunks += input.push(array(codes[:, 10:].astype(np.uint32)))
    assert np.array_equal(np.concatenate([chunk.data for chunk in chunks], 2)[0], codes)
    assert chunks[0].data.dtype == np.uint16 and chunks[0].data.shape == (1, 8, 10)
    assert [(chunk.pts, chunk.duration) for chunk in chunks] == [(0, 72_000), (72_000, 108_000)]
    assert input.flush() == []


def test_codes_of_some_books_and_with_scales():
    input = made(code_model(scaled=True), codebooks=2)
    (chunk,) = input.push(array(np.ones((2, 3), np.uint16), 7, 9, scale=0.5))
    assert (chunk.scale, chunk.pts, chunk.duration) == (0.5, 7, 9)
    with pytest.raises(InputError, match="wanted"):
        input.check(array(np.ones((8, 3), np.uint16)))
    with pytest.raises(InputError):
        made(code_model(), codebooks=9)


def test_features():
    input = made(FEATURES)
    values = np.random.default_rng(0).standard_normal((80, 5)).astype(np.float16)
    (chunk,) = input.push(array(values))
    assert chunk.data.dtype == np.float32 and np.array_equal(chunk.data[0], values)
    assert (chunk.items, chunk.duration) == (5, 9000)


def test_texts():
    input = made(TEXTS)
    chunks = input.push(packed("grüß Gott".encode(), 900, 90))
    chunks += input.push(packed(b"again"))
    assert [chunk.data for chunk in chunks] == [["grüß Gott"], ["again"]]
    assert [(chunk.items, chunk.pts, chunk.duration) for chunk in chunks] == [
        (1, 900, 90),
        (1, 990, 0),
    ]


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (code_model(), np.zeros((7, 3), np.uint16)),
        (code_model(), np.zeros((8, 0), np.uint16)),
        (code_model(), np.zeros((8, 3), np.float32)),
        (code_model(), np.zeros((8, 3, 1), np.uint16)),
        (code_model(), np.full((8, 3), 1024, np.uint16)),
        (FEATURES, np.zeros((80, 3), np.uint8)),
        (FEATURES, np.zeros((79, 3), np.float32)),
        (FEATURES, np.full((80, 3), np.inf, np.float32)),
        (TEXTS, np.zeros((1, 0), np.uint8)),
        (TEXTS, np.zeros((2, 4), np.uint8)),
        (TEXTS, np.full((1, 4), 0xFF, np.uint8)),
        (TEXTS, np.full((1, 70_000), 65, np.uint8)),
        (GRIDS, np.zeros((1, 1, 300, 300), np.uint16)),
    ],
)
def test_what_does_not_fit_changes_nothing(spec, data):
    input = made(spec)
    before = input.state()
    with pytest.raises(InputError):
        input.check(array(data))
    with pytest.raises(InputError):
        input.push(array(data))
    assert input.state() == before


def test_scale_of_codes_that_have_none():
    with pytest.raises(InputError, match="have none"):
        made(code_model()).push(array(np.ones((8, 3), np.uint16), scale=2.0))


def test_streams_and_tracks_are_none():
    data = array(np.ones((8, 3), np.uint16))
    for other in ({"stream": 1}, {"track": 1}):
        fields = {name: getattr(data, name) for name in data.__slots__} | other
        with pytest.raises(InputError, match="both are 0"):
            made(code_model()).check(type(data)(**fields))


def test_another_grid_begins_a_new_stream():
    input = made(GRIDS)
    chunks = input.push(array(np.zeros((1, 2, 4, 6), np.uint16)))
    input = again(input, GRIDS)
    chunks += input.push(array(np.zeros((1, 2, 4, 6), np.uint16)))
    chunks += input.push(array(np.zeros((1, 3, 6, 4), np.uint16)))
    assert [chunk.discontinuity for chunk in chunks] == [False, False, True]
    assert chunks[2].data.shape == (1, 1, 3, 6, 4) and chunks[2].items == 3


def test_taken_up_anywhere():
    spec = code_model()
    input, other = made(spec), made(spec)
    for number in range(40):
        codes = array(np.full((8, 1 + number % 3), number, np.uint16))
        assert told(input.push(codes)) == told(other.push(codes))
        input = again(input, spec)
    assert input.next_pts == other.next_pts


@pytest.mark.parametrize("spec", [code_model(), GRIDS, FEATURES, TEXTS])
def test_damaged_states(spec):
    blob = made(spec).state()
    for at in range(len(blob)):
        with pytest.raises(SnapshotError):
            made(spec).restore(blob[:at])
    for value in ((0,), (2**30, 2**30), (1, 2, 3), (-1, 4)):
        whole = msgspec.msgpack.decode(blob)
        whole[1] = value
        with pytest.raises(SnapshotError):
            made(spec).restore(msgspec.msgpack.encode(whole))


def test_formats_that_do_not_fit_the_model():
    with pytest.raises(UsageError, match="takes codes, which comes as codes"):
        made(code_model(), format="s16")
    with pytest.raises(UsageError):
        made(FEATURES, Limits(), format="codes")
