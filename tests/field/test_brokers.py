"""MQTT brokers as they are met: restarted, with limits, without some of what MQTT can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from aiomqtt import MqttCodeError, MqttError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from streamenc.errors import InputError, TransportError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.network.mqtt.mqtt_client import Client
from streamenc.io.network.mqtt.mqttsink import MqttSink
from streamenc.io.network.mqtt.mqttsource import MqttSource
from tests.io.network.mqtt.test_mqtt import (
    CODES,
    code_frame,
    collect,
    opened,
    run,
    until,
    vanish,
)
from tests.support.broker import MOSQUITTO, Broker

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the program mosquitto"),
]


@contextmanager
def broker(folder: Path, *config: str, **options: Any) -> Iterator[Broker]:
    made = Broker(folder, "\n".join(("allow_anonymous true", *config)), **options)
    made.start()
    try:
        yield made
    finally:
        made.kill()


def large(seq: int, columns: int) -> Frame:
    return code_frame(seq, data=np.zeros((8, columns), np.uint16))


def restarts(folder: Path, times: int, end: Callable[[Broker], None]) -> tuple[list[int], int]:
    """What arrived while a broker that remembers was restarted, and how much was written."""
    got: list[Frame] = []
    written = 0

    async def main() -> None:
        nonlocal written
        sink, source = MqttSink(made.url(), qos=1), MqttSource(made.url())
        ready = anyio.Event()

        async def write() -> None:
            nonlocal written
            while not ready.is_set():
                await sink.write(code_frame(written))
                written += 1
                await anyio.sleep(0.01)

        async with opened(sink, source), anyio.create_task_group() as tasks:
            await sink.open(CODES)
            await source.open()
            tasks.start_soon(collect, source, got)
            tasks.start_soon(write)
            for _ in range(times):
                await anyio.sleep(0.4)
                await anyio.to_thread.run_sync(end, made)
                await anyio.sleep(0.3)
                await anyio.to_thread.run_sync(made.start)
                await until(lambda: sink._connected)
            await anyio.sleep(0.2)
            ready.set()
            await until(lambda: not sink._queue)
            await sink.aclose()
        assert (sink.dropped, source.lost, source._forgotten, source.broken) == (0, 0, 0, "")
        assert any(f"was lost {times} times" in remark for remark in sink.remarks)

    with broker(folder, persistent=True) as made:
        run(main)
    return [frame.seq for frame in got], written


def test_qos_1_loses_nothing_when_a_broker_that_remembers_is_restarted(tmp_path: Path) -> None:
    seqs, written = restarts(tmp_path, 2, Broker.stop)
    assert seqs == list(range(written)) and written > 50


@pytest.mark.slow
def test_qos_1_loses_nothing_over_ten_restarts(tmp_path: Path) -> None:
    seqs, written = restarts(tmp_path, 10, Broker.stop)
    assert seqs == list(range(written)) and written > 250


@pytest.mark.parametrize("qos", [0, 1])
def test_a_frame_above_the_limit_that_the_broker_tells_is_refused(tmp_path: Path, qos: int) -> None:
    async def main() -> None:
        sink = MqttSink(made.url(), qos=qos)
        async with opened(sink):
            await sink.open(CODES)
            with pytest.raises(InputError, match="up to 2000 bytes; raise its limit .mosquitto"):
                await sink.write(large(0, 1000))
        sink, source = MqttSink(made.url(), qos=qos), MqttSource(made.url())
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            for frame in (code_frame(0), large(1, 1000), code_frame(2)):
                await sink.write(frame)
            await sink.aclose()
            got: list[Frame] = []
            await collect(source, got)
        assert [(f.seq, f.discontinuity) for f in got] == [(0, False), (2, True)]
        assert sink.dropped == source.lost == 1
        assert "1 frames were dropped as they were too long" in sink.remarks[0]
        assert "1 frames were lost on the way" in source.remarks[0]

    with broker(tmp_path, "max_packet_size 2000") as made:
        run(main)


def test_a_stream_whose_every_frame_is_above_the_limit_is_refused_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        sink = MqttSink(made.url())
        async with opened(sink):
            with pytest.raises(TransportError, match="each frame takes 24000 bytes or more, and"):
                await sink.open(pictures)

    pictures = type(CODES)("video", CODES.time_base, CODES.rate, (3, None, 80, 100), "uint8")
    with broker(tmp_path, "max_packet_size 2000") as made:
        run(main)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(
    ("config", "columns", "told"),
    [
        ("message_size_limit 2000", 1000, "no frame of 16.* bytes gets through.*limit of size"),
        ("acl_file {folder}/acl", 1, "refuses to publish a frame .*Not authorized .*may this user"),
    ],
)
def test_what_the_broker_refuses_without_having_said_so_is_told(
    tmp_path: Path, qos: int, config: str, columns: int, told: str
) -> None:
    """Also where frames ask for no answer: a longest one so far does."""
    (tmp_path / "acl").write_text("topic speech/info\n")

    async def main() -> None:
        sink = MqttSink(made.url(), qos=qos)
        async with opened(sink):
            await sink.open(CODES)
            await sink.write(large(0, columns))
            with pytest.raises(TransportError, match=told):
                await sink.aclose()

    with broker(tmp_path, config.format(folder=tmp_path)) as made:
        run(main)


def test_frames_over_a_quota_are_dropped_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Client.send

    async def limited(client: Client, topic: str, packet: bytes, *arguments: Any) -> int:
        if topic.endswith("/data") and sink._writer.through > 3 and packet[4:5] == b"D":
            return 151  # quota exceeded
        return await send(client, topic, packet, *arguments)

    monkeypatch.setattr(Client, "send", limited)

    async def main() -> None:
        async with opened(sink):
            await sink.open(CODES)
            for seq in range(5):
                await sink.write(code_frame(seq))
                await until(lambda: not sink._queue)
            await sink.aclose()
        assert sink.dropped == 2
        assert any("refused them: Quota exceeded (151)" in remark for remark in sink.remarks)

    with broker(tmp_path) as made:
        sink = MqttSink(made.url(), qos=1)
        run(main)


def test_a_broker_that_retains_nothing_and_knows_qos_0_only(tmp_path: Path) -> None:
    async def main() -> None:
        sink = MqttSink(made.url(), qos=1)
        async with opened(sink):
            with pytest.raises(TransportError, match="no quality of service 1; write qos=0"):
                await sink.open(CODES)
        sink, source = MqttSink(made.url()), MqttSource(made.url())
        async with opened(sink, source):
            await sink.open(CODES)
            assert await source.open() == CODES  # the sink was first: it says it again
            for seq in range(20):
                await sink.write(code_frame(seq))
            await sink.aclose()
            got: list[Frame] = []
            await collect(source, got)
        assert [f.seq for f in got] == list(range(20)) and source.lost == 0
        assert "retains nothing" in sink.remarks[-1]

    with broker(tmp_path, "retain_available false", "max_qos 0") as made:
        run(main)


def test_frames_that_nobody_is_subscribed_to_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        sink = MqttSink(made.url(), qos=1)
        async with opened(sink):
            await sink.open(CODES)
            for seq in range(5):
                await sink.write(code_frame(seq))
            await sink.aclose()
        assert (sink.unheard, sink.dropped) == (5, 0)
        assert "of 5 frames that nobody was subscribed" in sink.remarks[0]

    with broker(tmp_path) as made:
        run(main)


def test_a_stream_that_broke_or_vanished_is_no_orderly_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.mqttsink.LINGER_S", 0.1)

    async def main() -> None:
        sink, source = MqttSink(made.url()), MqttSource(made.url())
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            await sink.write(code_frame(0))
            sink.broken = "the microphone was unplugged"
            await sink.aclose()
            got: list[Frame] = []
            await collect(source, got)
            assert len(got) == 1 and source.lost == 0
            assert source.broken.endswith("broke off: the microphone was unplugged")
        sink, source = MqttSink(made.url()), MqttSource(made.url())
        async with opened(sink, source):
            await sink.open(CODES)
            await source.open()
            await sink.write(code_frame(0))
            assert (await anext(source.frames())).seq == 0 and not source.broken
            vanish(sink)
            await until(lambda: source.broken)
            assert source.broken == "the publisher went away without an end"

    with broker(tmp_path) as made:
        run(main)


def test_frames_that_waited_too_long_for_the_broker_are_dropped(tmp_path: Path) -> None:
    async def main() -> None:
        sink = MqttSink(made.url(), qos=1, max_age_ms=300)
        source = MqttSource(made.url())
        got: list[Frame] = []
        async with opened(sink, source), anyio.create_task_group() as tasks:
            await sink.open(CODES)
            await source.open()
            tasks.start_soon(collect, source, got)
            await sink.write(code_frame(0))
            await until(lambda: got)
            await anyio.to_thread.run_sync(made.stop)
            await until(lambda: not sink._connected)
            for seq in range(1, 41):
                await sink.write(code_frame(seq))
                await anyio.sleep(0.02)
            await anyio.to_thread.run_sync(made.start)
            await until(lambda: sink._connected)
            await sink.write(code_frame(41))
            await sink.aclose()
        seqs = [f.seq for f in got]
        assert 0 < sink.dropped < 41 and seqs == [0, *range(sink.dropped + 1, 42)]
        assert [f.seq for f in got if f.discontinuity] == [seqs[1]]
        assert any("longer than max_age_ms=300" in remark for remark in sink.remarks)

    with broker(tmp_path, persistent=True) as made:
        run(main)


def test_two_ends_with_one_client_id_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = (MqttSink(made.url(), client_id="twin") for _ in "12")
        async with opened(first, second):
            await first.open(CODES)
            await second.open(CODES)
            await until(lambda: first.remarks)
            assert first.remarks[0].endswith("has another program the client_id 'twin'?")
            # As brokers say it that give a reason.
            said = MqttError("the connection broke")
            said.__cause__ = MqttCodeError(ReasonCode(PacketTypes.DISCONNECT, identifier=142))
            with pytest.raises(TransportError, match="our client_id 'twin' and took our place"):
                first._broker.lost(said)

    with broker(tmp_path) as made:
        run(main)


def test_a_port_that_nobody_listens_at_is_no_question_of_tls() -> None:
    async def main() -> None:
        sink = MqttSink("mqtt://127.0.0.1:9/speech")
        async with opened(sink):
            began = time.monotonic()
            with pytest.raises(TransportError, match=r"refused; is it running there\?$"):
                await sink.open(CODES)
            assert time.monotonic() - began < 3

    run(main)


@pytest.mark.parametrize("node", [MqttSink, MqttSource])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mqtt://host/$SYS/broker", r"begin with \$ are the broker's own"),
        ("mqtt://host/$share/group/topic", r"begin with \$ .* take another topic"),
        ("mqtt://host/" + "t" * 70_000, "at most 65000 bytes"),
        ("mqtt://[::1/topic", "an IPv6 host in brackets"),
        ("mqtt://ann:pass/word@host/topic", "or password / : @ # . written as %2F"),
        ("mqtt://ann:1/word+@host/topic", "must be mqtt://"),
    ],
)
def test_topics_and_addresses_that_cannot_be(
    node: Callable[[str], object], address: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        node(address)
    assert "word+" not in str(caught.value) and "'pass" not in str(caught.value)
