"""The command serve: as a process, with a model; and what it refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra serve")
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from streamenc.io.network.websocket.livemessages import Ack, GoAway
from tests.serve.conftest import nano
from tests.support.program import Done
from tests.support.rawsocket import RawSocket
from tests.support.served import Command, alive, arguments, command, libraries, resume_soon

Call = Callable[..., Done]
KEY, OTHER = "robots-0123456789abcdef", "others-fedcba9876543210"
RATE = 24000

assert subprocess  # the mark `process`


def sound(seconds: float) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(7)
    return (rng.standard_normal(int(RATE * seconds)) * 0.1).astype(np.float32)


async def sent(socket: RawSocket, samples: np.ndarray[Any, Any], until: int) -> None:
    """From where the stream is, up to a sample."""
    while socket.pts < until:
        await socket.sound(samples[socket.pts : min(until, socket.pts + 1500)])


async def gone_on(socket: RawSocket) -> str:
    resumed = await resume_soon(socket)
    assert resumed.exact
    socket.seq, socket.pts = resumed.next_seq, resumed.next_pts
    return resumed.source


EVIL = {"Origin": "https://evil.example"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def check_keys(server: Command) -> None:
    url = f"{server.websocket}/v1/stream"
    protocols: list[Any] = ["streamenc.v1"]

    def ways(key: str) -> list[connect]:
        return [
            connect(url, subprotocols=protocols, additional_headers=bearer(key)),
            connect(url, subprotocols=[*protocols, f"key.{key}"]),
            connect(f"{url}?token={key}", subprotocols=protocols),
        ]

    for way in ways(KEY):
        async with way as client:
            assert client.subprotocol == "streamenc.v1"
    for way in ways("wrong-0123456789abcdef"):
        with pytest.raises(InvalidStatus) as caught:
            async with way:
                pass
        assert caught.value.response.status_code == 401
        assert b"wrong-" not in (caught.value.response.body or b"")
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, subprotocols=protocols, additional_headers=EVIL):
            pass
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stream_outlives_processes(tmp_path: Path, all_of_them: bool) -> None:
    """I/O processes; the engine, and at last the server: its codes are those of the whole."""
    samples = sound(3.0)
    keys = tmp_path / "keys"
    keys.write_text(f"robot {KEY}\n")
    keys.chmod(0o600)
    options = ["-m", "nano", "--key-file", str(keys), "--drain", "4", "-v"]

    async def first(server: Command, socket: RawSocket) -> None:
        await check_keys(server)
        await socket.open(model="nano", format="f32", window=64)
        await sent(socket, samples, 10_000)
        for number in range(6):  # whichever process it comes to, it is where it was
            await socket.leave(abort=True)
            assert await gone_on(socket) == "memory"
            await sent(socket, samples, 11_000 + 1000 * number)
        assert not any("libtorch" in libraries(pid) for pid in server.children("io"))
        for pid in server.children("io"):
            os.kill(pid, signal.SIGKILL)
        await socket.ended()
        assert await gone_on(socket) == "store"
        await sent(socket, samples, 30_000)
        if not all_of_them:
            await sent(socket, samples, len(samples))
            await socket.close()
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait, 10) == 0
            return
        (engine,) = server.children("engine")
        os.kill(engine, signal.SIGKILL)
        await socket.ended()
        assert await gone_on(socket) == "store"
        await sent(socket, samples, 40_000)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        await socket.until(GoAway)
        assert await asyncio.to_thread(server.process.wait, 10) == 0
        assert time.monotonic() - began < 4.5
        await socket.leave()

    async def second(server: Command, socket: RawSocket) -> None:
        socket.url = server.websocket
        assert await gone_on(socket) == "store"
        await sent(socket, samples, len(samples))
        await socket.until(Ack)
        await socket.close()

    async def main() -> RawSocket:
        socket = RawSocket("", **bearer(KEY))
        with command(tmp_path, *options, "--workers", "2") as server:
            socket.url = server.websocket
            await asyncio.to_thread(server.ready)
            children = server.children()
            assert len(children) == 3
            assert not any(KEY in str(arguments(pid)) for pid in children)
            await first(server, socket)
            assert not any(map(alive, children))
            assert KEY not in server.said() and "GET" not in server.said().replace("GET '", "")
            assert "ASGI" not in server.said() and "WS '/v1/stream' 401" in server.said()
        if all_of_them:
            with command(tmp_path, *options) as server:
                await second(server, socket)
            assert KEY not in server.said() and "WS '/v1/stream' 503" in server.said()
        return socket

    socket = asyncio.run(main())
    whole = nano().encode(samples[None]).numpy()[0]
    np.testing.assert_array_equal(socket.codes(), whole)


@pytest.mark.slow
def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    """What the engine says, and its exit code; nothing is left."""
    with command(tmp_path, "-m", "no-such-model") as server:
        assert server.process.wait(60) == 1
        assert "streamenc: 'no-such-model' is neither a file, a folder nor" in server.said()
        assert not server.children()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bind", "0.0.0.0:80"], "other machines can connect there: give keys"),
        (["--bind", "nonsense"], "other machines can connect there"),
        (["--bind", "a:b"], "wanted HOST:PORT"),
        (["--key-file", "/no/such/file"], "cannot read the keys of /no/such/file"),
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key are given together"),
        (["--tls-cert", "/no.pem", "--tls-key", "/no.pem"], "cannot read the TLS certificate"),
        (["--origin", "evil"], "wanted https://app.example, or *"),
        (["--store", "/proc/none"], "/proc/none cannot be the store"),
        (["-m", "nano"], "-m nano is given twice"),
        (["-m", "mel", "--set", "a=1"], "--set is of one model"),
        (["--max-message", "many"], "wanted a number of bytes"),
        (["--device", "all", "--device", "cpu"], "--device all is given alone"),
        (["--sessions", "0"], "greater than or equal to 1"),
    ],
)
def test_what_is_refused(call: Call, tmp_path: Path, options: list[str], message: str) -> None:
    done = call("serve", "-m", "nano", "--store", tmp_path / "store", *options)
    assert done.code in (1, 2), done
    assert message in " ".join(done.error.replace("│", " ").split())


def test_keys_of_the_environment(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMENC_KEYS", OTHER[:12])
    done = call("serve", "-m", "nano")
    assert done.code == 2 and "$STREAMENC_KEYS: key 1 has a key of 12 letters" in done.error
    assert OTHER[:12] not in done.error


def test_the_extra_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.cli.serve.find_spec", lambda name: name != "uvicorn" or None)
    done = call("serve", "-m", "nano")
    assert done.code == 2 and "serve needs uvicorn: pip install 'streamenc[serve]'" in done.error


def test_help_has_examples(call: Call) -> None:
    done = call("serve", "--help")
    assert done.code == 0 and "streamenc serve -m nano -m kyutai/mimi --sessions 64" in done.out
