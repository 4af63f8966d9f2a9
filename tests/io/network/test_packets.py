"""Both ends of a packet stream without a network: numbering, gaps, duplicates, restarts, clocks."""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replaced

from streamenc.errors import FitError, MediaError
from streamenc.graph.clock import MonotonicClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.packets import Complaints, PacketReader, PacketWriter, Transit
from streamenc.io.network.repacking import resent
from streamenc.io.network.wire import (
    Bye,
    Data,
    End,
    decode,
    encode_bye,
    encode_end,
    encode_frame,
    encode_info,
)

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)
MUX = StreamInfo("mux", Fraction(1, 24000), Fraction(0), (), "", tracks=(CODES, CODES))
CLOCK = MonotonicClock()


class FarClock(MonotonicClock):
    """The clock of another process: it started at another time."""

    def now_ns(self) -> int:
        return super().now_ns() + 10**15


def code_frame(seq: int, **fields: object) -> Frame:
    return Frame(np.zeros((8, 1), np.uint16), seq * 1920, 1920, seq).with_(**fields)


def reading(info: StreamInfo = CODES, shared: bool = False) -> tuple[PacketWriter, PacketReader]:
    writer, reader = PacketWriter(info, CLOCK), PacketReader(CLOCK, shared)
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


def test_frames_of_which_none_came_are_lost() -> None:
    """The end says how many there were."""
    for tracks, end in ((CODES, (30,)), (MUX, (20, 10))):
        writer, reader = reading(tracks)
        for track, count in enumerate(end):
            for seq in range(count):
                writer.sent(code_frame(seq, track=track))
        reader.feed(writer.end())
        assert (reader.lost, reader.ended, reader.broken) == (30, True, "")


def test_what_came_before_a_late_joiner_is_missed_and_what_comes_after_is_lost() -> None:
    writer, reader = reading(MUX)
    for seq in range(9):
        writer.sent(code_frame(seq))
        writer.sent(code_frame(seq, track=1))
    reader.feed(writer.packet(code_frame(7)))
    reader.feed(writer.end())
    assert (reader.missed, reader.lost) == (7, 1)  # of the other track it may be all or none


@pytest.mark.parametrize("absurd", [2**63 - 1, 2**62 - 1, 2**40, 30_000])
def test_one_absurd_number_silences_nobody(absurd: int) -> None:
    writer, reader = reading()
    packets = [writer.packet(code_frame(seq)) for seq in range(12)]
    packets.insert(5, writer.packet(code_frame(absurd, pts=0)))
    got = [frame.seq for packet in packets if (frame := reader.feed(packet))]
    assert got == list(range(12)) and (reader.lost, reader.malformed) == (0, 1)


def test_a_first_number_that_is_absurd_costs_nothing() -> None:
    writer, reader = reading()
    reader.feed(writer.packet(code_frame(2**62 - 1, pts=0)))
    got = [reader.feed(writer.packet(code_frame(seq))) for seq in range(4)]
    assert [f and (f.seq, f.discontinuity) for f in got] == [
        (0, True), (1, False), (2, False), (3, False)
    ]  # fmt: skip
    assert (reader.missed, reader.malformed) == (0, 1)


def test_a_long_silence_of_the_network_is_a_gap() -> None:
    """The next frame confirms the number, also where every other one is lost."""
    for step in (1, 2):
        writer, reader = reading()
        reader.feed(writer.packet(code_frame(0)))
        later = [reader.feed(writer.packet(code_frame(10**6 + step * i))) for i in range(3)]
        assert [f and (f.seq, f.discontinuity) for f in later] == [
            None,
            (10**6 + step, True),
            (10**6 + 2 * step, step > 1),
        ]
        assert reader.lost == 10**6 + step - 1 + step - 1


def test_two_publishers_at_one_address(caplog: pytest.LogCaptureFixture) -> None:
    """The first one is read for as long as it lives, and the other one told of."""
    (first, reader), second = reading(), PacketWriter(CODES, CLOCK)
    got = []
    for seq in range(20):
        for writer in (first, second):
            if seq % 5 == 0:
                reader.feed(writer.info)
            if frame := reader.feed(writer.packet(code_frame(seq, pts=seq + (writer is second)))):
                got.append((frame.seq, frame.pts - seq, frame.discontinuity))
    # One of the second gets in, as that might have been a restart.
    assert got[:3] == [(0, 0, False), (0, 1, True), (1, 0, True)]
    assert got[3:] == [(seq, 0, False) for seq in range(2, 20)]
    assert reader.strangers == 19 and reader.lost == 0
    assert "two publishers at one address; give each an address of its own" in caplog.text


def test_the_second_publisher_is_read_when_the_first_one_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (first, reader), second = reading(), PacketWriter(CODES, CLOCK)
    reader.feed(first.packet(code_frame(0)))
    reader.feed(second.info)
    reader.feed(first.packet(code_frame(1)))
    assert reader.feed(second.packet(code_frame(0))) is None
    monkeypatch.setattr("streamenc.io.network.packets.SILENT_S", 0.0)
    frame = reader.feed(second.packet(code_frame(1)))
    assert frame is not None and frame.discontinuity
    assert reader.stream == second.stream


@pytest.mark.parametrize(
    ("forged", "delivered"),
    [
        ((2**61, 2**61 + 1), [2**61 + 1]),  # one confirms the other
        ((4010,), [4010]),
        ((110, 111, 112), [110, 111, 112]),
    ],
)
def test_numbers_that_the_publisher_belies_cost_none_of_its_frames(
    forged: tuple[int, ...], delivered: list[int]
) -> None:
    writer, reader = reading()
    packets = [writer.packet(code_frame(seq)) for seq in range(30)]
    bombs = [writer.packet(code_frame(seq, pts=7)) for seq in forged]
    packets[10:10] = bombs
    packets[20:20] = bombs  # the second time, nothing is believed
    got = [frame for packet in packets if (frame := reader.feed(packet))]
    assert [f.seq for f in got if f.pts != 7] == list(range(30))
    assert [f.seq for f in got if f.pts == 7] == delivered
    assert [f.seq for f in got if f.discontinuity] == [delivered[0], 10]
    assert reader.lost == 0 and reader.malformed >= 1 + len(forged)


def test_a_gap_stays_lost_when_what_was_in_it_is_sent_again() -> None:
    """Frames that a publisher repeats after a break, which this reader came back from too late."""
    writer, reader = reading()
    packets = [writer.packet(code_frame(seq)) for seq in range(10)]
    got = [*packets[:3], *packets[6:8], *map(resent, packets[2:8]), *packets[8:]]
    frames = [frame for packet in got if (frame := reader.feed(packet))]
    assert [f.seq for f in frames] == [0, 1, 2, 6, 7, 8, 9]
    assert (reader.lost, reader.malformed, reader.through) == (3, 0, 10)


def test_a_forged_end_ends_nothing_that_goes_on() -> None:
    for end in (End(0, 3, (3,)), End(0, 5, (5,)), End(0, 9, (2**62,))):
        writer, reader = reading(shared=True)
        for seq in range(10):
            assert reader.feed(writer.packet(code_frame(seq))) is not None
            writer.sent(code_frame(seq))
            assert reader.ends_in_s is None
            if seq == 4:
                reader.feed(encode_end(replaced(end, stream=writer.stream)))
                assert reader.ends_in_s == (0.3 if end.frames == 5 else 2.0)
        reader.feed(writer.end())
        assert (reader.ends_in_s, reader.ended) == (0.3, False)
        reader.gone("the broker says that nobody publishes")
        reader.settle()
        assert (reader.lost, reader.ended, reader.broken) == (0, True, "")


@pytest.mark.parametrize("model", ["demo", "other"])
def test_others_are_told_of_and_left_out_while_the_first_lives(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer, reader = reading(shared=True)
    others = replace(CODES, model=model)
    got = []
    for seq in range(30):
        for stream in range(77, 77 + seq):  # more than are remembered
            reader.feed(encode_info(others, stream, 1))
            reader.feed(encode_frame(code_frame(seq), others, stream))
        got.append(reader.feed(writer.packet(code_frame(seq))))
    assert [f and (f.seq, f.discontinuity) for f in got] == [(seq, False) for seq in range(30)]
    assert reader.strangers > 100 and reader.rivals >= 29 and reader.broken == ""
    assert "two publishers at one address" in caplog.text and len(caplog.records) < 3


def test_another_is_read_when_the_first_is_silent_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for silent_s, gone in ((0.0, ""), (3.0, "the broker says that nobody publishes")):
        monkeypatch.setattr("streamenc.io.network.packets.SILENT_S", silent_s)
        (first, reader), second = reading(shared=True), PacketWriter(CODES, CLOCK)
        reader.feed(first.packet(code_frame(0)))
        reader.gone(gone)
        reader.feed(second.info)
        frame = reader.feed(second.packet(code_frame(0)))
        assert frame is not None and frame.discontinuity and reader.stream == second.stream
        # What was recorded of the first is nothing new; what it goes on with is.
        assert reader.feed(first.packet(code_frame(0))) is None
        frame = reader.feed(first.packet(code_frame(1)))
        assert frame is not None and reader.stream == first.stream and reader.broken == ""


def test_an_info_of_the_same_stream_with_other_contents_is_refused() -> None:
    writer, reader = reading()
    reader.feed(encode_info(replace(CODES, model="other"), writer.stream, 1))
    assert (reader.info, reader.malformed) == (CODES, 1)


def test_a_time_that_is_false_makes_no_frame_late() -> None:
    writer, reader = reading()
    for seq in range(3):
        reader.feed(encode_frame(code_frame(seq), CODES, writer.stream, sent_ms=seq))
    reader.feed(encode_frame(code_frame(3), CODES, writer.stream, sent_ms=2**62))
    before_ns = reader.left_ns
    reader.feed(encode_frame(code_frame(4), CODES, writer.stream, sent_ms=4))
    assert abs(reader.left_ns - before_ns) < 10**9


def test_an_end_that_came_too_early_says_why() -> None:
    writer, reader = reading()
    reader.feed(writer.end("the file is cut short"))
    assert reader.ended
    assert reader.broken == "the publisher's stream broke off: the file is cut short"


def test_a_publisher_is_gone_until_something_comes_from_it() -> None:
    for back in ("info", "data", "end"):
        writer, reader = reading()
        reader.gone("it vanished")
        assert reader.broken == "it vanished"
        packets = {"info": writer.info, "data": writer.packet(code_frame(0)), "end": writer.end()}
        reader.feed(packets[back])
        assert reader.broken == ""
    reader.gone("after its end")
    assert reader.broken == ""
    nothing_yet = PacketReader(CLOCK)
    nothing_yet.gone("before it was there")
    assert nothing_yet.broken == ""


def test_transit_is_counted_from_the_shortest_way_of_the_last_minutes() -> None:
    ms, transit = 1_000_000, Transit()
    apart = 5 * 3600 * 10**9  # between the clocks

    def late_ms(sent_ms: int, took_ms: int, drift_ms: int = 0) -> float:
        now_ns = apart + (sent_ms + took_ms + drift_ms) * ms
        return (now_ns - transit.left_ns(sent_ms, now_ns)) / ms

    assert [late_ms(100 * i, took) for i, took in enumerate((30, 20, 25, 520, 20))] == [
        0, 0, 5, 500, 0
    ]  # fmt: skip
    # A clock that runs fast by 100 parts in a million: after an hour, 360 ms of nothing.
    for second in range(1, 3601):
        late = late_ms(1000 * second, 20, second // 10)
    assert late <= 60
    assert transit.left_ns(None, 77) == 77  # a publisher that does not say it


def test_a_frame_behind_a_dropped_one_may_be_made_anew() -> None:
    writer, reader = reading()
    waited = decode(writer.after_gap(code_frame(3), 10**12))
    assert isinstance(waited, Data) and waited.discontinuity and waited.sent_ms == 0
    writer.sent(code_frame(0))
    writer.lost(0)
    packet = decode(writer.packet(code_frame(1)))
    assert isinstance(packet, Data) and packet.discontinuity


def test_a_writer_refuses_what_packets_cannot_carry() -> None:
    with pytest.raises(FitError):
        PacketWriter(replace(CODES, dtype="float32"), CLOCK)
