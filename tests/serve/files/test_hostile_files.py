"""Files of people who mean no good, or sent the wrong one; and clients that go away."""

from __future__ import annotations

import asyncio
import gzip
import io
import socket
import tempfile
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamenc.errors import TransportError
from streamenc.serve.application import application
from tests.serve.httpsite import PLACES, Visit, run, until

SECONDS = 2


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the server's that plays, if somebody gets it opened."""
    path = tmp_path_factory.mktemp("secret") / "secret.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes(b"\1\2" * 24_000 * SECONDS)
    return path


def playlists(target: str) -> dict[str, str]:
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n"
    return {
        "hls": f"{hls}#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {target}\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/mp4">'
        f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=audio 15004 RTP/AVP 0\n",
    }


@pytest.mark.parametrize("kind", ["hls", "concat", "dash", "sdp"])
def test_nothing_is_opened_that_a_body_names(visit: Visit, secret: Path, kind: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    # The spooled body lies beside others: a relative name would be safe for `concat`.
    targets = [str(secret), f"file:{secret}", f"http://127.0.0.1:{port}/secret.wav", "secret.wav"]
    bodies = [playlists(target)[kind].encode() for target in targets]

    async def main() -> None:
        async with visit() as (client, _):
            for body in bodies:
                answer = await client.post("/v1/encode?model=nano", content=body)
                assert answer.status_code == 415, answer.text
                assert answer.json()["error"]["code"] == "bad_media"
                assert "/tmp" not in answer.text

    with listener:
        run(main)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_what_is_no_media(visit: Visit, secret: Path) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            for body in (b"hello, world", b"\0" * 5000, gzip.compress(b"x" * 100), b"RIFF"):
                answer = await client.post("/v1/encode?model=nano", content=body)
                assert answer.status_code == 415, answer.text
            answer = await client.post("/v1/encode?model=nano", content=b"")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
            for body in (b"{", b'{"codes": [[1], [2, 3]]}', b'{"codes": [[70000]]}', b"\xff" * 80):
                answer = await client.post("/v1/decode?model=nano", content=body)
                assert answer.status_code in (415, 422), answer.text

    run(main)


def test_bounds(visit: Visit, secret: Path) -> None:
    body = secret.read_bytes()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    async def main() -> None:
        async with visit(max_body_bytes=len(body) - 1) as (client, _):
            for content in (body, chunks()):  # with and without a length
                answer = await client.post("/v1/encode?model=nano", content=content)
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_big")
        async with visit(max_body_seconds=SECONDS - 0.5) as (client, _):
            answer = await client.post("/v1/encode?model=nano", content=body)
            assert answer.status_code == 422 and "1.5 s" in answer.text
            lines = await client.post("/v1/encode?model=nano&format=arrow", content=body)
            assert lines.status_code == 422
            codes = {"codes": [[1] * 100_000]}
            assert (await client.post("/v1/decode?model=nano", json=codes)).status_code == 422
        async with visit() as (client, _):
            assert (await client.post("/v1/encode?model=nano", content=chunks())).is_success

    run(main)


def test_words_for_what_cannot_be(visit: Visit, secret: Path) -> None:
    body = secret.read_bytes()

    async def main() -> None:
        async with visit() as (client, site):
            for query, status, says in (
                ("model=mimi", 404, "mel"),
                ("", 400, "model"),
                ("model=nano&books=3", 400, "codebooks"),
                ("model=nano&codebooks=x", 400, "codebooks"),
                ("model=nano&codebooks=1000", 422, "codebooks"),
                ("model=nano&dtype=float16", 400, "dtype"),
                ("model=nano&size=8x8", 400, "sound"),
                ("model=nano&format=mp3", 400, "arrow"),
                ("model=nano&channel=7", 422, "channel"),
            ):
                answer = await client.post(f"/v1/encode?{query}", content=body)
                assert answer.status_code == status, (query, answer.text)
                assert says in answer.json()["error"]["message"], answer.text
            answer = await client.post(
                "/v1/encode?model=nano", content=body, headers={"accept": "image/png"}
            )
            assert answer.status_code == 406
            site.service.draining = "the server ends"
            answer = await client.post("/v1/encode?model=nano", content=body)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "ending"
            assert int(answer.headers["retry-after"]) > 0

    run(main)


def test_full(visit: Visit, secret: Path) -> None:
    body = secret.read_bytes()

    async def main() -> None:
        async with visit() as (client, site):
            engine = site.service.engine("nano")
            sessions = [await engine.open("nano").admitted() for _ in range(PLACES)]
            answer = await client.post("/v1/encode?model=nano", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
            assert int(answer.headers["retry-after"]) > 0
            for session in sessions:
                session.close()
            assert (await client.post("/v1/encode?model=nano", content=body)).is_success
        async with visit(files=1) as (client, _):
            going = asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield body[:100]
                await going.wait()
                yield body[100:]

            first = asyncio.create_task(client.post("/v1/encode?model=nano", content=slow()))
            await asyncio.sleep(0.05)
            answer = await client.post("/v1/encode?model=nano", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
            going.set()
            assert (await first).is_success
        async with visit(idle_seconds=0.1) as (client, _):
            going.clear()
            answer = await client.post("/v1/encode?model=nano", content=slow())
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "idle")

    run(main)


def test_an_engine_that_is_gone(
    visit: Visit, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = secret.read_bytes()

    async def main() -> None:
        async with visit() as (client, site):

            def gone(*_: object, **__: object) -> None:
                raise TransportError("the engine at ipc:///run/x is gone")

            monkeypatch.setattr(site.service, "engine", gone)
            answer = await client.post("/v1/encode?model=nano", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_gone")
            assert "ipc" not in answer.text

    run(main)


@pytest.mark.parametrize("format", ["json", "arrow"])
def test_work_ends_where_the_client_is_gone(
    visit: Visit, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its place and its file are given back."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(b"\1\2" * 8000 * 600)
    messages = [{"type": "http.request", "body": file.getvalue(), "more_body": False}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/encode",
        "query_string": f"model=nano&format={format}".encode(),
        "headers": [],
    }

    async def main() -> None:
        sent: list[bytes] = []
        gone = asyncio.Event()

        async def receive() -> dict[str, object]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, bytes]) -> None:
            sent.append(message.get("body", b""))

        async with visit() as (_, site):
            engine = site.service.engine("nano")
            answering = asyncio.create_task(application(site)(scope, receive, send))
            await until(lambda: engine.client_statistics().answered > 3)
            assert engine.sessions == 1
            gone.set()
            async with asyncio.timeout(5):
                await answering
            assert engine.sessions == 0
            assert len(b"".join(sent)) < 1_000_000

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(main)
    assert not list(tmp_path.glob("streamenc-*"))
