"""What a graph measures: meters of its sinks, and the report on its nodes and edges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from streamenc.graph.edge import ChannelStatistics
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.latency import Latency, LatencyHistogram, three_digits

Outcome = Literal["running", "ended", "stopped", "cancelled", "failed"]

# A node that works for longer than this share of what it takes gets behind sooner or later.
KEEPS_UP = 0.95
JUDGED_SECONDS = 2.0  # of the stream: the first steps are slower than the others
# Where no remark of the node has the number of what it had to give up.
_OWN_LOSSES = {
    "source": "frames were lost where they come from: the graph or the machine was late, or the "
    "sender; see the source's options for a longer queue",
    "sink": "frames were dropped on the way out, as what takes them was slower; see the sink's "
    "options for a longer queue, or one that waits",
}


class SinkMeter:
    """What a sink sees of the stream: latency from end to end, gaps, pace.

    Not per frame but per track: order, media time. `deadline_ns` is None where there is none.
    """

    def __init__(self, info: StreamInfo, start_ns: int, deadline_ns: int | None) -> None:
        self.end_to_end = LatencyHistogram()
        self.deadline_misses = 0
        self.gaps = 0
        self.first_frame_ns: int | None = None
        self._info = info
        self._start_ns = start_ns
        self._last_ns = start_ns
        self._deadline_ns = deadline_ns
        self._next_seq: dict[int, int] = {}
        self._ticks: dict[int, int] = {}
        self._first_pts: dict[int, int] = {}
        self._span: dict[int, int] = {}

    def wrote(self, frame: Frame, now_ns: int) -> None:
        """Counts a frame whose write ended at `now_ns`."""
        latency_ns = now_ns - frame.arrived_ns
        self.end_to_end.record(latency_ns)
        if self._deadline_ns is not None and latency_ns > self._deadline_ns:
            self.deadline_misses += 1
        if frame.discontinuity or frame.seq != self._next_seq.get(frame.track, frame.seq):
            self.gaps += 1
        self._next_seq[frame.track] = frame.seq + 1
        self._ticks[frame.track] = self._ticks.get(frame.track, 0) + frame.duration
        self._span[frame.track] = frame.pts - self._first_pts.setdefault(frame.track, frame.pts)
        if self.first_frame_ns is None:
            self.first_frame_ns = now_ns - self._start_ns
        self._last_ns = now_ns

    @property
    def media_seconds(self) -> Fraction:
        """Media written so far; of several tracks, the longest.

        Where nobody knows how long an image lasts, as of a camera, from the first to the last one.
        """
        return max(
            (
                max(0, ticks or self._span[i]) * self._info.track(i).time_base
                for i, ticks in self._ticks.items()
            ),
            default=Fraction(0),
        )

    def report(self, began_ns: int | None = None) -> SinkReport:
        """`began_ns` is when the stream began to be heard; None for the start of the graph."""
        wall_seconds = (self._last_ns - (began_ns or self._start_ns)) / 1e9
        media_seconds = float(self.media_seconds)
        return SinkReport(
            end_to_end=self.end_to_end.summary(),
            deadline_misses=self.deadline_misses,
            gaps=self.gaps,
            media_seconds=media_seconds,
            realtime_factor=media_seconds / wall_seconds if wall_seconds > 0 else 0.0,
            first_frame_ms=None if self.first_frame_ns is None else self.first_frame_ns / 1e6,
        )


@dataclass(frozen=True, slots=True)
class SinkReport:
    """One sink.

    Attributes:
        end_to_end: From a frame's `arrived_ns` to the end of its write.
        deadline_misses: Frames that took longer than the graph's deadline.
        gaps: Frames that did not follow on from the one before: flagged, or a jump in `seq`.
        media_seconds: Length of the media written; of several tracks, the longest.
        realtime_factor: Media seconds per second, from when the source began to be heard to the
            last write; 0 before the first.
        first_frame_ms: From the start of the graph to the end of the first write; None before it.
    """

    end_to_end: Latency
    deadline_misses: int
    gaps: int
    media_seconds: float
    realtime_factor: float
    first_frame_ms: float | None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node; counts in frames.

    Attributes:
        kind: "source", "transform", "merge" or "sink".
        stream: What the node gives; of a sink, what it takes; "" until the node is open.
        dropped: On the edges in front, plus what a source or sink itself had to give up.
        in_flight: Waiting on the edges in front, and in the node's hands.
        queue_wait: On the edges in front.
        processing: Of push and flush, or write, including the hop to a thread.
        sink: None for all but sinks.
        remarks: What the node says of the stream or of what it made of it, in sentences.
        broken: Why its stream ended before its end, in words; "" where it did not, or still runs.
        taken_seconds: Length of what came in, of transforms and sinks.
        in_time: Whether its work has to keep up with what is live.
    """

    name: str
    kind: str
    stream: str
    frames_in: int
    frames_out: int
    dropped: int
    in_flight: int
    queue_wait: Latency
    processing: Latency
    sink: SinkReport | None = None
    remarks: tuple[str, ...] = ()
    broken: str = ""
    taken_seconds: float = 0.0
    in_time: bool = False

    @property
    def load(self) -> float:
        """Seconds of work for each second that came in; more than 1 is too slow for what is live.

        0 where nothing is known yet.
        """
        worked_seconds = self.processing.mean_ms * self.processing.count / 1e3
        return worked_seconds / self.taken_seconds if self.taken_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class GraphReport:
    """The whole graph, now or at its end.

    Attributes:
        outcome: "ended" by itself, "stopped" and drained, "cancelled" with frames lost, "failed".
        wall_seconds: On the graph's clock, since all nodes were open.
        abandoned: Nodes whose threads did not return in time and were left behind.
    """

    outcome: Outcome
    wall_seconds: float
    deadline_ms: float | None
    nodes: tuple[NodeReport, ...]
    edges: tuple[ChannelStatistics, ...]
    abandoned: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> NodeReport:
        """The node of that name. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def dropped(self) -> int:
        """Frames given up by policies, sources and sinks."""
        return sum(node.dropped for node in self.nodes)

    @property
    def lost(self) -> int:
        """Frames that were still on their way when the graph ended; 0 after a drain."""
        return 0 if self.outcome == "running" else sum(node.in_flight for node in self.nodes)

    @property
    def not_whole(self) -> list[str]:
        """For each reason, which sinks got a stream that ended before its end."""
        sinks: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.kind == "sink" and node.broken:
                sinks.setdefault(node.broken, []).append(node.name)
        return [f"{', '.join(names)}: not whole: {why}" for why, names in sinks.items()]

    @property
    def sentences(self) -> list[str]:
        """What there is to say beside the numbers: what is not whole, what was lost and what to do,
        and what the nodes remark, each with the name of the node."""
        said = self.not_whole
        said += [_dropped(edge) for edge in self.edges if edge.dropped]
        for node in self.nodes:
            if node.kind == "transform" and node.in_time and node.taken_seconds >= JUDGED_SECONDS:
                said += [_too_slow(node)] if node.load > KEEPS_UP else []
            said += [f"{node.name}: {remark}" for remark in node.remarks]
            own = node.dropped - sum(
                edge.dropped for edge in self.edges if edge.name.endswith(f" -> {node.name}")
            )
            told = any(re.search(rf"\b{own}\b", remark) for remark in node.remarks)
            if own > 0 and not told:
                said.append(f"{node.name}: {own} {_OWN_LOSSES[node.kind]}")
        return said

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "dropped": self.dropped, "lost": self.lost}

    def __str__(self) -> str:
        """Two tables: all nodes, then the sinks; latencies are p50 / p99 / max in milliseconds."""
        nodes = [["node", "kind", "in", "out", "dropped", "waited ms", "worked ms"]]
        deadline = "late" if self.deadline_ms is None else f"over {self.deadline_ms:g} ms"
        sinks = [["sink", "media s", "x real time", "end to end ms", deadline, "gaps", "first ms"]]
        for n in self.nodes:
            counts = map(str, (n.frames_in, n.frames_out, n.dropped))
            nodes.append([n.name, n.kind, *counts, str(n.queue_wait), str(n.processing)])
            if s := n.sink:
                first = "-" if s.first_frame_ms is None else three_digits(s.first_frame_ms)
                late = "-" if self.deadline_ms is None else str(s.deadline_misses)
                pace = [f"{s.media_seconds:.2f}", three_digits(s.realtime_factor)]
                sinks.append([n.name, *pace, str(s.end_to_end), late, str(s.gaps), first])
        lines = [f"{self.outcome} after {self.wall_seconds:.2f} s"]
        if self.lost:
            lines[0] += f", {self.lost} frames lost on the way"
        if self.abandoned:
            lines[0] += f", left behind: {', '.join(self.abandoned)}"
        said = self.sentences
        return "\n".join(
            [*lines, "", *_table(nodes), "", *_table(sinks), *([""] if said else []), *said]
        )


def _dropped(edge: ChannelStatistics) -> str:
    words = f"{edge.name}: {edge.dropped} frames were dropped, as they were not taken in time"
    if edge.expired:
        words += f"; {edge.expired} of them so that none gets older than {edge.max_age_ms:g} ms"
    return words


def _too_slow(node: NodeReport) -> str:
    count = node.frames_in
    worked_ms, took_ms = (1e3 * node.taken_seconds * factor / count for factor in (node.load, 1))
    return (
        f"{node.name}: too slow for a live stream: it works {three_digits(worked_ms)} ms on each "
        f"frame of {three_digits(took_ms)} ms; fewer codebooks, a smaller model, more threads or "
        "another device are faster, and max_age_ms bounds how late the rest may be"
    )


def _table(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
