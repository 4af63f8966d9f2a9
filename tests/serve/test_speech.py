"""Speech and layouts on a server: those of an uninterrupted stream, whatever happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from streamenc.io.network.websocket.livemessages import Error, Flush, Set, Speech, Vad, WasSet
from streamenc.io.network.wire import Data
from streamenc.nodes.codes.interleaving import delay, flatten
from streamenc.nodes.speech.speechwatch import SpeechWatch
from tests.serve.conftest import Served, nano, until
from tests.serve.test_streamsocket import offline, sent_in_pieces
from tests.support.rawsocket import RawSocket
from tests.support.talking import engines, talk

RATE = 16_000  # nano's
SIZE = 1024


def told(engine: str, samples: np.ndarray[Any, Any]) -> list[tuple[str, int]]:
    watch = SpeechWatch(RATE, Fraction(1, RATE), engine=engine)
    return [(e.event, e.pts) for e in watch.push(samples[None], 0) + watch.flush()]


def facts(socket: RawSocket) -> list[tuple[Any, ...]]:
    """All numbered messages, in order."""
    return [
        (m.pts, m.duration, m.seq, m.discontinuity, m.data.tolist()) if isinstance(m, Data) else m
        for m in socket.messages
    ]


async def straight(url: str, samples: np.ndarray[Any, Any], seed: int, **asked: Any) -> RawSocket:
    async with RawSocket(url) as socket:
        await socket.open(model="nano", format="f32", window=64, **asked)
        await sent_in_pieces(socket, samples, seed)
        await socket.close()
        return socket


async def broken(
    urls: list[str], samples: np.ndarray[Any, Any], seed: int, **asked: Any
) -> RawSocket:
    """Whose connection breaks after each second, and goes on at these servers in turn."""
    async with RawSocket(urls[0]) as socket:
        await socket.open(model="nano", format="f32", window=64, **asked)
        at = 0
        for index in range(1, 7):
            await sent_in_pieces(socket, samples[at : index * RATE], seed + index)
            await asyncio.sleep(0.02)
            await socket.leave(abort=True)
            await asyncio.sleep(0.1)
            socket.url = urls[index * len(urls) // 7]
            resumed = await socket.resume()
            assert resumed.exact, resumed.why
            socket.seq, socket.pts = resumed.next_seq, resumed.next_pts
            at = resumed.next_pts
        await sent_in_pieces(socket, samples[at:], seed)
        await socket.close()
        return socket


@pytest.mark.parametrize("engine", engines())
def test_speech_is_told_at_one_place_among_the_codes(
    serve: Callable[..., Served], engine: str
) -> None:
    first, second = serve(worker="0"), serve(worker="1")
    samples, asked = talk(RATE), {"vad": Vad(engine=engine), "codebooks": 2}  # type: ignore[arg-type]

    async def go() -> list[RawSocket]:
        return [
            await straight(first.url, samples, 1, **asked),
            await broken([first.url], samples, 2, **asked),
            await broken([first.url, second.url], samples, 3, **asked),
        ]

    whole, resumed, moved = asyncio.run(go())
    assert whole.opened is not None and whole.opened.vad == engine
    speech = [(m.event, m.pts) for m in whole.messages if isinstance(m, Speech)]
    assert speech == told(engine, samples) and len(speech) == 4
    np.testing.assert_array_equal(whole.codes(), offline(samples, 2))
    assert facts(resumed) == facts(whole)
    assert facts(moved) == facts(whole)


def test_it_is_told_in_time(served: Served) -> None:
    samples = talk(RATE)

    async def go() -> None:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="f32", vad=Vad(engine="energy"))
            ((_, start), *_) = told("energy", samples)
            await socket.sound(samples[: start + 4000])
            assert (await socket.until(Speech)).pts == start
            await socket.leave()

    asyncio.run(go())


def test_switched_off_and_on_and_flushed(served: Served) -> None:
    pause, speech = np.split(talk(RATE)[: 2 * RATE], 2)

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="f32", codebooks=1)
            for said in (
                *(pause, Set(vad=True), speech, Set(vad=False), speech, pause),
                *(Set(vad=True), speech, Flush(), speech),
            ):
                await (socket.sound(said) if isinstance(said, np.ndarray) else socket.say(said))
            await socket.close()
            return socket

    socket = asyncio.run(go())
    events = [m for m in socket.messages if isinstance(m, Speech)]
    assert [m.event for m in events] == ["started", "stopped"] * 3
    starts, stops = events[::2], events[1::2]
    assert [m.pts for m in stops] == [2 * RATE, 5 * RATE, 6 * RATE]
    assert all(0 <= a.pts - at * RATE < 3000 for a, at in zip(starts, (1, 4, 5), strict=True))
    off = [i for i, m in enumerate(socket.messages) if isinstance(m, WasSet)][1]
    assert socket.messages.index(stops[0]) == off - 1
    whole = np.concatenate((pause, speech, speech, pause, speech))
    wanted = np.concatenate((offline(whole, 1), offline(speech, 1)), axis=1)
    np.testing.assert_array_equal(socket.codes(), wanted)


@pytest.mark.parametrize("layout", ["flat", "delay"])
def test_layouts(serve: Callable[..., Served], layout: str) -> None:
    first, second = serve(worker="0"), serve(worker="1")
    samples, asked = talk(RATE), {"layout": layout, "codebooks": 4}
    codes = offline(samples, 4)
    wanted = flatten(codes, SIZE) if layout == "flat" else delay(codes, SIZE)

    async def go() -> list[RawSocket]:
        return [
            await straight(first.url, samples, 1, **asked),
            await broken([first.url, second.url], samples, 2, **asked),
        ]

    whole, moved = asyncio.run(go())
    assert whole.info is not None and whole.opened is not None
    info = whole.info.info
    assert info.shape[0] == len(wanted) == (1 if layout == "flat" else 4)
    assert info.codebook_size == whole.opened.codebook_size == (4096 if layout == "flat" else 1025)
    assert whole.opened.rate == info.rate and whole.opened.codebooks == 4
    np.testing.assert_array_equal(whole.codes(), wanted)
    assert facts(moved) == facts(whole)
    assert sum(m.duration for m in whole.data) == len(samples)


def test_an_echo_lays_out_what_it_sends_and_hears_the_codes(served: Served) -> None:
    samples = talk(RATE)[: 2 * RATE]

    async def go() -> RawSocket:
        return await straight(served.url, samples, 1, direction="echo", layout="delay")

    socket = asyncio.run(go())
    codes = nano().encode(samples[None])
    np.testing.assert_array_equal(socket.codes(0), delay(codes.numpy()[0], SIZE))
    heard = nano().decode(codes)[0].numpy()
    np.testing.assert_allclose(socket.codes(1), heard[:, : len(samples)], atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"direction": "decode", "format": "codes", "layout": "flat"},
            "layout is how codes come out",
        ),
        ({"direction": "decode", "format": "codes", "vad": Vad()}, "models that take sound"),
        ({"model": "mel", "layout": "delay"}, "layout is of codes"),
    ],
)
def test_what_there_is_not(served: Served, asked: dict[str, Any], words: str) -> None:
    async def go() -> None:
        async with RawSocket(served.url) as socket:
            with pytest.raises(AssertionError, match=words):
                await socket.open(**{"model": "nano", **asked})

        await until(lambda: served.engine.sessions == 0)

    asyncio.run(go())


def test_the_codebooks_of_a_layout_stay(served: Served) -> None:
    async def go() -> Error:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="f32", layout="flat", codebooks=4)
            await socket.say(Set(codebooks=2))
            error: Error = await socket.until(Error)
            return error

    assert "stays" in asyncio.run(go()).message
