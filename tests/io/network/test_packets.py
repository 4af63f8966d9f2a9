"""Both ends of a packet stream without a network: numbering, gaps, duplicates, restarts, clocks."""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.errors import FitError, MediaError
from streamenc.graph.clock import MonotonicClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.packets import Complaints, PacketReader, PacketWriter
from streamenc.io.network.wire import Bye, Data, decode, encode_bye

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)
MUX = StreamInfo("mux", Fraction(1, 24000), Fraction(0), (), "", tracks=(CODES, CODES))
CLOCK = MonotonicClock()


class FarClock(MonotonicClock):
    """The clock of another process: it started at another time."""

    def now_ns(self) -> int:
        return super().now_ns() + 10**15


def code_frame(seq: int, **fields: object) -> Frame:
    return Frame(np.zeros((8, 1), np.uint16), seq * 1920, 1920, seq).with_(**fields)


def reading(info: StreamInfo = CODES) -> tuple[PacketWriter, PacketReader]:
    writer, reader = PacketWriter(info, CLOCK), PacketReader(CLOCK)
    reader.feed(writer.info)
    return writer, reader


@given(st.lists(st.sampled_from(["sent", "lost", "dropped", "twice"]), max_size=30))
def test_every_frame_is_delivered_once_or_counted(fates: list[str]) -> None:
    """Sent, lost on the way, dropped by the sink, or delivered twice: it all adds up."""
    writer, reader = reading()
    got: list[Frame] = []
    writer.sent(code_frame(0))
    got.append(reader.feed(writer.packet(code_frame(0))) or pytest.fail())
    for seq, fate in enumerate(fates, start=1):
        frame = code_frame(seq)
        packet = writer.packet(frame)
        (writer.dropped if fate == "dropped" else writer.sent)(frame)
        for _ in range({"sent": 1, "twice": 2}.get(fate, 0)):
            again = reader.feed(packet)
            got += [again] if again else []
    reader.feed(writer.end())
    arrived = [0, *(s for s, fate in enumerate(fates, start=1) if fate in ("sent", "twice"))]
    assert [f.seq for f in got] == arrived
    assert len(got) + reader.lost == 1 + len(fates) and reader.ended
    jumps = [b for a, b in zip(arrived, arrived[1:], strict=False) if b != a + 1]
    assert [f.seq for f in got if f.discontinuity] == jumps


def test_the_sink_itself_flags_the_frame_after_a_drop() -> None:
    """For readers that do not look at seq; per track."""
    writer = PacketWriter(MUX, CLOCK)
    writer.dropped(code_frame(0, track=1))
    flags = []
    for seq, track in [(0, 0), (1, 1), (2, 1)]:
        frame = code_frame(seq, track=track)
        packet = decode(writer.packet(frame))
        writer.sent(frame)
        assert isinstance(packet, Data)
        flags.append(packet.discontinuity)
    assert flags == [False, True, False]


def test_a_late_joiner_lost_nothing() -> None:
    writer, reader = reading()
    for seq in range(5):
        writer.sent(code_frame(seq))
    frame = reader.feed(writer.packet(code_frame(5)))
    assert frame is not None and not frame.discontinuity and reader.lost == 0


def test_data_before_any_info_are_skipped() -> None:
    writer, reader = PacketWriter(CODES, CLOCK), PacketReader(CLOCK)
    assert reader.feed(writer.packet(code_frame(0))) is None
    assert (reader.lost, reader.malformed) == (0, 0)


def test_tracks_have_gaps_of_their_own() -> None:
    writer, reader = reading(MUX)
    got = [
        reader.feed(writer.packet(code_frame(seq, track=track)))
        for track, seq in [(0, 0), (1, 7), (0, 1), (1, 9), (0, 2)]
    ]
    assert [f is not None and f.discontinuity for f in got] == [False, False, False, True, False]
    assert reader.lost == 1


def test_latency_survives_the_change_of_clocks() -> None:
    """The age of a frame is the same on the clock of the reader's process."""
    writer, reader = PacketWriter(CODES, FarClock()), PacketReader(CLOCK)
    reader.feed(writer.info)
    arrived = FarClock().now_ns() - 250_000_000
    frame = reader.feed(writer.packet(code_frame(0, arrived_ns=arrived)))
    assert frame is not None
    assert 250 <= (CLOCK.now_ns() - frame.arrived_ns) / 1e6 < 1000
    frame = reader.feed(writer.packet(code_frame(1)))  # not known: it arrives here and now
    assert frame is not None and (CLOCK.now_ns() - frame.arrived_ns) / 1e6 < 1000
    future = FarClock().now_ns() + 10**10  # the publisher's machine is ahead: no negative latency
    frame = reader.feed(writer.packet(code_frame(2, arrived_ns=future)))
    assert frame is not None and frame.arrived_ns <= CLOCK.now_ns()


def test_a_restart_with_the_same_stream_goes_on() -> None:
    old, reader = reading()
    reader.feed(old.packet(code_frame(9)))
    new = PacketWriter(CODES, CLOCK)
    assert new.stream != old.stream
    assert reader.feed(new.packet(code_frame(0))) is None  # before its info
    reader.feed(new.info)
    got = [reader.feed(new.packet(code_frame(seq))) for seq in (1, 2)]
    assert [f and (f.seq, f.discontinuity) for f in got] == [(1, True), (2, False)]
    assert reader.lost == 1 and "vanished without an end" in reader.broken
    reader.feed(old.end())
    assert not reader.ended
    reader.feed(new.end())
    assert reader.ended


def test_a_restart_with_another_stream_says_what_changed() -> None:
    _, reader = reading()
    other = PacketWriter(replace(CODES, rate=Fraction(50), model="other"), CLOCK)
    with pytest.raises(MediaError, match="rate was 25/2, is 50, model was demo, is other"):
        reader.feed(other.info)


def test_what_is_malformed_is_counted_and_skipped() -> None:
    writer, reader = reading()
    wide = PacketWriter(replace(CODES, shape=(16, None)), CLOCK)
    wide.stream = writer.stream
    bad = [
        b"",
        b"junk",
        encode_bye(Bye(writer.stream)),
        wide.packet(code_frame(0, data=np.zeros((16, 1), np.uint16))),
    ]
    assert [reader.feed(packet) for packet in bad] == [None] * 4
    assert reader.malformed == 4
    assert reader.feed(writer.packet(code_frame(0))) is not None


def test_warnings_that_others_provoke_are_few(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            complaints.warn("skipped a packet")
    assert complaints.count == 1000
    assert [record.getMessage() for record in caplog.records] == ["skipped a packet (1 so far)"]


def test_a_writer_refuses_what_packets_cannot_carry() -> None:
    with pytest.raises(FitError):
        PacketWriter(replace(CODES, dtype="float32"), CLOCK)
