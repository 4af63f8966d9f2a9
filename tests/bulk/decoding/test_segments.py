"""Items that are segments of files: cut to the sample, and files decoded once for many of them."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

import streamenc
from streamenc.bulk.decoding import mediareader
from streamenc.bulk.decoding.mediareader import MediaReader
from streamenc.bulk.items import Blob, Item, Local
from streamenc.errors import InputError, MediaError, StreamencError
from tests.support.media import write_film
from tests.support.sound import noisy_tone

RATE, SECONDS = 8000, 30
SOUND = noisy_tone(RATE, 2, SECONDS)
# (name, soundfile's subtype, whether decoding can begin anywhere)
FORMATS = [
    ("a.wav", "PCM_16", True),
    ("a24.wav", "PCM_24", True),
    ("f.wav", "FLOAT", True),
    ("a.w64", "PCM_16", True),
    ("a.flac", "PCM_16", True),
    ("a.ogg", "VORBIS", False),
    ("a.mp3", "MPEG_LAYER_III", False),
]
EACH_FORMAT = pytest.mark.parametrize(("name", "subtype", "seeks"), FORMATS)


def written(path: Path, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, SOUND.T, RATE, subtype=subtype)
    return path


def item(path: Path, begins: float, lasts: float | None = None, *channels: int) -> Item:
    return Item("key", Local(str(path)), begins, lasts, channels)


def read(reader: MediaReader, each: Item) -> np.ndarray:
    with reader.open(each) as reading:
        frames = list(reading.frames())
        assert all(frame.duration == frame.data.shape[1] for frame in frames)
        assert reading.samples == sum(frame.data.shape[1] for frame in frames)
        return np.concatenate([frame.data for frame in frames], axis=1)


@EACH_FORMAT
def test_any_segment_is_cut_to_the_sample(name: str, subtype: str, seeks: bool, tmp_path: Path):
    path = written(tmp_path / name, subtype)
    whole = streamenc.read(path).data
    reader, chance = MediaReader("audio", tmp_path), random.Random(5)
    for _ in range(12):
        begins = chance.uniform(0, SECONDS - 1)
        lasts = chance.uniform(0.01, 1)
        got = read(reader, item(path, begins, lasts))
        first, last = round(begins * RATE), round((begins + lasts) * RATE)
        np.testing.assert_array_equal(got, whole[:, first:last])
    np.testing.assert_array_equal(read(reader, item(path, 29.5)), whole[:, round(29.5 * RATE) :])
    reader.close()


@EACH_FORMAT
def test_a_file_of_many_segments_is_decoded_once(
    name: str, subtype: str, seeks: bool, tmp_path: Path
):
    path = written(tmp_path / name, subtype)
    whole, once = streamenc.read(path).data, MediaReader("audio", tmp_path)
    read(once, item(path, 0))
    reader = MediaReader("audio", tmp_path)
    for second in range(SECONDS - 2):  # overlapping by half
        got = read(reader, item(path, second, 2))
        np.testing.assert_array_equal(got, whole[:, second * RATE : (second + 2) * RATE])
    reader.close()
    assert 0.9 * once.decoded < reader.decoded <= once.decoded


@EACH_FORMAT
def test_what_lies_far_before_is_not_decoded_where_that_is_exact(
    name: str, subtype: str, seeks: bool, tmp_path: Path
):
    path = written(tmp_path / name, subtype)
    one, far = MediaReader("audio", tmp_path), MediaReader("audio", tmp_path)
    read(one, item(path, 0, 1))
    for begins in (28, 14, 27):
        read(far, item(path, begins, 1))
    one.close()
    far.close()
    assert (far.decoded < 6 * one.decoded) == seeks


def test_channels(tmp_path: Path):
    path = written(tmp_path / "a.flac")
    whole, reader = streamenc.read(path).data, MediaReader("audio", tmp_path)
    for channels in ((1,), (0,), (1, 0)):
        with reader.open(item(path, 1, 0.5, *channels)) as reading:
            got = np.concatenate([frame.data for frame in reading.frames()], axis=1)
            assert reading.info.shape == (len(channels), None)
        np.testing.assert_array_equal(got, whole[list(channels), RATE : RATE + RATE // 2])
    with pytest.raises(MediaError, match="channel 2, counted from 0; its file has 2"):
        read(reader, item(path, 1, 0.5, 2))
    reader.close()


@pytest.mark.parametrize(
    ("begins", "lasts", "says"),
    [
        (-1, 1, "begins at -1 s; wanted"),
        (float("nan"), 1, "begins at nan s; wanted"),
        (float("inf"), None, "begins at inf s; wanted"),
        (1, 0, "lasts 0 s; wanted"),
        (1, float("nan"), "lasts nan s; wanted"),
        (31, 1, "begins at 31 s, and its file ends at 30 s"),
        (31, None, "begins at 31 s, and its file ends at 30 s"),
        (29, 1.5, "ends at 30.5 s, and its file at 30 s"),
    ],
)
def test_times_that_no_item_has(begins: float, lasts: float | None, says: str, tmp_path: Path):
    path = written(tmp_path / "a.flac")
    with pytest.raises(InputError, match=says):
        read(MediaReader("audio", tmp_path), item(path, begins, lasts))


def test_manifests_round(tmp_path: Path):
    path = written(tmp_path / "a.wav")
    got = read(MediaReader("audio", tmp_path), item(path, 29.006, 1.0))
    np.testing.assert_array_equal(got, streamenc.read(path).data[:, round(29.006 * RATE) :])


@pytest.mark.parametrize("harm", ["zeros", "bit", "cut"])
def test_of_a_damaged_flac_only_what_is_damaged_is_missing(harm: str, tmp_path: Path):
    """The same, whatever was read before."""
    path = written(tmp_path / "a.flac")
    whole, data = streamenc.read(path).data, bytearray(path.read_bytes())
    middle = len(data) // 2
    if harm == "zeros":
        data[middle : middle + 3000] = bytes(3000)
    elif harm == "bit":
        data[middle] ^= 1
    else:
        del data[middle : middle + 3000]
    path.write_bytes(data)
    after, bad = MediaReader("audio", tmp_path), 0

    def outcome(reader: MediaReader, begins: float) -> str:
        try:
            got = read(reader, item(path, begins, 0.5))
        except MediaError as error:
            return str(error)
        first = round(begins * RATE)
        np.testing.assert_array_equal(got, whole[:, first : first + RATE // 2])
        return "whole"

    for half in range(2 * SECONDS):
        alone = MediaReader("audio", tmp_path)
        says = outcome(after, half / 2)
        assert says == outcome(alone, half / 2)
        alone.close()
        bad += "damaged" in says
    after.close()
    assert 1 <= bad <= 4


def test_of_what_counts_no_samples_all_behind_damage_is_in_doubt(tmp_path: Path):
    path = written(tmp_path / "a.mp3", "MPEG_LAYER_III")
    data = bytearray(path.read_bytes())
    del data[len(data) // 2 : len(data) // 2 + 700]
    path.write_bytes(data)
    reader = MediaReader("audio", tmp_path)
    assert read(reader, item(path, 5, 1)).shape[1] == RATE
    with pytest.raises(MediaError, match="cannot be decoded"):
        read(reader, item(path, 25, 1))
    damaged = MediaReader("audio", tmp_path, damaged=True)
    with damaged.open(item(path, 25, 1)) as reading:
        assert list(reading.frames()) and "damaged" in reading.flags
    damaged.close()


def test_two_items_of_one_file_at_a_time(tmp_path: Path):
    path = written(tmp_path / "a.wav")
    whole, reader = streamenc.read(path).data, MediaReader("audio", tmp_path)
    with reader.open(item(path, 1, 2)) as one, reader.open(item(path, 2, 2)) as other:
        pairs = list(zip(one.frames(), other.frames(), strict=False))
    first, second = (np.concatenate([pair[n].data for pair in pairs], axis=1) for n in (0, 1))
    np.testing.assert_array_equal(first, whole[:, RATE : RATE + first.shape[1]])
    np.testing.assert_array_equal(second, whole[:, 2 * RATE : 2 * RATE + second.shape[1]])
    reader.close()


def test_an_error_within_leaves_nothing_open(tmp_path: Path):
    path = written(tmp_path / "a.wav")
    reader = MediaReader("audio", tmp_path)
    with pytest.raises(StreamencError), reader.open(item(path, 1, 1)) as reading:
        next(reading.frames())
        raise InputError("a model does not take it")
    np.testing.assert_array_equal(
        read(reader, item(path, 1, 1)), streamenc.read(path).data[:, RATE : 2 * RATE]
    )
    reader.close()


def test_segments_of_bytes_in_memory(tmp_path: Path):
    path = written(tmp_path / "a.flac")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    media = Blob(path.read_bytes(), "set.parquet, row 7 (a.flac)")
    whole, reader = streamenc.read(path).data, MediaReader("audio", scratch)
    for begins in (0, 1, 2):
        got = read(reader, Item("key", media, begins, 1))
        np.testing.assert_array_equal(got, whole[:, begins * RATE : (begins + 1) * RATE])
    reader.close()
    assert not list(scratch.iterdir())


def test_images_by_their_times(tmp_path: Path):
    path = write_film(tmp_path / "film.mp4", seconds=3, fps=10)
    with av.open(str(path)) as container:
        count = sum(1 for _ in container.decode(video=0))
    assert count == 30
    once, reader = MediaReader("video", tmp_path), MediaReader("video", tmp_path)
    with once.open(Item("key", Local(str(path)))) as reading:
        whole = [frame.data for frame in reading.frames()]
    for first in (0, 7, 14, 20):
        with reader.open(Item("key", Local(str(path)), first / 10, 0.7)) as reading:
            got = [frame.data for frame in reading.frames()]
        assert reading.samples == 7
        assert all((a == b).all() for a, b in zip(got, whole[first : first + 7], strict=True))
    reader.close()
    assert reader.decoded <= 30 == once.decoded
    with pytest.raises(InputError, match="its file at 3 s"):
        with reader.open(Item("key", Local(str(path)), 2.5, 1)) as reading:
            list(reading.frames())


def test_jumps_are_told_from_reading_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A gap of a few seconds is cheaper decoded than opened anew."""
    path = written(tmp_path / "a.wav")
    reader = MediaReader("audio", tmp_path)
    read(reader, item(path, 0, 1))
    before = reader.decoded
    read(reader, item(path, 6, 1))
    assert reader.decoded - before > 5 * before
    monkeypatch.setattr(mediareader, "JUMP_SECONDS", 1)
    read(reader, item(path, 20, 1))
    assert reader.decoded < 10 * before
    reader.close()
