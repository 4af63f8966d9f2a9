"""What the manual's pieces of Python take as given, by page and number of the piece."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import torch

import streamenc
from streamenc.engine.exchange.door import Batch
from streamenc.engine.remote.engineserver import EngineServer
from tests.support.manual.files import talk
from tests.support.manual.shell import published
from tests.support.manual.stage import Stage

Names = dict[str, Any]


class Client:
    """Who sends chunks, and gets codes."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def __aiter__(self) -> AsyncIterator[Any]:
        for at in range(0, 6400, 1600):
            yield talk(24_000)[at : at + 1600]

    async def send(self, codes: Any) -> None:
        self.got.append(codes)


class Outlet:
    """Where the answers of an engine go that is asked without asyncio."""

    def __init__(self) -> None:
        self.came = threading.Event()

    def deliver(self, answers: Any) -> None:
        assert [error for *_, error in answers] == [None]
        self.came.set()


def sound(rate: int = 24_000) -> torch.Tensor:
    """(1, 1, samples)"""
    return torch.from_numpy(talk(rate).copy())[None, None]


def _python(names: Names, stage: Stage) -> None:
    names["audio"] = sound()
    names["microphone"] = [sound()[..., at : at + 1000] for at in range(0, 4000, 1000)]


def _samples(names: Names, stage: Stage) -> None:
    names["samples"] = talk(48_000)


def _music(names: Names, stage: Stage) -> None:
    names["samples"] = sound(44_100)


def _streams(names: Names, stage: Stage) -> None:
    codec = names["codec"] = streamenc.load("kyutai/mimi")
    names["stream"], names["other"] = codec.stream(), codec.stream()


def _functions(names: Names, stage: Stage) -> None:
    pipeline = names["pipeline"] = streamenc.Pipeline()
    names["mic"] = pipeline.source("mic", "talk.wav")
    names["codes"] = pipeline.encode("nano", streamenc.load(part="encoder"), names["mic"])
    names["store"] = [].append


def _own(names: Names, stage: Stage) -> None:
    import own_model.encoder
    from own_model.gain import Gain
    from own_model.tone import Tone

    names.update(own_model=own_model, Gain=Gain, Tone=Tone)


def _own_by_path(names: Names, stage: Stage) -> None:
    pipeline = names["pipeline"] = streamenc.Pipeline()
    pipeline.source("in", "talk.wav")


def _engine(names: Names, stage: Stage) -> None:
    stage.provide("kyutai/mimi")
    names["codec"] = streamenc.load("kyutai/mimi")


def _batch(names: Names, stage: Stage) -> None:
    seats = [names["engine"].seat(names["codec"].encoder)]
    names.update(Batch=Batch, seats=seats, chunks=[talk(24_000)], tags=["a"], outlet=Outlet())


def _remote(names: Names, stage: Stage) -> None:
    names["server"] = EngineServer(
        streamenc.Engine(max_sessions=2),
        {"nano": streamenc.load()},
        f"ipc://{stage.place}/engine",
    ).__enter__()


def _frames(names: Names, stage: Stage) -> None:
    frames = np.zeros((1, 3, 2, 12, 12), np.uint8)
    names["frames"] = torch.from_numpy(frames)


def _ears(names: Names, stage: Stage) -> None:
    names["audio"] = torch.from_numpy(np.tile(talk(16_000), 4))[None, None]


# (page, number of the block): what is there before it.
BEFORE: dict[tuple[str, int], Callable[[Names, Stage], None]] = {
    ("README.md", 0): _python,
    ("README.md", 1): _samples,
    ("docs/start/python.md", 0): _python,
    ("docs/start/questions.md", 2): _music,
    ("docs/start/python.md", 3): _streams,
    ("docs/start/python.md", 6): _functions,
    ("docs/start/python.md", 10): _own,
    ("docs/start/python.md", 11): _own_by_path,
    ("docs/engine.md", 0): _engine,
    ("docs/engine.md", 1): _batch,
    ("docs/engine.md", 2): _remote,
    ("docs/gpu.md", 0): _engine,
    ("docs/models/videollava.md", 0): _frames,
    ("docs/models/salmonn.md", 0): _ears,
}


async def _served(names: Names, stage: Stage) -> None:
    client = Client()
    await names["serve"](client)
    assert any(np.asarray(codes).shape[-1] for codes in client.got)


async def _answered(names: Names, stage: Stage) -> None:
    assert names["outlet"].came.wait(20)
    names["engine"].close()


async def _remotely(names: Names, stage: Stage) -> None:
    await _served(names, stage)
    names["engine"].close()
    names["server"].close()


async def _listened(names: Names, stage: Stage) -> None:
    with published(stage.said("zmq+tcp://127.0.0.1:5555"), stage.place / "tokens.arrows"):
        await names["listen"]()


async def _sent(names: Names, stage: Stage) -> None:
    await names["main"](talk(48_000))


async def _run(names: Names, stage: Stage) -> None:
    report = await names["pipeline"].run()
    assert report.outcome == "ended"


async def _closed(names: Names, stage: Stage) -> None:
    names["engine"].close()


# What shows that a function was not only defined, and puts away what was opened.
AFTER: dict[tuple[str, int], Callable[[Names, Stage], Awaitable[None]]] = {
    ("docs/start/python.md", 6): _run,
    ("docs/start/python.md", 8): _listened,
    ("docs/engine.md", 0): _served,
    ("docs/engine.md", 1): _answered,
    ("docs/engine.md", 2): _remotely,
    ("docs/gpu.md", 0): _closed,
    ("docs/server/clients.md", 0): _sent,
}
