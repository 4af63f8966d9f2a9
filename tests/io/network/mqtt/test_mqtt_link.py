"""Connections to a broker: passwords, TLS, addresses, and brokers that are not there."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import anyio
import numpy as np
import pytest

from streamenc.errors import TransportError, UsageError
from streamenc.io.network.mqtt.mqttsink import MqttSink
from streamenc.io.network.mqtt.mqttsource import MqttSource
from tests.io.network.mqtt.test_mqtt import CODES, code_frame, collect, opened, run
from tests.support.broker import MOSQUITTO, Broker

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the program mosquitto"),
]


def test_passwords(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    passwords = tmp_path / "passwords"
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", passwords, "ann", "p@ss:word/"], check=True, timeout=20
    )
    broker = Broker(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    broker.start()

    async def main() -> None:
        url = broker.url(user="ann:p%40ss%3Aword%2F@")
        sink, source = MqttSink(url), MqttSource(url)
        async with opened(sink, source):
            await sink.open(CODES)
            assert await source.open() == CODES
        for user in ("", "ann@", "ann:wrong@", "bob:p%40ss%3Aword%2F@"):
            for node in (MqttSink(broker.url(user=user)), MqttSource(broker.url(user=user))):
                async with opened(node):
                    with pytest.raises(
                        TransportError, match="refuses us.*check user, password"
                    ) as e:
                        await (node.open(CODES) if isinstance(node, MqttSink) else node.open())
                    assert "wrong" not in str(e.value)

    try:
        run(main)
    finally:
        broker.kill()
    assert "p@ss" not in caplog.text and "p%40ss" not in caplog.text


def make_certificates(folder: Path) -> None:
    """An authority, and a server's certificate for localhost that it signed."""

    def openssl(*arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60
        )

    (folder / "names").write_text("subjectAltName=DNS:localhost")
    key = ["-newkey", "rsa:2048", "-nodes"]
    openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority"
    )
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-extfile", "names", "-out", "server.pem"),
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqtt_link.CONNECT_S", 1.5)
    make_certificates(tmp_path)
    broker = Broker(
        tmp_path,
        f"allow_anonymous true\ncertfile {tmp_path}/server.pem\nkeyfile {tmp_path}/server.key",
        host="localhost",
    )
    broker.start()
    url = broker.url(scheme="mqtts")

    async def main() -> None:
        ca_file = str(tmp_path / "ca.pem")
        sink, source = MqttSink(url, ca_file=ca_file), MqttSource(url, insecure="true")
        async with opened(sink, source):
            await sink.open(CODES)
            assert await source.open() == CODES
            await sink.write(code_frame(0))
            await sink.aclose()
            assert [f.seq async for f in source.frames()] == [0]
        for bad in (MqttSink(url), MqttSink(broker.url())):
            async with opened(bad):
                with pytest.raises(TransportError, match="cannot connect.*TLS|certificate"):
                    await bad.open(CODES)

    try:
        run(main)
    finally:
        broker.kill()


def test_a_packet_that_the_broker_refuses_does_not_block_the_stream(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true\nmax_packet_size 2000")
    broker.start()

    async def main() -> None:
        sink, source = MqttSink(broker.url(), qos=1), MqttSource(broker.url())
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            await sink.write(code_frame(0))
            await sink.write(code_frame(1, data=np.zeros((8, 1000), np.uint16)))
            await sink.write(code_frame(2))
            frames = source.frames()
            got = [await anext(frames) for _ in range(2)]
            await frames.aclose()
        assert [(f.seq, f.discontinuity) for f in got] == [(0, False), (2, True)]
        assert sink.dropped == source.lost == 1

    try:
        run(main)
    finally:
        broker.kill()


def test_broker_that_is_away_or_silent_at_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqtt_link.CONNECT_S", 0.5)

    async def main() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
            for state in ("closed", "silent"):
                if state == "silent":
                    silent.listen()
                for node in (
                    MqttSink(f"mqtt://127.0.0.1:{port}/speech"),
                    MqttSource(f"mqtt://127.0.0.1:{port}/speech"),
                ):
                    async with opened(node):
                        began = time.monotonic()
                        with pytest.raises(
                            TransportError, match=f"127.0.0.1:{port}/speech.*running"
                        ):
                            await (node.open(CODES) if isinstance(node, MqttSink) else node.open())
                        assert time.monotonic() - began < 5

    run(main)


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("mqtt://host", {}, "must be mqtt://"),
        ("mqtt:///topic", {}, "must be mqtt://"),
        ("mqtt://host/a/+/b", {}, "without \\+, #"),
        ("mqtt://host:x/topic", {}, "host or port"),
        ("mqtt://host/topic", {"qos": "2"}, "'qos'"),
        ("mqtt://host/topic", {"keepalive": "often"}, "'keepalive'"),
        ("mqtt://host/topic", {"ca_file": "ca.pem"}, "write mqtts://"),
        ("mqtts://host/topic", {"ca_file": "/nowhere/ca.pem"}, "ca_file='/nowhere/ca.pem'"),
        ("mqtts://host/topic", {"insecure": "maybe"}, "'insecure'"),
    ],
)
def test_wrong_addresses_and_options(address: str, options: dict[str, str], message: str) -> None:
    for node in (MqttSink, MqttSource):
        with pytest.raises(UsageError, match=message):
            node(address, **options)


def test_the_extra_is_named_where_it_is_missing() -> None:
    program = (
        "import sys; sys.modules['aiomqtt'] = None\n"
        "from streamenc.errors import UsageError\n"
        "from streamenc.io import sink\n"
        "try: sink('mqtt://host/topic')\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'streamenc[mqtt]'" in done.stdout


def test_open_and_frames_can_be_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqtt_link.CONNECT_S", 0.5)
    broker = Broker(tmp_path)
    broker.start()

    async def main() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            sink = MqttSink(f"mqtt://127.0.0.1:{silent.getsockname()[1]}/speech")
            async with opened(sink):
                with anyio.move_on_after(0.2) as scope:
                    await sink.open(CODES)
                assert scope.cancelled_caught
        source = MqttSource(broker.url(), timeout_s=0.3)
        async with opened(source):
            with pytest.raises(TransportError, match="nothing was published at mqtt://127.0.0.1"):
                await source.open()
        sink, source = MqttSink(broker.url()), MqttSource(broker.url())
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, source, [])
                await anyio.sleep(0.1)
                began = time.monotonic()
                source.stop()
            assert time.monotonic() - began < 1

    try:
        run(main)
    finally:
        broker.kill()
