"""Text as plain messages at a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import anyio
import pytest

from streamenc import io
from streamenc.graph.frames import Frame
from streamenc.io.network.text.mqtttext import MqttTextSource
from tests.support.broker import MOSQUITTO, Broker

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the program mosquitto"),
]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    made.start()
    yield made
    made.kill()


async def publish(broker: Broker, *messages: bytes, retain: bool = False) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port) as client:
        for message in messages:
            await client.publish("captions/en", message, qos=1, retain=retain)


async def take(source: MqttTextSource, count: int) -> list[Frame]:
    got: list[Frame] = []
    with anyio.fail_after(20):
        async for frame in source.frames():
            got.append(frame)
            if len(got) == count:
                break
    return got


def test_messages_are_segments_also_over_a_restart_of_the_broker(broker: Broker) -> None:
    source = io.source(broker.url("captions/en", "text+mqtt"), kind="text", queue=3, max_bytes=90)
    assert isinstance(source, MqttTextSource) and source.live
    assert source.address == f"text+{broker.url('captions/en')}"

    async def main() -> None:
        await publish(broker, b"retained", retain=True)
        try:
            await source.open()
            await publish(broker, "eins €".encode(), b"\xff", b"z" * 1000, b"")
            got = await take(source, 2)
            assert [f.data[0, 0] for f in got] == ["retained", "eins €"]
            many = [f"s{i}".encode() for i in range(8)]
            await publish(broker, *many)
            got = await take(source, 8)
            assert [f.data[0, 0].encode() for f in got] == many
            assert source.lost == 2 and got[0].discontinuity and got[0].segment == 4
            broker.stop()
            broker.start()
            with anyio.fail_after(20):
                while True:  # until it has subscribed again
                    await publish(broker, b"back")
                    with anyio.move_on_after(0.3):
                        assert (await take(source, 1))[0].data[0, 0] == "back"
                        break
            assert "was lost 1 times" in source.remarks[0]
        finally:
            await source.aclose()

    anyio.run(main)
