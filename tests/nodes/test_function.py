from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from streamenc.errors import InputError, NodeError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.function import FunctionSink, FunctionTransform
from streamenc.pipeline.builder import Pipeline
from streamenc.testing import drive
from tests.support.drive import audio_info, noise, sound

SOUND = audio_info(8000)
FRAMES = sound(noise(4000), 400)
FLAT = StreamInfo("features", Fraction(1, 8000), Fraction(20), (1, None), "float32")


def made(function: Callable[..., Any], frames: list[Frame] = FRAMES, **options: Any) -> list[Frame]:
    return drive(FunctionTransform(function, **options), SOUND, frames)


def double(frame: Frame) -> Any:
    return 2 * frame.data


async def double_later(frame: Frame) -> Any:
    await asyncio.sleep(0)
    return 2 * frame.data


def double_frame(frame: Frame, info: StreamInfo) -> Frame:
    assert info == SOUND
    return frame.with_(data=2 * frame.data)


def double_one(frame: Frame, factor: int = 2) -> Iterator[Frame]:
    yield frame.with_(data=factor * frame.data)


async def double_each(frame: Frame) -> AsyncIterator[Frame]:
    yield frame.with_(data=2 * frame.data)


class Double:
    async def __call__(self, frame: Frame, info: StreamInfo | None = None) -> Any:
        assert info == SOUND
        return [2 * frame.data]


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        double,
        double_later,
        double_frame,
        double_one,
        double_each,
        Double(),
        functools.partial(double),
    ],
    ids=lambda function: type(function).__name__ + getattr(function, "__name__", ""),
)
def test_any_form_of_a_function(function: Callable[..., Any], blocking: bool) -> None:
    if blocking and function is double_later:
        with pytest.raises(UsageError, match="double_later is a coroutine function"):
            FunctionTransform(function, blocking=True)
        return
    got = made(function, blocking=blocking)
    assert [frame.pts for frame in got] == [frame.pts for frame in FRAMES]
    for after, before in zip(got, FRAMES, strict=True):
        np.testing.assert_array_equal(after.data, 2 * before.data, strict=True)
        assert (after.duration, after.discontinuity) == (400, False)


def test_what_is_left_out_is_a_gap_and_the_rest_is_numbered_anew() -> None:
    frames = [f.with_(discontinuity=f.seq == 7) for f in FRAMES]
    got = made(lambda frame: frame if frame.seq in (1, 2, 4, 8) else None, frames)
    assert [(frame.seq, frame.pts, frame.discontinuity) for frame in got] == [
        (0, 400, False),
        (1, 800, False),
        (2, 1600, True),
        (3, 3200, True),
    ]


def test_one_that_gathers_frames_leaves_nothing_out() -> None:
    waiting: list[Frame] = []

    def pairs(frame: Frame) -> Frame | None:
        waiting.append(frame)
        if len(waiting) < 2:
            return None
        first, second = waiting
        waiting.clear()
        data = np.concatenate([first.data, second.data], axis=1)
        return first.with_(data=data, duration=first.duration + second.duration)

    got = made(pairs)
    assert [(frame.seq, frame.data.shape[1]) for frame in got] == [(i, 800) for i in range(5)]
    assert not any(frame.discontinuity for frame in got)


def test_what_goes_out_may_be_another_kind() -> None:
    def level(frame: Frame) -> Any:
        return np.abs(frame.data).max(axis=1, keepdims=True)

    got = made(level, info=FLAT)
    assert [frame.data.shape for frame in got] == [(1, 1)] * 10
    seen = []

    def flat(info: StreamInfo) -> StreamInfo:
        seen.append(info)
        return replace(FLAT, time_base=info.time_base)

    assert len(made(level, info=flat)) == 10
    assert seen == [SOUND]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda frame: frame.data.astype(float), r"float64 of shape \(1, 400\).*info=StreamInfo"),
        (lambda frame: "done", "returned str; wanted None, a Frame"),
        (lambda frame: {}, "returned dict"),
        (lambda frame: 3, "returned int"),
        (lambda frame: [frame.data, frame.data], "made 2 things of one frame"),
    ],
)
def test_what_it_must_not_return(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(function)


@pytest.mark.parametrize(
    "function", [lambda: 0, lambda a, b, c: 0, lambda frame, *, key: 0, Double, 3]
)
def test_what_cannot_be_called_is_said_at_once(function: Any) -> None:
    with pytest.raises(UsageError, match=r"cannot be called with a frame|wanted a function"):
        FunctionSink(function)


def pipeline_of(sink: Any, **options: Any) -> Pipeline:
    pipeline = Pipeline()
    images = pipeline.source("in", "test:motion?size=64x48&seconds=0.4&live=false")
    pipeline.sink("out", sink, images, **options)
    return pipeline


def test_a_function_is_a_sink_of_a_pipeline() -> None:
    got: list[Frame] = []
    report = pipeline_of(got.append).graph.run_blocking()
    assert [frame.seq for frame in got] == list(range(10))
    assert report["out"].frames_in == 10


def test_a_coroutine_function_is_a_sink_that_holds_the_stream_up() -> None:
    got: list[str] = []

    async def take(frame: Frame, info: StreamInfo) -> None:
        await asyncio.sleep(0.001)
        got.append(info.kind)

    pipeline_of(take).graph.run_blocking()
    assert got == ["video"] * 10


def test_a_blocking_function_runs_in_a_thread_of_its_own() -> None:
    threads = set()

    def take(frame: Frame) -> None:
        time.sleep(0.001)
        threads.add(threading.current_thread())

    pipeline_of(take, blocking=True).graph.run_blocking()
    assert len(threads) == 1 and threading.main_thread() not in threads


def test_what_a_function_raises_names_the_node() -> None:
    def take(frame: Frame) -> None:
        raise KeyError("no such room")

    with pytest.raises(NodeError, match="node 'out' failed: KeyError: 'no such room'"):
        pipeline_of(take).graph.run_blocking()


def test_a_pipeline_takes_nodes_of_any_form() -> None:
    got: list[Frame] = []
    with Pipeline() as pipeline:
        images = pipeline.source("in", "test:motion?size=64x48&seconds=0.4&live=false")
        dark = pipeline.transform("dark", lambda frame: frame.data // 2, images)
        pipeline.sink("out", FunctionSink(got.append), dark)
        pipeline.graph.run_blocking()
    assert len(got) == 10 and max(frame.data.max() for frame in got) <= 127


def test_options_that_are_of_something_else_are_refused() -> None:
    with pytest.raises(UsageError, match="options are of a path or URL"):
        pipeline_of(print, options={"rate": 3})
    with pytest.raises(UsageError, match="blocking is of functions"):
        pipeline_of("null:", blocking=True)
    with pytest.raises(UsageError, match="info and blocking are of functions"):
        Pipeline().transform("a", FunctionTransform(double), "b", info=FLAT)
