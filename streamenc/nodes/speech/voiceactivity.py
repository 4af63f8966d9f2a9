"""Speech in a graph: a node that lets only speech through, and one that tells when there is any."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from streamenc import options
from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.nodes.speech.detector import Detector
from streamenc.nodes.speech.speechwatch import SpeechTold, SpeechWatch


class Vad(Transform):
    """Lets only speech through, from where it started to where it stopped, sample by sample.

    What follows a pause is flagged as a discontinuity, so encoders start anew there; times stay
    those of the sound. While speech goes on, a window of 32 ms is held back; a pause within it for
    longer than `padding_ms` waits until it is known to be one.

    Args:
        threshold: Above which probability there is speech, of 0 to 1.
        silence_ms: How long it must be quiet for speech to have stopped, up to 60,000.
        padding_ms: By how much speech begins before it was noticed, and ends after it grew quiet,
            up to 10,000.
        engine: "silero", "energy", or "auto": silero where it is installed.
        gate: False passes all sound untouched, for `on_event`.
        on_event: Called with a SpeechTold whenever speech starts or stops, in a thread of the
            graph.

    Raises:
        UsageError: Where an option is out of range, or the detector is not installed.
    """

    blocking = True

    def __init__(
        self,
        threshold: float = 0.5,
        silence_ms: float = 500.0,
        padding_ms: float = 100.0,
        engine: str = "auto",
        *,
        gate: bool = True,
        on_event: Callable[[SpeechTold], object] | None = None,
    ) -> None:
        self._listener = _Listener(threshold, silence_ms, padding_ms, engine)
        self._gate = options.flag("gate", gate)
        self._on_event = on_event
        self._held: deque[tuple[int, Frame]] = deque()  # each with its first sample
        self._taken = self._decided = 0  # samples since the last start
        self._open = self._flag = self._left_out = False
        self._seq = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        """Raises FitError for what is no sound."""
        self._watch = self._listener.open(info)
        self.remarks = self._listener.remarks
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        out: list[Frame] = []
        if self._watch.ends_at(frame.pts, frame.discontinuity):
            self._end(out)
            self._flag = True
        self._flag = self._flag or frame.discontinuity
        told = self._tell(self._listener.hear(frame))
        if not self._gate:
            return (frame,)
        self._held.append((self._taken, frame))
        self._taken += frame.data.shape[1]
        self._decide(told, self._watch.settled, out)
        return out

    def flush(self) -> Iterable[Frame]:
        out: list[Frame] = []
        self._end(out)
        return out

    def _end(self, out: list[Frame]) -> None:
        """The sound ends here, or what comes next does not follow on."""
        told = self._tell(self._listener.end())
        if self._gate:
            self._decide(told, self._taken, out)
        self._held.clear()
        self._taken = self._decided = 0
        self._open = False

    def _tell(self, told: list[SpeechTold]) -> list[SpeechTold]:
        if self._on_event is not None:
            for event in told:
                self._on_event(event)
        return told

    def _decide(self, told: list[SpeechTold], settled: int, out: list[Frame]) -> None:
        """What is known of the samples before `settled`: some go out, the others are left out."""
        for event, _, sample, _ in told:
            self._go_on_to(sample, out)
            self._open = event == "started"
        self._go_on_to(settled, out)

    def _go_on_to(self, stop: int, out: list[Frame]) -> None:
        while self._decided < stop:
            first, frame = self._held[0]
            start, end = self._decided, min(stop, first + frame.data.shape[1])
            if self._open:
                self._flag = self._flag or (self._left_out and self._seq > 0)
                out.append(self._piece(frame, first, start, end))
            self._left_out = not self._open
            self._decided = end
            if end == first + frame.data.shape[1]:
                self._held.popleft()

    def _piece(self, frame: Frame, first: int, start: int, end: int) -> Frame:
        pts = self._watch.pts(start)
        piece = frame.with_(
            data=frame.data[:, start - first : end - first],
            pts=pts,
            duration=self._watch.pts(end) - pts,
            seq=self._seq,
            discontinuity=self._flag,
        )
        self._seq += 1
        self._flag = False
        return piece


class VadEvents(Transform):
    """Sound -> text: "started" and "stopped", a frame without a length each, at the time in the
    sound when speech did. It comes out when that is known: a start about 35 ms behind the time at
    which speech was noticed, which lies `padding_ms` behind its own; a stop `silence_ms` later.

    Args:
        threshold: Above which probability there is speech, of 0 to 1.
        silence_ms: How long it must be quiet for speech to have stopped, up to 60,000.
        padding_ms: By how much speech begins before it was noticed, and ends after it grew quiet,
            up to 10,000.
        engine: "silero", "energy", or "auto": silero where it is installed.

    Raises:
        UsageError: Where an option is out of range, or the detector is not installed.
    """

    blocking = True

    def __init__(
        self,
        threshold: float = 0.5,
        silence_ms: float = 500.0,
        padding_ms: float = 100.0,
        engine: str = "auto",
    ) -> None:
        self._listener = _Listener(threshold, silence_ms, padding_ms, engine)
        self._seq = self._arrived_ns = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        """Raises FitError for what is no sound."""
        self._listener.open(info)
        self.remarks = self._listener.remarks
        return StreamInfo("text", info.time_base, Fraction(0), (1, None), "str")

    def push(self, frame: Frame) -> Iterable[Frame]:
        self._arrived_ns = frame.arrived_ns
        return [self._frame(event) for event in self._listener.hear(frame)]

    def flush(self) -> Iterable[Frame]:
        return [self._frame(event) for event in self._listener.end()]

    def _frame(self, event: SpeechTold) -> Frame:
        self._seq += 1
        data = np.array([[event.event]])
        return Frame(data, event.pts, 0, self._seq - 1, arrived_ns=self._arrived_ns)


class _Listener:
    """What both have in common: a watch over the sound, and a sentence on what it found."""

    def __init__(self, threshold: float, silence_ms: float, padding_ms: float, engine: str) -> None:
        self._options: dict[str, Any] = {
            "threshold": threshold,
            "silence_ms": silence_ms,
            "padding_ms": padding_ms,
            "engine": engine,
        }
        Detector(**self._options)  # what is wrong is said now
        self.remarks: list[str] = []
        self._ticks = self._speech = self._since = self._stretches = 0

    def open(self, info: StreamInfo) -> SpeechWatch:
        if info.kind != "audio" or not info.shape[0]:
            raise FitError(f"speech is heard in sound; got {info}")
        self._time_base = info.time_base
        self._watch = SpeechWatch(info.rate, info.time_base, **self._options)
        return self._watch

    def hear(self, frame: Frame) -> list[SpeechTold]:
        self._ticks += frame.duration
        return self._noted(
            self._watch.push(frame.data, frame.pts, discontinuity=frame.discontinuity)
        )

    def end(self) -> list[SpeechTold]:
        return self._noted(self._watch.flush())

    def _noted(self, told: list[SpeechTold]) -> list[SpeechTold]:
        for event, pts, _, _ in told:
            if event == "started":
                self._stretches, self._since = self._stretches + 1, pts
            else:
                self._speech += pts - self._since
        seconds = [float(ticks * self._time_base) for ticks in (self._speech, self._ticks)]
        self.remarks[:] = [
            f"{seconds[0]:.1f} of {seconds[1]:.1f} s are speech, in {self._stretches} stretches "
            f"({self._watch.engine})"
        ]
        return told
