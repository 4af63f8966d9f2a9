"""Encode: a vector for each segment of text, at its own time, with its number."""

from __future__ import annotations

from pathlib import Path

import anyio
import numpy as np
import pytest

import streamenc
from streamenc.coding.encode import Encode
from streamenc.engine.engine import Engine
from streamenc.errors import FitError
from streamenc.graph.frames import Frame
from tests.support import texts, zoo
from tests.support.drive import audio_info, opened, pushed, through
from tests.support.zoo.texts import save_bert


@pytest.mark.parametrize("hops", [1, 3])
def test_each_segment_is_a_vector_at_its_time(hops: int, engine: Engine) -> None:
    said = ["good morning", "a", "a much longer one, of more tokens", "é"]
    frames = texts.segments(*said)
    info, made = through(texts.INFO, frames, Encode(texts.codec(), engine, hops=hops))
    assert (info.kind, info.rate, info.shape) == ("features", 0, (texts.WIDTH, None))
    assert info.segmented and info.time_base == texts.INFO.time_base
    for frame, given, text in zip(made, frames, said, strict=True):
        times = ("pts", "duration", "seq", "segment", "revised", "discontinuity")
        assert [getattr(frame, t) for t in times] == [getattr(given, t) for t in times]
        assert frame.arrived_ns == given.arrived_ns or hops > 1
        np.testing.assert_allclose(frame.data[:, 0], texts.vector(text), rtol=1e-6)


def test_a_revised_segment_comes_again_and_starts_nothing_anew(engine: Engine) -> None:
    node = Encode(texts.codec(), engine)
    frames = texts.segments("he", "hello", "hello there", "bye", revised=(1, 2))
    _, made = through(texts.INFO, frames, node)
    assert [(f.segment, f.revised, f.pts) for f in made] == [
        (0, False, 0),
        (0, True, 0),
        (0, True, 0),
        (1, False, 500),
    ]
    assert not any(frame.discontinuity for frame in made) and node.restarts == 0


def test_several_segments_in_a_frame_share_its_time(engine: Engine) -> None:
    frame = Frame(np.array([["one", "three", "five"]]), 100, 90, 0, segment=4)
    _, made = through(texts.INFO, [frame], Encode(texts.codec(), engine))
    assert [(f.pts, f.duration, f.segment) for f in made] == [
        (100, 30, 4),
        (130, 30, 4),
        (160, 30, 4),
    ]
    np.testing.assert_allclose(made[1].data[:, 0], texts.vector("three"), rtol=1e-6)


def test_lost_segments_are_flagged(engine: Engine) -> None:
    frames = texts.segments("a", "b", "c")
    frames[2] = frames[2].with_(discontinuity=True)
    _, made = through(texts.INFO, frames, Encode(texts.codec(), engine))
    assert [frame.discontinuity for frame in made] == [False, False, True]


def test_streams_step_in_lanes_together(engine: Engine) -> None:
    codec = texts.codec()
    said = [
        ["a", "bb", "cccc", "d" * 9],
        ["e" * 9, "f", "gg", "hhh"],
        ["i" * 3, "j" * 30, "k", "l"],
    ]

    async def run() -> list[list[Frame]]:
        nodes = [Encode(codec, engine) for _ in said]
        for node in nodes:
            await opened(texts.INFO, node)
        made: list[list[Frame]] = [[] for _ in said]

        async def push(index: int) -> None:
            made[index] += await pushed(texts.segments(*said[index]), nodes[index])

        async with anyio.create_task_group() as group:
            for index in range(len(said)):
                group.start_soon(push, index)
        for node in nodes:
            await node.aclose()
        return made

    for frames, these in zip(anyio.run(run), said, strict=True):
        for frame, text in zip(frames, these, strict=True):
            np.testing.assert_allclose(frame.data[:, 0], texts.vector(text), rtol=1e-6)


def test_kinds_that_do_not_fit(engine: Engine) -> None:
    with pytest.raises(FitError, match="bytes encodes text; got audio"):
        through(audio_info(24000), [], Encode(texts.codec(), engine))
    with pytest.raises(FitError, match="encodes sound; got text 1x. str in segments: encode it"):
        through(texts.INFO, [], Encode(zoo.codec("mel"), engine))


@pytest.mark.parametrize("hops", [1, 2])
def test_a_published_model_and_texts_that_are_too_long_for_it(
    hops: int, engine: Engine, tmp_path: Path
) -> None:
    save_bert("bert")(tmp_path)
    codec = streamenc.load(tmp_path)
    said = ["ab cd", "a", "hgf edc ba " * 40, "x y"]
    node = Encode(codec, engine, hops=hops)
    info, made = through(texts.INFO, texts.segments(*said, revised=(1,)), node)
    assert info.shape == (16, None) and [f.segment for f in made] == [0, 0, 1, 2]
    want = np.asarray(codec.encode(said))[0]
    np.testing.assert_allclose(np.concatenate([f.data for f in made], axis=1), want, atol=1e-5)
    assert node.cut == 1 and node.remarks[0].startswith("1 texts had more tokens than")
