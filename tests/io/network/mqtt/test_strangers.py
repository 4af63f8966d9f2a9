"""Others at the topic of a stream: forgers, second publishers, twins; and brokers that forbid."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import aiomqtt
import anyio
import pytest

from streamenc.errors import TransportError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.network.mqtt.mqtt_client import Client, MqttError
from streamenc.io.network.mqtt.mqttsink import MqttSink
from streamenc.io.network.mqtt.mqttsource import MqttSource
from streamenc.io.network.wire import (
    Credit,
    End,
    encode_credit,
    encode_end,
    encode_frame,
    encode_info,
)
from tests.io.network.mqtt.test_mqtt import CODES, broker, code_frame, collect, opened, run, until
from tests.support.broker import MOSQUITTO, Broker

__all__ = ["broker"]

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the program mosquitto"),
]


def test_a_forger_who_knows_the_stream_silences_and_ends_no_reader(broker: Broker) -> None:
    async def main() -> None:
        sink, source = MqttSink(broker.url(), qos=1), MqttSource(broker.url())
        got: list[Frame] = []
        async with opened(sink, source), anyio.create_task_group() as tasks:
            await sink.open(CODES)
            await source.open()
            tasks.start_soon(collect, source, got)
            stream = sink._writer.stream
            forged = [
                *(encode_frame(code_frame(s, pts=1), CODES, stream) for s in (2**61, 2**61 + 1)),
                encode_end(End(stream, 5, (5,))),
                encode_end(End(stream, 4, (4,))),
                encode_frame(code_frame(4000, pts=1), CODES, stream),
            ]
            infos = [
                encode_info(replace(CODES, model="other"), stream, 1),
                *(encode_info(replace(CODES, model="other"), 77 + i, 1) for i in range(20)),
                encode_info(CODES, 7, 1),
            ]
            async with aiomqtt.Client("127.0.0.1", broker.port) as bad:
                for seq in range(30):
                    await sink.write(code_frame(seq))
                    if seq == 4:
                        await until(lambda: len(got) == 5)
                        for packet in forged:
                            await bad.publish("speech/data", packet, qos=1)
                        for packet in infos:
                            await bad.publish("speech/info", packet, qos=1)
                        junk = encode_credit(Credit(stream, 2**62, 1))
                        await bad.publish("speech/read/x", junk, qos=1)
                await until(lambda: sink.remarks)
            await sink.aclose()
        assert [f.seq for f in got if f.pts != 1] == list(range(30))
        assert len(got) <= 32 and source.lost == sink.dropped == 0
        for node in (sink, source):
            assert any("another publisher sends to mqtt://" in said for said in node.remarks)

    run(main)


def test_what_somebody_cleared_is_said_again(broker: Broker) -> None:
    async def main() -> None:
        sink, late = MqttSink(broker.url()), MqttSource(broker.url(), timeout_s=5)
        async with opened(sink, late):
            await sink.open(CODES)
            async with aiomqtt.Client("127.0.0.1", broker.port) as bad:
                await bad.publish("speech/info", b"", qos=1, retain=True)
            assert await late.open() == CODES

    run(main)


def test_a_reader_says_how_far_it_is_and_the_end_waits_for_it(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqttsink.THROUGH_S", 10.0)
    monkeypatch.setattr("streamenc.io.network.mqtt.mqttsink.LINGER_S", 10.0)

    async def main() -> None:
        sink, source = MqttSink(broker.url(), qos=1), MqttSource(broker.url())
        got: list[Frame] = []
        async with opened(sink, source), anyio.create_task_group() as tasks:
            await sink.open(CODES)
            await source.open()
            await until(lambda: sink._audience.through() == 0)
            tasks.start_soon(collect, source, got)
            for seq in range(200):
                await sink.write(code_frame(seq))
            await sink.aclose()
            assert sink._audience.through() == 200
        assert len(got) == 200
        assert len(sink._audience) == 1

    run(main)


def test_two_programs_with_one_client_id_end_with_a_sentence(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqtt_link.MAX_SHORT", 3)

    async def main() -> None:
        first, second = (MqttSink(broker.url(), client_id="twin") for _ in "12")
        async with opened(first, second):
            await first.open(CODES)
            await second.open(CODES)
            await until(lambda: any(sink._task and sink._task.done() for sink in (first, second)))
            loser = first if first._task and first._task.done() else second
            with pytest.raises(TransportError, match="client_id 'twin'"):
                for seq in range(3):
                    await loser.write(code_frame(seq))

    run(main)


def test_a_reader_that_may_say_nothing_reads_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text(
        "user reader\ntopic read speech/info\ntopic read speech/data\n"
        "user writer\ntopic write speech/info\ntopic write speech/data\n"
    )
    made = Broker(tmp_path, f"allow_anonymous true\nacl_file {tmp_path}/acl")
    made.start()

    async def main() -> None:
        sink = MqttSink(made.url(user="writer@"), qos=1)
        source = MqttSource(made.url(user="reader@"))
        got: list[Frame] = []
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            for seq in range(20):
                await sink.write(code_frame(seq))
            await until(lambda: not source._reports)
            await sink.aclose()
            await collect(source, got)
        assert [f.seq for f in got] == list(range(20)) and len(sink._audience) == 0

    try:
        run(main)
    finally:
        made.kill()


def test_brokers_that_hang_up_on_what_is_not_allowed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Client.send

    async def hung_up(client: Client) -> None:
        client._client._sock.shutdown(2)
        await until(lambda: client.broken)
        raise MqttError("the connection broke")

    async def forbidden(client: Client, topics: list[str]) -> list[int]:
        await hung_up(client)
        return []

    async def send_or_hang_up(client: Client, topic: str, *arguments: object) -> int:
        if "/read/" in topic:
            await hung_up(client)
        return await send(client, topic, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "listen", forbidden)
    monkeypatch.setattr(Client, "send", send_or_hang_up)

    async def main() -> None:
        sink, source = MqttSink(broker.url(), qos=1), MqttSource(broker.url())
        got: list[Frame] = []
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            await until(lambda: not source._reports)
            for seq in range(20):
                await sink.write(code_frame(seq))
            await sink.aclose()
            await collect(source, got)
        assert [f.seq for f in got] == list(range(20)) and source.lost == 0

    run(main)


@pytest.mark.parametrize("node", [MqttSink, MqttSource])
def test_a_password_comes_from_the_address_a_file_or_the_environment(
    node: type[MqttSink] | type[MqttSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "password"
    file.write_text("from a file\nand more\n")
    monkeypatch.setenv("STREAMENC_MQTT_PASSWORD", "from the environment")

    def password(address: str, **given: str) -> str | None:
        return node(f"mqtt://{address}host/topic", **given)._broker._password

    assert password("ann:from%20it@") == "from it"
    assert password("ann@") == "from the environment"
    assert password("ann@", password_file=str(file)) == "from a file"
    assert password("") is None  # nobody asked for a login
    for address in ("", "ann:from%20it@"):
        with pytest.raises(UsageError, match=r"takes the place of a password in the address"):
            password(address, password_file=str(file))
    for contents in ("", "\n", "x" * 5000):
        file.write_text(contents)
        with pytest.raises(UsageError, match="no password in its first line"):
            password("ann@", password_file=str(file))
    with pytest.raises(UsageError, match="cannot read password_file='/nowhere'"):
        password("ann@", password_file="/nowhere")
