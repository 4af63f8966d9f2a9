"""POST /v1/offer with aiortc at both ends, over loopback."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
import soxr

pytest.importorskip("aiortc", reason="needs the extra webrtc")
from starlette.requests import HTTPConnection

from streamenc.io.network.websocket.livemessages import (
    Close,
    Closed,
    Error,
    Flush,
    Flushed,
    Mark,
    Marked,
    Opened,
    Set,
    WasSet,
)
from streamenc.io.network.wire import Data, Info
from streamenc.serve.adapters.rtcpeer import RtcPeer
from streamenc.serve.guard import Admission, Guard
from streamenc.serve.limits import Limits
from streamenc.serve.streams.livestream import LiveStream
from tests.campaign.targets.serverhttp import OFFER
from tests.serve.adapters.rtcclient import RATE, Microphone, RtcClient
from tests.serve.conftest import Served, nano
from tests.support.hostserver import host_server, requested
from tests.support.pipes import until

pytestmark = pytest.mark.timeout(40)


def tone(seconds: float) -> np.ndarray[Any, Any]:
    at = np.arange(round(RATE * seconds)) / RATE
    return (8000 * np.sin(2 * np.pi * 300 * at * (1 + at))).astype(np.int16)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, np.ndarray[Any, Any], bool]]:
    """What the server decoded, as Opus loses some."""
    pieces: list[tuple[int, np.ndarray[Any, Any], bool]] = []
    take = RtcPeer._on_sound

    def listen(self: RtcPeer, pts: int, samples: Any, missing: bool) -> None:
        pieces.append((pts, samples, missing))
        take(self, pts, samples, missing)

    monkeypatch.setattr(RtcPeer, "_on_sound", listen)
    return pieces


async def all_heard(heard: Any, seconds: float) -> None:
    """A message may overtake the last of the sound."""
    for _ in range(100):
        if heard and heard[-1][0] >= round(seconds * RATE) - 960:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)


def encoded(sound: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    mono = sound.astype(np.float32).mean(0) / 32768
    return nano().encode(soxr.resample(mono, RATE, nano().sample_rate)[None]).numpy()[0]


def test_a_microphones_tokens_equal_those_of_what_was_heard(served: Served, heard: Any) -> None:
    async def talk() -> RtcClient:
        async with RtcClient(served.http, Microphone(tone(1.0))) as client:
            opened = await client.until(Opened)
            assert opened.model == "nano" and not opened.token
            await client.track.through.wait()
            await all_heard(heard, 1.0)
            client.say(Close())
            await client.until(Closed)
        return client

    client = asyncio.run(talk())
    assert isinstance(client.messages[1], Info)
    sound = np.concatenate([samples for _, samples, _ in heard], axis=1)
    assert sound.shape[1] >= RATE * 0.8 and not any(missing for *_, missing in heard)
    np.testing.assert_array_equal(client.codes(), encoded(sound))
    gone(served)


def test_lost_packets_are_a_discontinuity_and_the_stream_goes_on(
    served: Served, heard: Any
) -> None:
    async def talk() -> RtcClient:
        client = RtcClient(served.http, Microphone(tone(1.0)))
        client.drop(lambda number: number % 20 == 12)
        async with client:
            await client.track.through.wait()
            await all_heard(heard, 1.0)
            client.say(Close())
            await client.until(Closed)
        return client

    client = asyncio.run(talk())
    gaps = [pts for pts, _, missing in heard if missing]
    assert len(gaps) == 2 and gaps[1] - gaps[0] == 20 * 960
    starts = [data.pts for data in client.data if data.discontinuity]
    assert starts == gaps
    # Each piece between gaps is one stream of the model.
    edges = [i for i, (*_, missing) in enumerate(heard) if missing] + [len(heard)]
    pieces, at = [], 0
    for edge in edges:
        pieces.append(
            encoded(np.concatenate([samples for _, samples, _ in heard[at:edge]], axis=1))
        )
        at = edge
    np.testing.assert_array_equal(client.codes(), np.concatenate(pieces, axis=1))


def test_control_messages(served: Served) -> None:
    async def talk() -> RtcClient:
        async with RtcClient(served.http, Microphone(tone(0.6)), codebooks=4) as client:
            opened = await client.until(Opened)
            assert opened.codebooks == 4
            await client.until(Data)
            client.say(Mark("first"))
            assert (await client.until(Marked)).id == "first"
            client.say(Set(codebooks=2))
            await client.until(WasSet)
            client.say(Set(codebooks=99))
            assert "99" in (await client.until(Error)).message
            await client.track.through.wait()
            client.say(Flush())
            await client.until(Flushed)
            client.say(Close())
            await client.until(Closed)
        return client

    client = asyncio.run(talk())
    books = [len(data.data) for data in client.data]
    assert set(books) == {4, 2} and books == sorted(books, reverse=True)
    numbers = [message.n for message in client.messages if hasattr(message, "n")]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"SE\x01\x03D", "bad_message"),
        ("{", "bad_message"),
        ('{"type": "resume", "token": "t", "received": 0}', "bad_message"),
    ],
)
def test_what_a_client_may_not_say(served: Served, message: bytes | str, code: str) -> None:
    async def talk() -> None:
        async with RtcClient(served.http, Microphone(tone(5.0))) as client:
            await client.until(Opened)
            client.channel.send(message)
            error = await client.until(Error)
            assert error.code == code and error.fatal

    asyncio.run(talk())
    gone(served)


def test_who_made_an_offer_ends_it_and_others_do_not(serve: Any) -> None:
    class Named(Guard):
        def admit(self, connection: HTTPConnection) -> Admission:
            return Admission(connection.headers.get("x-name", "me"))

    served = serve(limits=Limits(peers=1), guard=Named())

    async def talk() -> None:
        async with RtcClient(served.http, Microphone(tone(5.0))) as client:
            await client.until(Data)
            other = RtcClient(served.http, Microphone(tone(5.0)))
            refused = await other.offer()
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            await other.connection.close()
            async with httpx.AsyncClient(base_url=served.http) as http:
                assert (await http.delete("/v1/offer/somebody")).status_code == 404
                mine, foreign = f"/v1/offer/{client.peer}", {"x-name": "somebody else"}
                assert (await http.delete(mine, headers=foreign)).status_code == 404
                assert (await http.delete(mine)).status_code == 204
                assert (await http.delete(mine)).status_code == 404
        gone(served)
        async with RtcClient(served.http, Microphone(tone(5.0))) as client:
            await client.until(Data)

    asyncio.run(talk())
    gone(served)  # the client closed its connection


def test_offers_that_are_refused(served: Served) -> None:
    async def talk() -> None:
        client = RtcClient(served.http, Microphone(tone(0.1)))
        await client.connection.setLocalDescription(await client.connection.createOffer())
        sdp = client.connection.localDescription.sdp
        await client.connection.close()
        media = sdp.index("m=application")
        cases: list[tuple[Any, int, str]] = [
            ({"sdp": sdp, "model": "x"}, 400, "unknown_model"),
            ({"sdp": sdp, "model": "nano", "codebooks": 99}, 400, "bad_open"),
            ({"sdp": sdp, "model": "nano", "policy": "block"}, 400, "bad_message"),
            ({"sdp": sdp, "model": "nano", "type": "answer"}, 400, "bad_message"),
            ({"sdp": "v=0", "model": "nano"}, 400, "bad_offer"),
            ({"sdp": sdp[:media], "model": "nano"}, 400, "bad_offer"),
            ({"sdp": sdp + 5 * sdp[media:], "model": "nano"}, 400, "bad_offer"),
            ({"sdp": sdp.replace("sendrecv", "recvonly"), "model": "nano"}, 400, "bad_offer"),
            ({"sdp": sdp.replace("opus/48000/2", "none/8000"), "model": "nano"}, 400, "bad_offer"),
            ({"sdp": sdp.replace("a=fingerprint", "a=finger"), "model": "nano"}, 400, "bad_offer"),
            ({"sdp": sdp + 40 * "a=candidate:1\r\n", "model": "nano"}, 400, "bad_offer"),
            ([], 400, "bad_message"),
            ({"sdp": "a" * 70_000, "model": "nano"}, 413, "too_big"),
        ]
        async with httpx.AsyncClient(base_url=served.http) as http:
            for body, status, code in cases:
                answer = await http.post("/v1/offer", json=body)
                got = answer.status_code, answer.json().get("error", {}).get("code")
                assert got == (status, code), (body, answer.text)

    asyncio.run(talk())
    gone(served)


def test_a_peer_that_never_connects_gives_its_place_back(serve: Any) -> None:
    served = serve(limits=Limits(handshake_seconds=0.3))

    async def talk() -> None:
        client = RtcClient(served.http, Microphone(tone(1.0)))
        assert (await client.offer()).status_code == 200
        assert served.service.streams
        await client.connection.close()

    asyncio.run(talk())
    gone(served)


def gone(served: Served) -> None:
    """Nothing of any peer is left."""
    for _ in range(400):
        peers = [thread for thread in threading.enumerate() if "-decoder" in thread.name]
        if not served.service.streams and not peers:
            return
        time.sleep(0.02)
    raise AssertionError((served.service.streams, threading.enumerate()))


@pytest.mark.parametrize("leaving_seconds", [0.0, 0.5])
def test_a_server_that_ends_tells_its_peers_and_is_gone_soon(
    served: Served, monkeypatch: pytest.MonkeyPatch, leaving_seconds: float
) -> None:
    kept = LiveStream._kept

    async def slowly(self: LiveStream) -> None:
        await asyncio.gather(kept(self), asyncio.sleep(leaving_seconds))

    monkeypatch.setattr(LiveStream, "_kept", slowly)

    async def talk() -> float:
        async with RtcClient(served.http, Microphone(tone(20.0))) as client:
            await client.until(Data)
            began = time.perf_counter()
            await asyncio.to_thread(served.kill)
            took = time.perf_counter() - began
            error = await client.until(Error)
            assert error.code == "ending" and error.fatal
        return took

    assert asyncio.run(talk()) < 5
    gone(served)


def test_an_offer_that_is_taken_back_at_once_leaves_nothing() -> None:
    """Before anything of it has run."""
    server = host_server()
    body = json.dumps({"sdp": OFFER, "model": "nano"}).encode()

    async def come_and_go() -> None:
        made = await requested(server.app, "POST", "/v1/offer", body=body)
        assert made.status == 200, made.text
        peer = json.loads(made.body)["peer"]
        gone = await requested(server.app, "DELETE", f"/v1/offer/{peer}")
        assert gone.status == 204

    def there() -> tuple[int, int]:
        return server.engine.sessions, len(os.listdir("/proc/self/fd"))

    server.visited(come_and_go)
    before = there()
    for _ in range(3):
        server.visited(come_and_go)
    server.call(until(lambda: there() == before, 10))
