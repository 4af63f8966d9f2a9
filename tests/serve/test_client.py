"""streamenc.client at a real server: codes equal those of the whole, whatever breaks on the way."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import streamenc.client
from streamenc.errors import EngineFull, UsageError
from streamenc.io.network.websocket.livemessages import GoAway, Resumed
from streamenc.serve.limits import Limits
from tests.serve.conftest import Served, nano
from tests.support.tcpproxy import TcpProxy

RATE = 16_000


def sound(seconds: float = 1.0, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(int(RATE * seconds)) * 0.1).astype(np.float32)


def offline(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return nano().encode(samples[None]).numpy()[0]


def connect(*addresses: str, **options: Any) -> streamenc.client.ClientStream:
    given = {"model": "nano", "format": "f32", **options}
    return streamenc.client.connect(addresses[0], addresses=addresses[1:], **given)


async def send(stream: streamenc.client.ClientStream, samples: np.ndarray[Any, Any]) -> None:
    for at in range(0, len(samples), 777):
        await stream.send(samples[at : at + 777])
    await stream.close()


async def collect(stream: streamenc.client.ClientStream) -> np.ndarray[Any, Any]:
    pieces = [piece async for piece in stream]
    assert [piece.seq for piece in pieces] == list(range(len(pieces)))
    assert not any(piece.discontinuity for piece in pieces)
    return np.concatenate([piece.data for piece in pieces], axis=1)


async def whole(
    stream: streamenc.client.ClientStream, samples: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    _, codes = await asyncio.gather(send(stream, samples), collect(stream))
    return codes


def test_codes_and_back(served: Served):
    samples = sound()
    codes = streamenc.client.encode(served.url, samples, model="nano")
    assert np.array_equal(codes, offline(samples))
    heard = streamenc.client.decode(served.url, codes, model="nano")
    assert np.allclose(heard, nano().decode(codes[None])[0].numpy(), atol=1e-5)
    int16 = (samples * 32768).astype(np.int16)
    assert np.array_equal(
        streamenc.client.encode(served.url, int16, model="nano"),
        offline(int16.astype(np.float32) / 32768),
    )


def test_an_echo_and_its_round_trip(served: Served):
    samples = sound()

    async def main() -> None:
        async with connect(served.url, direction="echo") as stream:
            await stream.send(samples)
            passed = await stream.mark("all")
            assert passed.pts == len(samples)
            assert 0 < passed.round_trip_seconds < 10
            await stream.close()
            pieces = [piece async for piece in stream]
            assert stream.info is not None and stream.info.kind == "mux"
        codes = [piece.data for piece in pieces if piece.track == 0]
        heard = [piece.data for piece in pieces if piece.track == 1]
        assert np.array_equal(np.concatenate(codes, axis=1), offline(samples))
        assert sum(data.shape[1] for data in heard) == len(samples)

    asyncio.run(main())


def test_what_is_not_there(served: Served):
    async def main() -> None:
        with pytest.raises(UsageError, match="no encoder 'nothing' here"):
            async with connect(served.url, model="nothing"):
                pass
        with pytest.raises(UsageError):
            async with connect(served.url, codebooks=1000):
                pass

    asyncio.run(main())


def test_a_full_server_lets_the_next_one_in_when_there_is_room(serve: Callable[..., Served]):
    served = serve(limits=Limits(sessions=1))

    async def main() -> None:
        async with connect(served.url) as first:
            with pytest.raises(EngineFull):
                async with connect(served.url, patience_seconds=0.1):
                    pass
            waiting = asyncio.create_task(connect(served.url).__aenter__())
            await asyncio.sleep(0.1)
            await first.close()
            assert [piece async for piece in first] == []
            second = await waiting
            await second.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(2))
def test_connections_that_are_cut_off_at_any_byte(served: Served, seed: int):
    samples, random = sound(2.0, seed), Random(seed)

    async def main() -> None:
        cuts = [random.randint(1500, 30_000) for _ in range(8)]
        async with (
            TcpProxy(served.url, cuts) as proxy,
            connect(proxy.url, patience_seconds=5, window=random.choice((2, 256))) as stream,
        ):
            assert np.array_equal(await whole(stream, samples), offline(samples))
            assert proxy.connections == 9
            assert stream.statistics().missing == 0

    asyncio.run(main())


def test_a_connection_that_is_dead_without_a_word(served: Served):
    samples = sound()

    async def main() -> None:
        async with TcpProxy(served.url) as proxy:
            async with connect(
                proxy.url, served.url, silent_seconds=1, connect_seconds=5
            ) as stream:
                await stream.send(samples[:12_000])
                await stream.mark()
                proxy.freeze()
                await send(stream, samples[12_000:])
                assert np.array_equal(await collect(stream), offline(samples))
                assert stream.statistics().resumed == 1

    asyncio.run(main())


@pytest.mark.slow
def test_a_network_that_stands_still_for_ten_seconds(served: Served):
    samples = sound()

    async def main() -> None:
        async with TcpProxy(served.url) as proxy, connect(proxy.url) as stream:
            await stream.send(samples[:12_000])
            await stream.mark()
            proxy.freeze()
            await send(stream, samples[12_000:])
            await asyncio.sleep(10)
            proxy.thaw()
            assert np.array_equal(await collect(stream), offline(samples))

    asyncio.run(main())


def test_a_server_that_ends_is_left_for_another(serve: Callable[..., Served]):
    first, second = serve(), serve()
    samples = sound()

    async def main() -> None:
        async with connect(first.url, second.url) as stream:
            await stream.send(samples[:12_000])
            await stream.mark()
            drained = asyncio.to_thread(first.call, first.service.drain(10))
            draining = asyncio.create_task(drained)
            await send(stream, samples[12_000:])
            assert np.array_equal(await collect(stream), offline(samples))
            told = [event async for event in stream.events()]
            assert any(isinstance(event, GoAway) for event in told)
            (resumed,) = [event for event in told if isinstance(event, Resumed)]
            assert (resumed.source, resumed.exact) == ("store", True)
            await draining

    asyncio.run(main())


def test_a_snapshot_goes_on_elsewhere(serve: Callable[..., Served]):
    first, second = serve(), serve()
    samples = sound()

    async def main() -> None:
        async with connect(first.url) as stream:
            await stream.send(samples[:12_345])
            state = await stream.snapshot()
            assert state.pts == 12_345
            pieces = [await anext(stream) for _ in range(stream.statistics().unread)]
        async with connect(second.url, snapshot=state) as stream:
            await send(stream, samples[12_345:])
            pieces += [piece async for piece in stream]
        assert not any(piece.discontinuity for piece in pieces)
        codes = np.concatenate([piece.data for piece in pieces], axis=1)
        assert np.array_equal(codes, offline(samples))

    asyncio.run(main())


def test_the_example(served: Served):
    example = Path(__file__).parents[2] / "examples" / "serve_client.py"
    done = subprocess.run(
        [sys.executable, example, served.url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    times = re.findall(r"^(\d\.\d{3}) s: \[", done.stdout, re.MULTILINE)
    assert times == [f"{number / 50:.3f}" for number in range(50)]


def test_what_an_argument_may_be_is_told() -> None:
    with pytest.raises(UsageError, match=r"'mp3' - at `\$.format`; wanted one of f32, s16, "):
        streamenc.client.connect("ws://127.0.0.1:1", model="nano", format="mp3")
