"""Images through Encode and Decode: their own times, exact numbers, as many as went in."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamenc
from streamenc.codec import Codec
from streamenc.coding.decode import Decode
from streamenc.coding.encode import Encode
from streamenc.engine.engine import Engine
from streamenc.errors import FitError
from streamenc.graph.frames import Frame
from tests.support import zoo
from tests.support.drive import audio_info, flagged, images, through, video_info
from tests.support.zoo.pictures import save_cosmos

INFO = video_info(16, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of codes, 4 frames and 8 x 8 pixels each."""
    made: Path = tmp_path_factory.mktemp("DV4x8x8")
    zoo.save_cosmos_codes(made)
    return made


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return streamenc.load(folder, mode="window", context=4, levels=[8, 8, 8, 5, 5, 5])


def whole(frames: list[Frame]) -> np.ndarray[Any, Any]:
    return np.concatenate([frame.data for frame in frames], axis=1)


def test_codes_are_those_of_the_whole_clip_at_the_times_of_its_images(
    codec: Codec, engine: Engine
) -> None:
    frames = images(14, 16, 24)
    # A camera that hesitates: the seventh image stands for 100 ms.
    frames = frames[:6] + [f.with_(pts=f.pts + (60 if i else 0)) for i, f in enumerate(frames[6:])]
    frames[6] = frames[6].with_(duration=100)
    info, codes = through(INFO, frames, Encode(codec, engine))
    assert (info.kind, info.shape, info.dtype) == ("codes", (1, None, 2, 3), "uint16")
    assert (info.rate, info.codebook_size) == (Fraction(25, 4), 64_000)
    assert np.array_equal(whole(codes), codec.encode(whole(frames))[0].numpy())
    assert all(frame.data.shape == (1, 1, 2, 3) for frame in codes)
    # 1 image, 4, 4 (the slow one among them), 4, and a tail of 1.
    assert [frame.pts for frame in codes] == [0, 40, 200, 420, 580]
    assert [frame.duration for frame in codes] == [40, 160, 220, 160, 40]


@pytest.mark.parametrize("count", [1, 2, 5, 12, 13])
def test_as_many_images_come_back_as_were_encoded(codec: Codec, engine: Engine, count: int) -> None:
    frames = images(count, 16, 24)
    info, out = through(INFO, frames, Encode(codec, engine), Decode(codec, engine))
    assert (info.kind, info.shape, info.dtype) == ("video", (3, None, 16, 24), "uint8")
    assert info.rate == 25
    assert [(f.pts, f.duration) for f in out] == [(f.pts, f.duration) for f in frames]
    offline = codec.decode(codec.encode(whole(frames)))[0, :, :count]
    expected = offline.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    # Offline all frames are one step, whose last bits are others: a level, where one is near.
    apart = np.abs(whole(out).astype(int) - expected)
    assert apart.max() <= 1 and apart.mean() < 1e-3


def test_a_flag_starts_both_ends_anew(codec: Codec, engine: Engine) -> None:
    frames = [*images(6, 16, 24), *flagged(images(7, 16, 24, pts=5000))]
    encode, decode = Encode(codec, engine), Decode(codec, engine)
    _, codes = through(INFO, frames, encode)
    assert [f.discontinuity for f in codes] == [False, False, False, True, False, False]
    assert codes[3].pts == 5000 and encode.restarts == 1
    assert np.array_equal(whole(codes[3:]), codec.encode(whole(frames[6:]))[0].numpy())
    codes_info = replace(
        INFO, kind="codes", rate=Fraction(25, 4), shape=(1, None, 2, 3), codebook_size=64_000
    )
    _, out = through(codes_info, codes, decode)
    assert [f.pts for f in out] == [f.pts for f in frames]
    assert [f.discontinuity for f in out] == [f.discontinuity for f in frames]


def test_clips_of_the_reference_date_their_latents(folder: Path, engine: Engine) -> None:
    """Each clip has a latent of one image, and others of four."""
    codec = streamenc.load(folder, mode="reference", clip=9)
    frames = images(20, 16, 24)
    _, codes = through(INFO, frames, Encode(codec, engine))
    first = [0, 1, 5, 9, 10, 14, 18, 19]
    assert [frame.pts for frame in codes] == [40 * index for index in first]
    assert codes[-1].pts + codes[-1].duration == 20 * 40
    assert np.array_equal(whole(codes), codec.encode(whole(frames))[0].numpy())


def test_latents_go_there_and_back(tmp_path: Path, engine: Engine) -> None:
    save_cosmos(tmp_path)
    codec = streamenc.load(tmp_path)
    frames = images(10, 16, 24)
    info, latents = through(INFO, frames, Encode(codec, engine))
    assert info.kind == "features" and latents[0].data.shape == (info.shape[0], 1, 2, 3)
    back, out = through(info, latents, Decode(codec, engine))
    assert (len(out), back.rate) == (10, 25)


def test_what_does_not_fit_is_said_at_once(codec: Codec, engine: Engine, tmp_path: Path) -> None:
    cases = {
        "multiples of 8; got 24 x 20: put Fit": video_info(20, 24),
        "encodes video; got audio": audio_info(8000),
    }
    for words, info in cases.items():
        with pytest.raises(FitError, match=words):
            through(info, [], Encode(codec, engine))
    with pytest.raises(FitError, match="got video .* put Resample"):
        through(INFO, [], Encode(zoo.codec("mimi"), engine))
    codes = replace(INFO, kind="codes", shape=(1, None, 2, 3), codebook_size=64_000)
    wrong = {
        "takes codes of .channels, time, height, width": replace(codes, shape=(1, None)),
        "decodes codes of 64000 entries; got codes .* of 1024": replace(codes, codebook_size=1024),
        "decodes 1 channels": replace(codes, shape=(2, None, 2, 3)),
    }
    for words, info in wrong.items():
        with pytest.raises(FitError, match=words):
            through(info, [], Decode(codec, engine))
    assert engine.sessions == 0
