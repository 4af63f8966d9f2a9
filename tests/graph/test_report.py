from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.graph.edge import ChannelStatistics
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.report import GraphReport, NodeReport, SinkMeter
from streamenc.latency import Latency, LatencyHistogram

AUDIO = StreamInfo("audio", Fraction(1, 1000), Fraction(1000), (1, None), "float32")


def filled(durations: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for duration in durations:
        histogram.record(duration)
    return histogram


def frame(seq: int, *, arrived_ns: int = 0, flag: bool = False, track: int = 0) -> Frame:
    data = np.zeros((1, 20), np.float32)
    return Frame(data, 20 * seq, 20, seq, flag, arrived_ns=arrived_ns, track=track)


@given(
    st.lists(st.integers(1_000, 10**12), min_size=1, max_size=200),
    st.sampled_from([0.1, 25, 50, 90, 99, 99.9]),
)
def test_percentiles_are_within_two_percent(durations: list[int], percent: float) -> None:
    exact = sorted(durations)[max(0, math.ceil(len(durations) * percent / 100) - 1)]
    assert filled(durations).percentile_ns(percent) == pytest.approx(exact, rel=0.0201, abs=1)


@given(st.lists(st.integers(0, 10**13), max_size=100), st.lists(st.integers(0, 10**13)))
def test_merging_counts_as_if_all_had_been_recorded_in_one(a: list[int], b: list[int]) -> None:
    merged = filled(a)
    merged.merge(filled(b))
    assert vars(merged) == vars(filled(a + b))


@given(
    st.lists(st.integers(-5, 10**13) | st.integers(990, 1_100), min_size=40, max_size=120),
    st.lists(st.integers(-5, 2_000) | st.integers(10**11, 10**16), max_size=120),
)
def test_many_at_once_count_as_one_by_one(a: list[int], b: list[int]) -> None:
    """Up to the last bit of a logarithm, which decides for one of two buckets side by side."""
    histogram = LatencyHistogram()
    histogram.record_all(a)
    histogram.record_all(b)
    single = filled(a + b)
    assert histogram.summary().count == single.count
    assert (histogram.total_ns, histogram.min_ns) == (single.total_ns, single.min_ns)
    assert histogram.max_ns == single.max_ns
    for percent in (1, 50, 90, 99, 100):
        ours, theirs = histogram.percentile_ns(percent), single.percentile_ns(percent)
        assert ours == pytest.approx(theirs, rel=0.041, abs=1)


def test_count_mean_and_extremes_are_exact() -> None:
    histogram = filled([3_000_000, 1_000_000, 8_000_001])
    assert histogram.count == 3
    assert histogram.total_ns == 12_000_001
    assert (histogram.min_ns, histogram.max_ns) == (1_000_000, 8_000_001)
    assert histogram.percentile_ns(100) == 8_000_001
    assert histogram.summary().mean_ms == pytest.approx(4.000000333)


@pytest.mark.parametrize("duration", [0, 1, 999, 1_000, 10**12, 10**15])
def test_one_value_is_every_percentile(duration: int) -> None:
    histogram = filled([duration] * 3)
    assert {histogram.percentile_ns(p) for p in (0, 1, 50, 99, 100)} == {duration}


def test_nothing_and_negative_durations() -> None:
    assert LatencyHistogram().percentile_ns(50) == 0
    assert LatencyHistogram().summary() == Latency(0, 0.0, 0.0, 0.0, 0.0)
    assert filled([-5]).max_ns == 0


def test_memory_is_bounded() -> None:
    histogram = filled([7**k % 10**14 for k in range(5_000)])
    assert len(histogram._counts) < 600


def test_the_sink_meter_counts_latency_gaps_and_pace() -> None:
    meter = SinkMeter(AUDIO, start_ns=1_000_000_000, deadline_ns=50_000_000)
    ms = 1_000_000
    meter.wrote(frame(0, arrived_ns=1_000 * ms), 1_010 * ms)
    meter.wrote(frame(1, arrived_ns=1_020 * ms), 1_080 * ms)  # 60 ms: late
    meter.wrote(frame(4, arrived_ns=1_080 * ms), 1_090 * ms)  # a jump
    meter.wrote(frame(5, arrived_ns=1_090 * ms, flag=True), 1_095 * ms)
    meter.wrote(frame(7, arrived_ns=1_095 * ms, flag=True), 1_100 * ms)  # both: one gap
    report = meter.report()
    assert report.deadline_misses == 1
    assert report.gaps == 3
    assert report.end_to_end.count == 5
    assert report.end_to_end.max_ms == 60
    assert report.first_frame_ms == 10
    assert report.media_seconds == pytest.approx(0.1)
    assert report.realtime_factor == pytest.approx(1.0)


def test_media_without_durations_lasts_from_the_first_to_the_last_of_it() -> None:
    meter = SinkMeter(AUDIO, start_ns=0, deadline_ns=None)
    for seq in (3, 4, 9):
        made = frame(seq)
        meter.wrote(made.with_(duration=0), 10)
        if seq == 3:
            first = made.pts
    assert meter.media_seconds == (made.pts - first) * AUDIO.time_base > 0


def test_the_sink_meter_keeps_the_tracks_of_a_mux_apart() -> None:
    slow = StreamInfo("codes", Fraction(1, 100), Fraction(5), (8, None), "uint16")
    mux = StreamInfo("mux", Fraction(1, 1000), Fraction(0), (), "", tracks=(AUDIO, slow))
    meter = SinkMeter(mux, start_ns=0, deadline_ns=None)
    for seq in range(3):
        meter.wrote(frame(seq, track=0), 10)
        meter.wrote(frame(10 + seq, track=1), 10)
    report = meter.report()
    assert report.gaps == 0
    assert report.media_seconds == pytest.approx(3 * 20 / 100)
    assert report.deadline_misses == 0


def test_reports_become_json_and_tables() -> None:
    meter = SinkMeter(AUDIO, 0, 50_000_000)
    meter.wrote(frame(0), 12_345_678)
    nothing = Latency(0, 0.0, 0.0, 0.0, 0.0)
    work = filled([1_500_000]).summary()
    nodes = (
        NodeReport("mic", "source", "audio", 0, 3, 1, 0, nothing, nothing),
        NodeReport("file", "sink", "audio", 1, 1, 0, 2, nothing, work, meter.report()),
    )
    edge = ChannelStatistics("mic -> file", "block", 4, 3, 1, 0, 2, 2)
    report = GraphReport("cancelled", 1.5, 50.0, nodes, (edge,), ("file",))
    assert report["file"].sink is not None
    with pytest.raises(KeyError):
        report["nobody"]
    assert (report.dropped, report.lost) == (1, 2)
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["lost"] == 2
    assert plain["nodes"][1]["sink"]["first_frame_ms"] == pytest.approx(12.345678)
    assert plain["edges"][0]["name"] == "mic -> file"
    text = str(report)
    assert "cancelled after 1.50 s, 2 frames lost on the way, left behind: file" in text
    assert "over 50 ms" in text
    assert "1.5 / 1.5 / 1.5" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_running_graph_has_lost_nothing_yet() -> None:
    nothing = Latency(0, 0.0, 0.0, 0.0, 0.0)
    node = NodeReport("a", "transform", "", 1, 1, 0, 3, nothing, nothing)
    assert GraphReport("running", 0.0, None, (node,), ()).lost == 0
