"""Codec: rates, sound at another rate, and whole files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

import streamenc
from streamenc.errors import InputError, MediaError, UsageError
from tests.support import zoo
from tests.support.drive import noise
from tests.support.media import write_film, write_wav
from tests.support.program import streamenc as program


@pytest.fixture(scope="module")
def codec() -> streamenc.Codec:
    return streamenc.load()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of stereo at 44.1 kHz."""
    return write_wav(tmp_path_factory.mktemp("clip") / "clip.wav", noise(132_300, 2), 44_100)


def test_frames_a_second(codec: streamenc.Codec) -> None:
    assert (codec.sample_rate, codec.frame_rate) == (16_000, 50.0)
    assert streamenc.load(part="decoder").frame_rate == 50.0
    for images in (zoo.codec("cosmos"), zoo.codec("vit")):
        with pytest.raises(UsageError, match="is a model of video and has no sample rate"):
            _ = images.frame_rate


def test_a_file_gives_what_the_command_line_records(
    codec: streamenc.Codec, clip: Path, tmp_path: Path
) -> None:
    encoded = codec.encode_file(clip)
    assert program("encode", clip, tmp_path / "tokens.arrows").code == 0
    recorded = streamenc.read(tmp_path / "tokens.arrows")
    np.testing.assert_array_equal(encoded.data, recorded.data, strict=True)
    np.testing.assert_array_equal(encoded.times, recorded.times)
    assert encoded.info == recorded.info
    assert encoded.data.shape == (16, 150) and not len(encoded.gaps) and not encoded.broken
    few = codec.encode_file(clip, codebooks=4)
    np.testing.assert_array_equal(few.data, encoded.data[:4])
    assert codec.decode(encoded.data).shape == (1, 1, 48_000)


def test_features_and_images_are_encoded_from_files_too(clip: Path, tmp_path: Path) -> None:
    mel = streamenc.load("mel").encode_file(clip, dtype="float16")
    assert mel.info.kind == "features" and mel.data.dtype == np.float16
    assert len(mel.times) == mel.data.shape[1] > 200
    film = write_film(tmp_path / "film.mkv", seconds=0.6)
    images = zoo.codec("cosmos-images", torch.float32).encode_file(film, size="32x32")
    assert images.data.shape[1] == 15 and images.data.ndim == 4
    assert np.allclose(np.diff(images.times), 0.04, atol=1e-3)


def test_a_file_is_encoded_where_a_loop_runs_already(codec: streamenc.Codec, clip: Path) -> None:
    async def notebook() -> streamenc.Recording:
        return codec.encode_file(clip, codebooks=1)

    assert asyncio.run(notebook()).data.shape == (1, 150)


def test_a_file_that_cannot_be_encoded_is_said(codec: streamenc.Codec, clip: Path) -> None:
    with pytest.raises(MediaError, match=r"nothing\.wav"):
        codec.encode_file(clip.with_name("nothing.wav"))
    with pytest.raises(UsageError, match="no option 'speed'; it has codebooks, hops"):
        codec.encode_file(clip, speed=2)
    with pytest.raises(UsageError, match="no option 'speed'"):
        codec.encode_file(clip, source={"speed": 2})
    for graphs in ("realtime", "align", "name"):  # what nodes of a graph have, and no file
        with pytest.raises(UsageError, match=f"no option '{graphs}'"):
            codec.encode_file(clip, source={graphs: True})
    with pytest.raises(UsageError, match="takes audio of a file; leave out kind='video'"):
        codec.encode_file(clip, source={"kind": "video"})
    with pytest.raises(UsageError, match="is live and has no end"):
        codec.encode_file("zmq+tcp://127.0.0.1:5555")
    with pytest.raises(UsageError, match="gives audio, but video was wanted"):
        zoo.codec("vit").encode_file("pcm:-")


def test_sound_at_another_rate_is_resampled_as_a_file_is(
    codec: streamenc.Codec, clip: Path
) -> None:
    sound = streamenc.read(clip).data
    codes = codec.encode(sound.mean(axis=0, dtype=np.float32), sample_rate=44_100)
    np.testing.assert_array_equal(codes[0].numpy(), codec.encode_file(clip).data)
    both = codec.encode(torch.from_numpy(sound)[:, None], sample_rate=44_100, codebooks=2)
    assert both.shape == (2, 2, 150)
    nothing = np.zeros((1, 0), np.float32)
    assert torch.equal(codec.encode(nothing, sample_rate=44_100), codec.encode(nothing))
    own = noise(16_000)
    assert torch.equal(codec.encode(own, sample_rate=16_000), codec.encode(own))


def test_a_rate_that_makes_no_sense_is_refused(codec: streamenc.Codec) -> None:
    with pytest.raises(UsageError, match="sample_rate"):
        codec.encode(noise(1600), sample_rate=0)
    with pytest.raises(UsageError, match="has no sample rate"):
        zoo.codec("vit").encode(np.zeros((1, 3, 1, 8, 8)), sample_rate=16_000)
    with pytest.raises(InputError, match="divide 16-bit samples"):
        codec.encode(np.zeros((1, 4410), np.int16), sample_rate=44_100)
    broken = noise(4410)
    broken[0, 77] = np.nan
    with pytest.raises(InputError, match="first at 77"):
        codec.encode(broken, sample_rate=44_100)
