"""/v1/realtime as raw JSON, on a toy model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from streamenc.serve.adapters import realtime
from streamenc.serve.guard import Admission, Guard, Refused
from streamenc.serve.site import Site
from tests.serve.adapters.standin import StandinService, codes_of

HOP = 480
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
    assert not service.live
