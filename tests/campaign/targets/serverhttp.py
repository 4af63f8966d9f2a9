"""What clients send over HTTP: files to be encoded, tokens, offers of WebRTC, odd requests."""

from __future__ import annotations

import base64
import io
import json
import wave
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

import numpy as np

from streamenc.errors import InputError
from tests.campaign.target import mutated
from tests.support.hostserver import HostServer, host_server, requested

# Where the server says that something is not there now, or not installed.
ALLOWED = (501, 503)
PATHS = (
    *("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/v1/models"),
    *("/v1/models/nano", "/v1/models/%00", "/v1/models/../../etc/passwd", "/v1/stream"),
    *("/v1/room/a", "/v1/realtime", "/v1/offer/x", "/v1/encode", "/static/x.js", "/\ud800"),
)
METHODS = ("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "PATCH", "X")
ODD = (
    "",
    "0",
    "-1",
    "1.5",
    "nan",
    "1e309",
    "x" * 300,
    "\0",
    "é",
    "9" * 5000,
    "[]",
    "null",
    "0,0,0",
)
QUERY = {
    "model": ("nano", "mel", "NANO"),
    "codebooks": ("1", "8", "9", "1025"),
    "dtype": ("float16", "float64"),
    "layout": ("books", "flat", "delay"),
    "hops": ("1", "25", "1000"),
    "channel": ("0", "1", "0,1", "7"),
    "size": ("8x8", "0x0", "99999x99999"),
    "fit": ("crop", "pad"),
    "filter": ("nearest",),
    "format": ("json", "arrow", "ndjson", "events", "wav", "wav-f32", "flac", "opus", "mp3"),
}
HEADERS = {
    "accept": ("application/json", "*/*;q=x", "audio/flac", "text/event-stream", ",,;;"),
    "content-type": ("application/json", "multipart/form-data", "audio/wav", "x"),
    "content-length": ("0", "-1", "99999999999999999999", "x"),
    "authorization": ("Bearer x", "Bearer", "Basic \x7f"),
    "origin": ("null", "http://evil", "file://"),
    "host": ("evil", "[::1", ""),
    "range": ("bytes=0-", "bytes=-1"),
    "if-none-match": ("*", '"x"'),
}
OFFER = """v=0
o=- 4003 4003 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0 1
a=msid-semantic:WMS *
m=audio 9 UDP/TLS/RTP/SAVPF 96 0 8
c=IN IP4 127.0.0.1
a=sendrecv
a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid
a=mid:0
a=msid:5a 1b
a=rtcp:9 IN IP4 0.0.0.0
a=rtcp-mux
a=ssrc:1234 cname:aa
a=rtpmap:96 opus/48000/2
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host
a=end-of-candidates
a=ice-ufrag:RQ5d
a=ice-pwd:ByW9NJS4gkIVKIrZ6kdcC2
a=fingerprint:sha-256 {print}
a=setup:actpass
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 127.0.0.1
a=mid:1
a=sctp-port:5000
a=max-message-size:65536
a=ice-ufrag:RQ5d
a=ice-pwd:ByW9NJS4gkIVKIrZ6kdcC2
a=fingerprint:sha-256 {print}
a=setup:actpass
""".replace("{print}", ":".join(["0A"] * 32)).replace("\n", "\r\n")


class ServerHttp:
    """A request to the app.

    An input is JSON: `method`, `path`, `query`, `headers` and `body` in base64. Any other bytes are
    a file that is posted to be encoded.
    """

    seconds, peak_bytes = 2.0, 150 << 20

    def __init__(self, server: HostServer) -> None:
        self._server = server

    def case(self, rng: Random) -> bytes:
        match rng.randrange(8):
            case 0:
                return _recipe(rng, rng.choice(METHODS), rng.choice(PATHS), rng.randbytes(9))
            case 1 | 2:
                offer = {"sdp": OFFER, "type": "offer", "model": "nano"}
                return _recipe(rng, "POST", "/v1/offer", _offer(offer, rng))
            case 3 | 4 | 5:
                body = rng.choice(bodies()["/v1/encode"])
                path = "/v1/encode"
            case _:
                body = rng.choice(bodies()["/v1/decode"])
                path = "/v1/decode"
        if rng.random() < 0.6:
            body = mutated(body, rng)
        return _recipe(rng, "POST", path, body)

    def take(self, data: bytes) -> None:
        try:
            asked = json.loads(data)
            body = base64.b64decode(asked["body"])
            method, path = str(asked["method"]), str(asked["path"])
            query = urlencode(
                {str(name): str(value) for name, value in asked["query"].items()}, errors="replace"
            )
            headers = [(str(name), str(value)) for name, value in asked["headers"].items()]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            method, path, query, headers, body = "POST", "/v1/encode", "model=nano", [], data
        self._server.visited(lambda: self._visit(method, path, query, headers, body))

    async def _visit(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        app = self._server.app
        answer = await requested(app, method, path, query=query, headers=headers, body=body)
        assert answer.status < 500 or answer.status in ALLOWED, answer.text
        if path == "/v1/offer" and answer.status == 200:
            gone = await requested(app, "DELETE", f"{path}/{json.loads(answer.text)['peer']}")
            assert gone.status == 204, gone.text
        if answer.status >= 400 or not answer.whole:
            raise InputError(f"{answer.status}: {answer.text[:300]}")


def _recipe(rng: Random, method: str, path: str, body: bytes) -> bytes:
    query = {"model": "nano"} if path in ("/v1/encode", "/v1/decode") else {}
    for name in rng.sample(list(QUERY), rng.choice((0, 0, 1, 1, 2))):
        query[name] = rng.choice((*QUERY[name], *QUERY[name], rng.choice(ODD)))
    headers = {}
    for name in rng.sample(list(HEADERS), rng.choice((0, 0, 0, 1, 2))):
        headers[name] = rng.choice(HEADERS[name])
    asked = {"method": method, "path": path, "query": query, "headers": headers}
    return json.dumps({**asked, "body": base64.b64encode(body).decode()}).encode()


def _offer(offer: dict[str, Any], rng: Random) -> bytes:
    lines = OFFER.split("\r\n")
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 2:
                lines[at] = mutated(lines[at].encode(), rng).decode(errors="replace")
            case 3:
                start, _, rest = lines[at].partition(":")
                lines[at] = f"{start}:{rng.choice((*ODD, rest + ' ' + rest))}"
    offer["sdp"] = "\r\n".join(lines or [""])
    if rng.random() < 0.2:
        offer[rng.choice((*offer, "codebooks", "hops", "vad", "size"))] = rng.choice(
            (None, 0, [], {})
        )
    body = json.dumps(offer).encode()
    return mutated(body, rng) if rng.random() < 0.1 else body


@cache
def bodies() -> dict[str, list[bytes]]:
    """Good ones, by where they belong."""
    sound = (np.sin(np.arange(2400) / 7) * 9000).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 24_000, 0, "NONE", ""))
        writer.writeframes(sound.tobytes())
    wav = file.getvalue()
    server = host_server()

    async def encoded() -> list[bytes]:
        answers = [
            await requested(
                server.app, "POST", "/v1/encode", query=f"model=nano&format={name}", body=wav
            )
            for name in ("json", "arrow", "ndjson")
        ]
        assert [answer.status for answer in answers] == [200] * 3
        return [answer.body for answer in answers]

    return {
        "/v1/encode": [wav, wav[:44], b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile x\n"],
        "/v1/decode": [*server.call(encoded()), b'{"codes": [[1, 2], [3, 4]]}'],
    }


def target(folder: Path) -> ServerHttp:
    return ServerHttp(host_server())
