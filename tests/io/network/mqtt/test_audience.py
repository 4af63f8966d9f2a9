"""Who reads at a broker, as they say it, and who else publishes there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamenc.graph.clock import MonotonicClock
from streamenc.io.network.mqtt.audience import MAX_READERS, Audience
from streamenc.io.network.mqtt.mqtt_link import Broker
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.wire import Bye, Credit, encode_bye, encode_credit, encode_info
from tests.io.network.test_packets import CODES, code_frame


def made(frames: int = 100) -> tuple[Audience, PacketWriter]:
    writer = PacketWriter(CODES, MonotonicClock())
    for seq in range(frames):
        writer.sent(code_frame(seq))
    return Audience(Broker("mqtt://host/speech", "", 15, "", "", "", False), True), writer


def said(audience: Audience, writer: PacketWriter, name: str, received: int) -> None:
    packet = encode_credit(Credit(writer.stream, received, 1))
    audience.heard(f"speech/read/{name}", packet, writer)


def test_the_last_reader_counts_until_it_leaves_or_falls_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    audience, writer = made()
    assert audience.through() is None
    said(audience, writer, "a", 70)
    said(audience, writer, "b", 2**62)  # nobody has more than there is
    assert (audience.through(), len(audience)) == (70, 2)
    audience.heard("speech/read/a", encode_bye(Bye(writer.stream)), writer)
    assert audience.through() == 100
    monkeypatch.setattr("streamenc.io.network.mqtt.audience.SILENT_S", 0.0)
    assert audience.through() is None


def test_after_a_break_each_has_to_say_it_again() -> None:
    audience, writer = made()
    for name in ("a", "b"):
        said(audience, writer, name, 10)
    audience.away()
    said(audience, writer, "a", 20)
    assert not audience.all_back()
    said(audience, writer, "b", 5)
    assert audience.all_back() and audience.through() == 5
    audience.away()
    said(audience, writer, "a", 30)
    audience.drop_missing()
    assert audience.through() == 30


def test_a_reader_that_is_behind_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    audience, writer = made(5000)
    assert not audience.is_behind(4000)  # nobody says anything
    said(audience, writer, "a", 100)
    assert not audience.is_behind(611) and audience.is_behind(612)
    said(audience, writer, "a", 101)
    assert not audience.is_behind(612) and audience.is_behind(613)
    monkeypatch.setattr("streamenc.io.network.mqtt.audience.AHEAD_S", 0.0)
    assert not audience.is_behind(613)
    monkeypatch.setattr("streamenc.io.network.mqtt.audience.AHEAD_S", 1.0)
    assert not audience.is_behind(613 + 511) and audience.is_behind(613 + 512)


def test_strangers_take_no_memory_and_say_nothing_of_other_streams() -> None:
    audience, writer = made()
    for number in range(10 * MAX_READERS):
        said(audience, writer, str(number), 1)
    assert len(audience) == MAX_READERS
    audience, writer = made()
    audience.heard("speech/read/x", encode_credit(Credit(writer.stream ^ 2, 1, 1)), writer)
    for junk in (b"", b"junk", writer.info, writer.end()):
        audience.heard("speech/read/x", junk, writer)
    assert len(audience) == 0 and not audience.overwritten and not audience.sentences


def test_another_publisher_is_told_and_what_was_cleared_is_seen() -> None:
    audience, writer = made()
    audience.heard("speech/info", writer.info, writer)
    audience.heard("speech/info", b"junk", writer)
    assert not audience.sentences and not audience.overwritten
    audience.heard("speech/info", encode_info(replace(CODES, model="x"), 77, 1), writer)
    assert audience.sentences == [
        "another publisher sends to mqtt://host:1883/speech; give each publisher a topic of its own"
    ]
    audience.heard("speech/info", b"", writer)
    assert audience.overwritten
