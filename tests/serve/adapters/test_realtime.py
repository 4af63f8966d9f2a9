"""/v1/realtime as raw JSON, on a toy model."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soxr
from starlette.applications import Starlette
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import connect

import streamenc
from streamenc.serve.adapters import realtime
from streamenc.serve.guard import Admission, Guard, Refused
from streamenc.serve.limits import Limits
from streamenc.serve.site import Site
from tests.serve.adapters.standin import StandinService, codes_of
from tests.serve.conftest import Served, nano

pytestmark = pytest.mark.timeout(20)
HOP = 480
CLIP = Path(__file__).parents[3] / "examples" / "data" / "speech.flac"
NOISE = np.random.default_rng(0).integers(-9000, 9000, 24_000, dtype=np.int16)


class Locked(Guard):
    """Lets in who has the key."""

    def admit(self, connection: Any) -> Admission:
        if connection.headers.get("authorization") != "Bearer s3cret":
            raise Refused(401, "no_key", "a key is wanted")
        return Admission("mine")


class Client:
    """Sends and awaits events."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send_json({"type": kind, **fields})

    def append(self, samples: np.ndarray[Any, Any], cut: int = 1000) -> None:
        for start in range(0, len(samples), cut):
            piece = samples[start : start + cut]
            self.send("input_audio_buffer.append", audio=base64.b64encode(piece).decode())

    def until(self, kind: str) -> dict[str, Any]:
        while True:
            event = self.socket.receive_json()
            self.seen.append(event)
            if event["type"] == kind:
                return event

    def codes(self, response_id: str) -> np.ndarray[Any, Any]:
        deltas = [
            e["delta"] for e in self.seen if e.get("response_id") == response_id and "delta" in e
        ]
        return np.concatenate([np.array(delta) for delta in deltas], axis=1)


@contextmanager
def connected(
    service: StandinService, guard: Guard | None = None, query: str = "model=toy", **options: Any
) -> Iterator[Client]:
    app = Starlette(routes=realtime.routes(Site(service, guard or Guard())))
    with TestClient(app) as http, http.websocket_connect(f"/v1/realtime?{query}", **options) as ws:
        yield Client(ws)


@pytest.fixture
def service() -> StandinService:
    return StandinService()


def test_tokens_come_while_sound_does_and_commit_ends_the_models_stream(service):
    with connected(service) as client:
        session = client.until("session.created")["session"]
        assert session["input_audio_format"] == "pcm16" and session["turn_detection"] is None
        assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
        assert session["streamenc"]["hop"] == HOP and session["streamenc"]["codebooks"] == 8
        client.append(NOISE[:2500])
        first = client.until("response.tokens.delta")  # before any commit
        assert first["frames"] == [0, 1] and first["codebooks"] == 8 and first["pts"] == 0
        client.send("input_audio_buffer.commit")
        committed = client.until("input_audio_buffer.committed")
        assert committed["previous_item_id"] is None and committed["audio_end_ms"] == 104
        done = client.until("response.tokens.done")
        assert done["status"] == "completed" and done["frames"] == 6
        assert done["item_id"] == committed["item_id"] == first["item_id"]
        assert (client.codes(done["response_id"]) == codes_of(NOISE[:2500], HOP)).all()
        client.append(NOISE[2500:9000])
        client.send("response.create")
        second = client.until("input_audio_buffer.committed")
        assert second["previous_item_id"] == committed["item_id"]
        done = client.until("response.tokens.done")
        assert (done["audio_start_ms"], done["audio_end_ms"]) == (104, 375)
        assert (client.codes(done["response_id"]) == codes_of(NOISE[2500:9000], HOP)).all()
        client.send("response.create")  # its tokens are here already
        client.send("input_audio_buffer.commit", event_id="e7")
        error = client.until("error")["error"]
        assert error["code"] == "input_audio_buffer_commit_empty" and error["event_id"] == "e7"
    assert len({event["event_id"] for event in client.seen}) == len(client.seen)
    until(lambda: not service.live)


def test_clear_drops_what_gave_no_tokens_yet(service):
    with connected(service) as client:
        client.until("session.created")
        client.append(NOISE[:HOP])
        cut = client.until("response.tokens.delta")
        client.socket.portal.call(service.live[0].running.clear)
        client.append(NOISE[:4800])
        client.send("input_audio_buffer.clear")
        done = client.until("response.tokens.done")
        assert done["status"] == "cancelled" and done["response_id"] == cut["response_id"]
        client.until("input_audio_buffer.cleared")
        client.append(NOISE[7000:9000])
        client.send("input_audio_buffer.commit")
        client.socket.portal.call(service.live[0].running.set)
        after = client.until("response.tokens.done")
        assert after["response_id"] != cut["response_id"]
        # A fresh stream of the model, and the clock of all that was appended.
        assert (client.codes(after["response_id"]) == codes_of(NOISE[7000:9000], HOP)).all()
        assert after["audio_start_ms"] == 220
        assert client.codes(cut["response_id"]).shape[1] == 1
        client.send("input_audio_buffer.clear")  # of nothing
        client.until("input_audio_buffer.cleared")
        client.append(NOISE[:HOP])
        client.until("response.tokens.delta")


def test_server_vad_tells_and_commits(service):
    detection = {"type": "server_vad", "silence_duration_ms": 100, "threshold": 0.4}
    speech = np.concatenate([np.zeros(4800, np.int16), NOISE[:9600], np.zeros(4800, np.int16)])
    with connected(service) as client:
        client.until("session.created")
        client.send("session.update", session={"turn_detection": detection})
        session = client.until("session.updated")["session"]
        assert session["turn_detection"]["create_response"] and session["streamenc"]["vad"]
        asked = service.asked[-1][0].vad
        assert (asked.threshold, asked.silence_ms, asked.padding_ms) == (0.4, 100, 300)
        client.append(speech)
        started = client.until("input_audio_buffer.speech_started")
        stopped = client.until("input_audio_buffer.speech_stopped")
        committed = client.until("input_audio_buffer.committed")
        assert started["audio_start_ms"] == 200 and stopped["audio_end_ms"] == 680
        assert started["item_id"] == stopped["item_id"] == committed["item_id"]
        turn = speech[: committed["audio_end_ms"] * 24]
        done = client.until("response.tokens.done")
        assert (client.codes(done["response_id"]) == codes_of(turn, HOP)).all()
        nested = {"audio": {"input": {"turn_detection": detection | {"create_response": False}}}}
        client.send("input_audio_buffer.clear")
        client.send("session.update", session=nested)
        client.until("session.updated")
        client.append(speech)
        client.until("input_audio_buffer.speech_stopped")
        client.send("input_audio_buffer.commit")
        done = client.until("response.tokens.done")
        assert (client.codes(done["response_id"]) == codes_of(speech, HOP)).all()
        assert done["audio_start_ms"] == 800
        client.send("session.update", session={"turn_detection": None})
        assert client.until("session.updated")["session"]["turn_detection"] is None
        assert service.asked[-1][0].vad is None
        client.append(NOISE[:HOP])  # in a new stream, on the session's clock
        delta = client.until("response.tokens.delta")
        assert delta["audio_start_ms"] == 1600 and delta["pts"] == 0


@pytest.mark.parametrize(
    ("law", "session"),
    [
        ("pcm_mulaw", {"input_audio_format": "g711_ulaw"}),
        ("pcm_alaw", {"audio": {"input": {"format": {"type": "audio/pcma"}}}}),
    ],
)
def test_telephones(service, law, session):
    encoded = NOISE[:500].tobytes()
    decoder = av.CodecContext.create(law, "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    samples = decoder.decode(av.Packet(encoded))[0].to_ndarray()[0]
    with connected(service) as client:
        client.send("session.update", session=session)
        client.until("session.updated")
        assert service.asked[-1][0].rate == 8000
        client.send("input_audio_buffer.append", audio=base64.b64encode(encoded).decode())
        client.send("input_audio_buffer.commit")
        done = client.until("response.tokens.done")
        assert done["audio_end_ms"] == 125
        assert (client.codes(done["response_id"]) == codes_of(samples, 160)).all()


def test_our_own_settings(service):
    with connected(service) as client:
        client.send("session.update", session={"streamenc": {"codebooks": 2, "encoding": "base64"}})
        updated = client.until("session.updated")["session"]["streamenc"]
        assert updated["codebooks"] == 2 and updated["encoding"] == "base64"
        client.append(NOISE[:HOP])
        delta = client.until("response.tokens.delta")
        assert delta["codebooks"] == 2 and delta["shape"] == [2, 1] and delta["dtype"] == "u2"
        codes = np.frombuffer(base64.b64decode(delta["delta"]), "<u2").reshape(2, 1)
        assert (codes == codes_of(NOISE[:HOP], HOP, 2)).all()
        client.send("session.update", session={"streamenc": {"layout": "flat"}})
        assert client.until("error")["error"]["code"] == "session_update_while_appending"
        client.send("input_audio_buffer.commit")
        client.send("session.update", session={"streamenc": {"layout": "flat"}})
        client.until("session.updated")
        assert service.asked[-1][0].layout == "flat" and service.asked[-1][0].codebooks == 2
        assert len(service.live) == 1
        # Where what is asked for is not there, what was there goes on.
        client.send("session.update", session={"streamenc": {"codebooks": 99, "layout": "books"}})
        assert "toy has 8" in client.until("error")["error"]["message"]
        client.append(NOISE[:HOP])
        assert client.until("response.tokens.delta")["shape"] == [2, 1]


@pytest.mark.parametrize(
    ("event", "code", "words"),
    [
        ({"type": "input_audio_buffer.append", "audio": "?"}, "invalid_value", "no base64"),
        ({"type": "input_audio_buffer.append", "audio": "äö=="}, "invalid_value", "no base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "invalid_value", "3 bytes"),
        ({"type": "input_audio_buffer.append"}, "invalid_event", "audio"),
        ({"type": "input_audio_buffer.append", "audio": [1]}, "invalid_event", "audio"),
        ({"type": "conversation.item.create"}, "invalid_value", "conversation.item.create"),
        ({"type": 5}, "invalid_event", "malformed"),
        (
            {"type": "session.update", "session": {"input_audio_format": "mp3"}},
            "invalid_value",
            "mp3",
        ),
        ({"type": "session.update", "session": {"model": "x"}}, "cannot_update_model", "toy"),
        (
            {"type": "session.update", "session": {"turn_detection": {"type": "semantic_vad"}}},
            "invalid_value",
            "server_vad",
        ),
        (
            {"type": "session.update", "session": {"streamenc": {"books": 4}}},
            "invalid_value",
            "books",
        ),
        (
            {
                "type": "session.update",
                "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            },
            "invalid_value",
            "24000",
        ),
    ],
)
def test_what_is_malformed_is_refused_and_changes_nothing(service, event, code, words):
    with connected(service) as client:
        created = client.until("session.created")["session"]
        client.socket.send_json(event | {"event_id": "mine"})
        error = client.until("error")
        assert error["error"]["type"] == "invalid_request_error"
        assert error["error"]["code"] == code and words in error["error"]["message"]
        assert error["error"]["event_id"] == "mine" and error["event_id"]
        client.send("session.update", session={})
        assert client.until("session.updated")["session"] == created
        client.append(NOISE[:HOP])
        assert client.until("response.tokens.delta")["delta"] == codes_of(NOISE[:HOP], HOP).tolist()


def test_no_json_and_binary(service):
    with connected(service) as client:
        client.until("session.created")
        client.socket.send_text("[" * 20_000)
        assert client.until("error")["error"]["code"] == "invalid_event"
        client.socket.send_bytes(b"SE")
        assert "binary" in client.until("error")["error"]["message"]


def test_what_ends_a_session():
    small = StandinService(Limits(max_message_bytes=1000))
    with connected(small) as client:
        client.append(NOISE[:1000])
        assert client.until("error")["error"]["code"] == "too_big"
        with pytest.raises(WebSocketDisconnect) as ended:
            client.until("never")
        assert ended.value.code == 1009
    until(lambda: not small.live)
    with connected(StandinService(Limits(idle_seconds=0.05))) as client:
        assert client.until("error")["error"]["code"] == "idle"
        with pytest.raises(WebSocketDisconnect) as ended:
            client.until("never")
        assert ended.value.code == 4408
    service = StandinService()
    with connected(service) as client:
        client.until("session.created")
        client.socket.portal.call(service.live[0].end, "ending", "the server ends")
        error = client.until("error")["error"]
        assert (error["type"], error["code"]) == ("server_error", "ending")
        with pytest.raises(WebSocketDisconnect) as ended:
            client.until("never")
        assert ended.value.code == 1012


def test_who_comes_in(service):
    def refused(**options: Any) -> tuple[int, dict[str, Any], Any]:
        with pytest.raises(WebSocketDenialResponse) as denied, connected(**options):
            pass
        response = denied.value
        return response.status_code, response.json()["error"], response.headers

    locked = Locked()
    status, error, _ = refused(service=service, guard=locked)
    assert status == 401 and error["code"] == "no_key"
    wrong = ["realtime", "openai-insecure-api-key.wrong"]
    assert refused(service=service, guard=locked, subprotocols=wrong)[0] == 401
    right = ["realtime", "openai-insecure-api-key.s3cret", "openai-beta.realtime-v1"]
    with connected(service, locked, subprotocols=right) as client:
        assert client.socket.accepted_subprotocol == "realtime"
    assert service.asked[-1][1] == "mine"
    with connected(service, locked, headers={"Authorization": "Bearer s3cret"}) as client:
        assert client.socket.accepted_subprotocol is None
    status, error, _ = refused(service=service, query="model=gpt-realtime")
    assert status == 400 and "gpt-realtime" in error["message"]
    status, error, headers = refused(service=StandinService(Limits(sessions=0)))
    assert status == 503 and error["code"] == "full" and headers["retry-after"] == "1"
    until(lambda: not service.live)


class Talk:
    """One connection to a real server; `tokens` by item, as far as they came."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._deltas: dict[str, list[np.ndarray[Any, Any]]] = {}

    async def say(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def append(self, samples: np.ndarray[Any, Any], pieces: int) -> None:
        for piece in np.array_split(samples, pieces):
            audio = base64.b64encode(piece).decode()
            await self.say("input_audio_buffer.append", audio=audio)

    async def until(self, kind: str) -> dict[str, Any]:
        while True:
            event = json.loads(await self._socket.recv())
            if "delta" in event:
                self._deltas.setdefault(event["item_id"], []).append(np.array(event["delta"]))
            if event["type"] in (kind, "error"):
                return event

    def tokens(self, item: str) -> np.ndarray[Any, Any]:
        return np.concatenate(self._deltas[item], axis=1)


@asynccontextmanager
async def talking(served: Served) -> AsyncIterator[Talk]:
    async with connect(f"{served.url}/v1/realtime?model=nano", max_size=None) as socket:
        yield Talk(socket)


def encoded(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    sound = soxr.resample(samples / np.float32(32768), 24_000, nano().sample_rate)
    return nano().encode(sound[None]).numpy()[0]


def test_a_real_model(served: Served) -> None:
    """What is appended in pieces of any size is encoded as the whole turn is, offline."""

    async def talk() -> None:
        async with talking(served) as client:
            long = np.tile(NOISE, 4)  # one event of it is more than a packet may have
            for samples, pieces in ((NOISE[:9_777], 7), (NOISE[9_777:], 3), (long, 1)):
                await client.append(samples, pieces)
                await client.say("input_audio_buffer.commit")
                done = await client.until("response.tokens.done")
                assert (client.tokens(done["item_id"]) == encoded(samples)).all()

    asyncio.run(talk())
    until(lambda: not served.service.streams)


def test_real_speech(served: Served) -> None:
    read = streamenc.read(CLIP, sample_rate=24_000, channels=1).data[0, :60_000]
    silence = np.zeros(24_000, np.int16)
    sound = np.concatenate([silence, (read * 32767).astype(np.int16), silence, silence])

    async def talk() -> None:
        async with talking(served) as client:
            detection = {"type": "server_vad", "silence_duration_ms": 400, "threshold": 0.5}
            await client.say("session.update", session={"turn_detection": detection})
            session = (await client.until("session.updated"))["session"]
            assert session["streamenc"]["vad"] in ("silero", "energy")
            await client.append(sound, 150)
            started = await client.until("input_audio_buffer.speech_started")
            assert 600 <= started["audio_start_ms"] <= 1700
            committed = await client.until("input_audio_buffer.committed")
            assert committed["item_id"] == started["item_id"]
            done = await client.until("response.tokens.done")
            turn = sound[: 24 * done["audio_end_ms"]]
            wanted = encoded(turn)
            got = client.tokens(done["item_id"])
            # The end is rounded to milliseconds here: the last frames may see other samples.
            assert abs(got.shape[1] - wanted.shape[1]) <= 1
            assert (got[:, :-4] == wanted[:, : got.shape[1] - 4]).all()

    asyncio.run(talk())


def until(true: Callable[[], bool]) -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about within 4 s")
