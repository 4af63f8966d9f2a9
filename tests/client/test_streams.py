"""The client at a server that is cut off, dies, refuses and ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import numpy as np
import pytest

import streamenc.client
from streamenc.errors import EngineFull, InputError, TransportError, UsageError
from streamenc.io.network.websocket.livemessages import (
    Error,
    GoAway,
    Resumed,
    Speech,
    encode_message,
    read_from_client,
)
from tests.support.streamserver import StreamServer, codes_of

SAMPLES = np.random.default_rng(0).integers(-3000, 3000, 2000).astype(np.int16)


def run(main: Callable[[], Awaitable[None]], seconds: float = 30) -> None:
    """What a test leaves open warns, and warnings are errors."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await main()

    asyncio.run(limited())
    gc.collect()


def connect(server: StreamServer, **options: Any) -> streamenc.client.ClientStream:
    return streamenc.client.connect(server.url, **{"model": "stand-in", "window": 16, **options})


async def all_codes(stream: streamenc.client.ClientStream, pieces: list[Any]) -> None:
    async for piece in stream:
        pieces.append(piece)


async def whole(server: StreamServer, **options: Any) -> tuple[np.ndarray[Any, Any], Any]:
    """The codes of SAMPLES, sent in odd pieces, and the statistics."""
    async with connect(server, **options) as stream:
        pieces: list[Any] = []
        reading = asyncio.create_task(all_codes(stream, pieces))
        for at in range(0, len(SAMPLES), 37):
            await stream.send(SAMPLES[at : at + 37])
        await stream.close()
        await reading
        assert [piece.seq for piece in pieces] == list(range(len(pieces)))
        assert not any(piece.discontinuity for piece in pieces)
        assert pieces[3].seconds == pytest.approx(12 / 16000)
        return np.concatenate([piece.data for piece in pieces], axis=1), stream.statistics()


def test_a_stream():
    async def main() -> None:
        async with StreamServer() as server:
            codes, statistics = await whole(server)
            assert np.array_equal(codes, codes_of(SAMPLES))
            assert statistics.connections == 1
            assert statistics.resumed == statistics.missing == statistics.unread == 0
            assert statistics.bytes_sent > 2 * len(SAMPLES)
            assert server.paths == ["/v1/stream"]

    run(main)


@pytest.mark.parametrize("seed", range(6))
def test_connections_that_are_cut_off_anywhere(seed: int):
    random = Random(seed)

    async def main() -> None:
        async with StreamServer(window=random.choice((1, 4, 16))) as server:
            # The first one lives to say that the stream is there.
            server.kill_after = [random.randint(3, 60) for _ in range(12)]
            server.die = [random.random() < 0.4 for _ in range(12)]
            codes, statistics = await whole(server)
            assert np.array_equal(codes, codes_of(SAMPLES))
            assert statistics.connections == server.connections > 3
            assert statistics.missing == 0

    run(main)


def test_marks_flushes_and_what_is_set():
    async def main() -> None:
        async with StreamServer() as server, connect(server) as stream:
            await stream.send(SAMPLES[:8])
            passed = await stream.mark("half")
            assert (passed.id, passed.pts) == ("half", 8)
            assert 0 < passed.round_trip_seconds < 5
            assert stream.statistics().round_trip_seconds == pytest.approx(
                passed.round_trip_seconds, abs=0.01
            )
            await stream.set(codebooks=1)
            await stream.send(SAMPLES[8:16])
            assert await stream.flush() == 16
            snapshot = await stream.snapshot()
            assert (snapshot.blob, snapshot.seq, snapshot.pts) == (b"abc", 6, 16)
            assert stream.info is not None and stream.info.kind == "codes"
            pieces = [await anext(stream) for _ in range(4)]
            assert [piece.data.shape for piece in pieces] == [(2, 1), (2, 1), (1, 1), (1, 1)]

    run(main)


def test_events_come_as_a_second_iterator_or_to_a_function():
    async def main() -> None:
        heard: list[Any] = []
        async with StreamServer() as server:
            async with connect(server, on_event=heard.append) as stream:
                await stream.mark("a")
            async with connect(server) as stream:
                await stream.mark("b")
                await stream.close()
                assert [event.id async for event in stream.events()] == ["b"]
        assert [event.id for event in heard] == ["a"]

    run(main)


def test_what_the_server_refuses_is_told_once_and_the_stream_goes_on():
    async def main() -> None:
        async with StreamServer() as server:
            server.refuses = {1, 2}
            async with connect(server) as stream:
                await stream.send(SAMPLES[:4])
                with pytest.raises(InputError, match="did not take this: not this one"):
                    await stream.mark("no")
                await stream.send(SAMPLES[4:8])  # refused, too
                await stream.mark("behind")
                assert server.stream is not None and server.stream.pts == 4
                with pytest.raises(InputError, match="message 2: not this one"):
                    await stream.flush()
                await stream.send(SAMPLES[8:12])  # flagged, or the server would not have it
                assert await stream.flush() == 12
                assert stream.statistics().refused == 2

    run(main)


def test_samples_are_cut_to_what_the_server_takes_and_kept_in_bounds():
    async def main() -> None:
        async with StreamServer(checkpoint=10**6) as server:
            async with connect(server, keep_bytes=3000, window=4096) as stream:
                sending = asyncio.create_task(stream.send(SAMPLES))
                async for _ in stream:
                    if stream.statistics().kept_bytes >= 3000:
                        break
                await asyncio.sleep(0.05)
                assert not sending.done()  # until something is acknowledged
                assert 3000 <= stream.statistics().kept_bytes < 4100
                sending.cancel()
                await asyncio.wait({sending})
                # What was not sent may be sent again: the time goes on where it stopped.
                assert stream._input is not None and stream._input.pts < len(SAMPLES)

    run(main)


def test_a_server_that_is_full_is_asked_again_when_it_says():
    async def main() -> None:
        async with StreamServer() as server:
            server.refusing = [(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"})]
            async with connect(server):
                assert len(server.paths) == 3
            server.refusing = [(503, {"Retry-After": "40"})]
            with pytest.raises(EngineFull, match="takes no more streams.*not now"):
                async with connect(server, patience_seconds=5):
                    pass
            assert len(server.paths) == 4

    run(main)


def test_another_server_is_tried_where_one_is_full_or_gone():
    async def main() -> None:
        async with StreamServer() as full, StreamServer() as server:
            full.refusing = [(503, {"Retry-After": "30"})]
            gone = "ws://127.0.0.1:9"
            async with streamenc.client.connect(
                gone, addresses=[full.url, server.url], model="stand-in"
            ) as stream:
                await stream.send(SAMPLES[:8])
            assert (full.connections, server.connections) == (0, 1)

    run(main)


@pytest.mark.parametrize(("status", "error"), [(401, UsageError), (404, UsageError)])
def test_what_no_retry_can_help(status: int, error: type[Exception]):
    async def main() -> None:
        async with StreamServer() as server:
            server.refusing = [(status, {})]
            with pytest.raises(error, match=str(status)):
                async with connect(server):
                    pass
            assert len(server.paths) == 1

    run(main)


def test_a_key_goes_into_a_header_and_never_into_a_message(caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    secret = "s3cr3t-abcdef"
    (tmp_path / "key").write_text(secret + "\n")

    async def main() -> None:
        async with StreamServer() as server:
            server.refusing = [(503, {"Retry-After": "0"})]
            async with connect(server, key_file=tmp_path / "key", headers={"X-Room": "1"}):
                pass
            assert server.headers[0]["Authorization"] == f"Bearer {secret}"
            assert server.headers[1]["X-Room"] == "1"
            server.refusing = [(401, {})]
            with pytest.raises(UsageError) as told:
                async with streamenc.client.connect(f"{server.url}?token={secret}", model="m"):
                    pass
            assert server.paths[-1] == f"/v1/stream?token={secret}"
            assert secret not in str(told.value)
        with pytest.raises(TransportError) as gone:
            async with streamenc.client.connect(f"ws://127.0.0.1:9/?token={secret}", model="m"):
                pass
        assert secret not in str(gone.value)

    run(main)
    ours = [record for record in caplog.records if record.name.startswith("streamenc")]
    assert ours and not any(secret in record.getMessage() for record in ours)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"direction": "sideways"}, "direction"),
        ({"codebooks": 0}, "codebooks"),
        ({"vad": {"loudness": 3}}, "loudness"),
        ({"key": "a", "key_file": "b"}, "one of them"),
        ({"keep_bytes": 0}, "keep_bytes"),
    ],
)
def test_arguments_that_make_no_sense(given: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        streamenc.client.connect("ws://localhost", **{"model": "m", **given})


@pytest.mark.parametrize("address", ["localhost:1", "ftp://a", "ws://", "ws://a:b@c", "ws://a:x"])
def test_addresses_that_make_no_sense(address: str):
    with pytest.raises(UsageError, match="wanted ws://HOST:PORT"):
        streamenc.client.connect(address, model="m")


def test_the_first_word_of_a_server_is_an_error():
    async def main() -> None:
        asked: list[str] = []

        async def refuse(socket: Any) -> bool:
            asked.append(read_from_client(await socket.recv()).format)
            await socket.send(encode_message(Error("unknown_model", "no such model", True)))
            await socket.close(1008)
            return True

        async with StreamServer() as server:
            server.greet = refuse
            for options in ({}, {"format": "s16"}, {"direction": "decode"}):
                with pytest.raises(UsageError, match="no such model"):
                    async with connect(server, **options):
                        pass
        # It may be one of images, whose usual format the server knows.
        assert asked == ["f32", "", "s16", ""]

    run(main)


def test_who_is_idle_comes_back_with_the_next_input():
    async def main() -> None:
        async with StreamServer() as server:
            async with connect(server) as stream:
                await stream.send(SAMPLES[:8])
                await stream.mark()
                (socket,) = server._live
                await socket.close(4408)
                await asyncio.sleep(0.3)
                assert server.connections == 1
                await stream.send(SAMPLES[8:16])
                await stream.mark()
                assert (server.connections, stream.statistics().resumed) == (2, 1)
            async with connect(server, give_up_seconds=0.1) as stream:
                (socket,) = server._live
                await socket.close(4408)
                with pytest.raises(TransportError, match="idle"):
                    await anext(stream)

    run(main)


def test_what_resumes_a_stream_is_shown_to_nobody():
    async def main() -> None:
        async with StreamServer() as server, connect(server) as stream:
            assert stream.opened.session == "s-1"
            assert (stream._ledger.token, stream.opened.token) == ("t0", "")
            server.cut_all()
            assert (await anext(stream.events())).token == ""
            assert stream._ledger.token == "t1"

    run(main)


def test_a_stream_that_is_kept_no_longer():
    async def main() -> None:
        async with StreamServer() as server:
            async with connect(server) as stream:
                server.greet = expired
                server.cut_all()
                with pytest.raises(TransportError, match="expired"):
                    async for _ in stream:
                        pass
                with pytest.raises(TransportError, match="expired"):
                    await stream.send(SAMPLES[:4])

    async def expired(socket: Any) -> bool:
        await socket.recv()
        await socket.send(encode_message(Error("expired", "no such stream", True)))
        await socket.close(4410)
        return True

    run(main)


def test_a_server_that_goes_away_is_left_for_another():
    async def main() -> None:
        async with StreamServer() as first, StreamServer() as second:
            async with streamenc.client.connect(
                first.url, addresses=[second.url], model="stand-in"
            ) as stream:
                await stream.send(SAMPLES[:16])
                await stream.mark()
                second.stream = first.stream  # one store for both
                (socket,) = first._live
                await socket.send(encode_message(GoAway(5, "is told to")))
                async for event in stream.events():
                    if isinstance(event, Resumed):
                        break
                await stream.send(SAMPLES[16:32])
                await stream.close()
                codes = np.concatenate([piece.data async for piece in stream], axis=1)
                assert np.array_equal(codes, codes_of(SAMPLES[:32]))
                assert (first.connections, second.connections) == (1, 1)
                assert second.paths == ["/v1/stream?resume"]

    run(main)


def test_speech_is_an_event():
    async def main() -> None:
        async with StreamServer() as server, connect(server) as stream:
            assert server.stream is not None
            server.stream.output.append([encode_message(Speech("started", 160, 0))])
            await stream.mark()
            assert await anext(stream.events()) == Speech("started", 160, 0)

    run(main)


def test_leaving_ends_the_stream_at_the_server():
    async def main() -> None:
        async with StreamServer() as server:
            with pytest.raises(RuntimeError, match="mine"):
                async with connect(server, window=1) as stream:
                    await stream.send(SAMPLES)  # more than anybody takes
                    raise RuntimeError("mine")
            assert server.stream is not None
            assert server.stream.closed
            with pytest.raises(TransportError):
                await stream.mark()

    run(main)


def test_in_one_call():
    async def serve(ready: asyncio.Future[str]) -> None:
        async with StreamServer() as server:
            ready.set_result(server.url)
            await asyncio.Event().wait()

    async def main() -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(ready))
        codes = await asyncio.to_thread(
            streamenc.client.encode, await ready, SAMPLES, model="stand-in"
        )
        assert np.array_equal(codes, codes_of(SAMPLES))
        with pytest.raises(InputError, match="float64"):  # and the server is told that it ends
            await asyncio.to_thread(
                streamenc.client.encode, ready.result(), SAMPLES / 2, model="stand-in"
            )
        task.cancel()
        await asyncio.wait({task})

    run(main)
