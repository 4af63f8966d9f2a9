"""What clients say over a server's WebSockets: streams, rooms, and OpenAI's realtime events."""

from __future__ import annotations

import base64
import json
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from streamenc.errors import InputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network import wire
from streamenc.serve.streamsocket import CLOSE_CODES
from tests.campaign.target import mutated
from tests.serve.hostilewriter import ODD, Writer
from tests.support.hostserver import AppSocket, HostServer, host_server

# Before the client is gone, which ends what was begun.
AT_WORK_SECONDS = 0.02
INTERNAL = CLOSE_CODES["internal"]
SOUND = base64.b64encode(np.zeros(600, "<i2").tobytes()).decode()
REALTIME: list[dict[str, Any]] = [
    {"type": "session.update", "session": {"input_audio_format": "pcm16"}},
    {"type": "session.update", "session": {"turn_detection": {"type": "server_vad"}}},
    {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}},
    {"type": "session.update", "session": {"streamenc": {"codebooks": 2, "hops": 3}}},
    *[{"type": "input_audio_buffer.append", "audio": SOUND}] * 4,
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {"type": "response.create"},
]
ROOM: list[dict[str, Any]] = [
    {"type": "produce"},
    {"type": "listen", "window": 4, "policy": "close"},
    {"type": "open", "model": "nano"},
    {"type": "resume", "token": "x", "received": 1},
]
PLAIN = [value for value in ODD if not isinstance(value, bytes)]


class ServerSockets:
    """A connection to the app: everything that it says, and then it is gone.

    An input is JSON: `path`, `query` and `messages`, texts or {"bytes": base64}. Any other bytes
    are the one packet of a connection to /v1/stream.
    """

    seconds, peak_bytes = 2.0, 100 << 20

    def __init__(self, server: HostServer) -> None:
        self._server = server

    def case(self, rng: Random) -> bytes:
        path = rng.choice(("stream", "stream", "room/a", "room/b", "realtime"))
        if path == "stream":
            messages = list(Writer(rng.randrange(2**32)).script())[:24]
            return _recipe(path, "", messages)
        if path == "realtime":
            query = rng.choice(("model=nano",) * 8 + ("", "model=%00", "model=nano&model=x"))
            return _recipe(path, query, [_json(rng, REALTIME) for _ in range(rng.randrange(12))])
        first = rng.choice(ROOM)
        messages = [_json(rng, [first])]
        writer = Writer(rng.randrange(2**32))
        for _ in range(rng.randrange(12)):
            messages.append(_packet(rng) if first["type"] == "produce" else writer.any())
        return _recipe(path, "", messages)

    def take(self, data: bytes) -> None:
        try:
            asked = json.loads(data)
            path, query = f"/v1/{asked['path']}", str(asked["query"])
            messages = [
                said if isinstance(said, str) else base64.b64decode(said["bytes"])
                for said in asked["messages"]
            ]
        except (ValueError, LookupError, TypeError, RecursionError):
            path, query, messages = "/v1/stream", "", [data]
        self._server.visited(lambda: self._visit(path, query, messages))

    async def _visit(self, path: str, query: str, messages: list[str | bytes]) -> None:
        socket = AppSocket(
            self._server.app, path, query, () if "realtime" in path else ("streamenc.v1",)
        )
        for message in messages:
            socket.send(message)
        await socket.leave()
        assert socket.closed != INTERNAL, socket.texts
        assert socket.denied < 500 or socket.denied == 503, socket.denied
        for packet in socket.packets:
            wire.decode(packet)
        errors = [told for text in socket.texts if "error" in (told := json.loads(text))["type"]]
        if errors or socket.denied:
            raise InputError(str(errors or socket.denied)[:500])


def _recipe(path: str, query: str, messages: list[str | bytes]) -> bytes:
    said = [
        {"bytes": base64.b64encode(m).decode()} if isinstance(m, bytes) else m for m in messages
    ]
    return json.dumps({"path": path, "query": query, "messages": said}).encode()


def _json(rng: Random, choices: list[dict[str, Any]]) -> str:
    """One of these, or one with another value somewhere, or broken."""
    fields = json.loads(json.dumps(rng.choice(choices)))
    if rng.random() < 0.4:
        part = fields
        while isinstance(inner := part[key := rng.choice(list(part))], dict) and inner:
            if rng.random() < 0.2:
                break
            part = inner
        part[key] = rng.choice(PLAIN)
    text = json.dumps(fields)
    if rng.random() < 0.1:
        text = mutated(text.encode(), rng).decode(errors="replace")
    return text


def _packet(rng: Random) -> bytes:
    """Of a producer."""
    packet = rng.choice(PRODUCED)
    return mutated(packet, rng) if rng.random() < 0.3 else packet


def _produced() -> list[bytes]:
    info = StreamInfo("codes", Fraction(1, 24000), Fraction(50), (8, None), "uint16", "demo", 2048)
    frames = [
        wire.encode_frame(Frame(np.full((8, 1), n, "u2"), 480 * n, 480, seq=n), info, 7)
        for n in range(4)
    ]
    return [wire.encode_info(info, 7, 10**18), *frames, wire.encode_end(wire.End(7, 4, (4,)))]


PRODUCED = _produced()


def target(folder: Path) -> ServerSockets:
    return ServerSockets(host_server())
