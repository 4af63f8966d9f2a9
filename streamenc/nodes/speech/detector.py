"""Detector: when speech starts and stops in a stream of samples. No I/O, no clock, no thread."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from streamenc import options
from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.nodes.speech import silero
from streamenc.nodes.speech.kept import Kept, from_bytes
from streamenc.nodes.speech.loudness import Loudness

Samples = np.ndarray[Any, Any]
Engine = Literal["auto", "silero", "energy"]
RATES = (8000, 16_000)

# Speech that has begun is not over at a probability that is lower by less than this.
HYSTERESIS, LEAST_QUIET = 0.15, 0.01


class SpeechEvent(NamedTuple):
    """Speech started, or stopped.

    Attributes:
        at_sample: Where, counted from the stream's start.
        known_at: How many samples had to come until that was known.
    """

    event: Literal["started", "stopped"]
    at_sample: int
    known_at: int


class Judge(Protocol):
    """What tells how likely each window of sound is speech."""

    name: str
    window: int  # samples
    least_windows: int  # so many in a row make speech

    def reset(self) -> None: ...
    def judge(self, window: Samples) -> float: ...
    def state(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...


class _Kept(Kept):
    """A detector's state."""

    engine: str
    rate: int
    heard: int
    pending: bytes
    speaking: bool
    loud_from: int
    quiet_from: int
    stopped: int
    judge: bytes


class Detector:
    """When speech starts and stops. All output together does not depend on how the input is cut.

    Windows of 32 ms are judged one after the other. Speech has started with the first of them whose
    probability is at least `threshold` (of `energy`, the first of two), `padding_ms` before it. It
    has stopped once the probability was low for `silence_ms`, `padding_ms` behind where that began;
    low is 0.15 below the threshold, and a window between the two changes nothing.

    Args:
        rate: Of the samples: 16,000 or 8,000 a second.
        threshold: 0 to 1.
        silence_ms: 0 to 60,000.
        padding_ms: 0 to 10,000.
        engine: "silero", "energy", or "auto": silero where it is installed; then which one it is.

    Attributes:
        speaking: Whether speech has started, and not stopped.
        probability: Of the last window.

    Raises:
        UsageError: Where an option is out of range, or the detector is not installed.
    """

    _pending: Samples

    def __init__(
        self,
        rate: int = 16_000,
        *,
        threshold: float = 0.5,
        silence_ms: float = 500.0,
        padding_ms: float = 100.0,
        engine: str = "auto",
    ) -> None:
        if rate not in RATES:
            raise UsageError(f"got rate={rate}; speech is detected in 8000 or 16000 samples/s")
        self.rate = rate
        self._threshold = options.number("threshold", threshold, 0, 1)
        self._low = max(self._threshold - HYSTERESIS, LEAST_QUIET)
        self._silence = round(options.number("silence_ms", silence_ms, 0, 60_000) * rate / 1000)
        self._padding = round(options.number("padding_ms", padding_ms, 0, 10_000) * rate / 1000)
        self._judge = _judge(options.choice("engine", engine, get_args(Engine)), rate)
        self.engine = self._judge.name
        self._reset()

    @property
    def settled(self) -> int:
        """What lies before this sample is known to be speech, or not, whatever comes.

        As `speaking` says, from the last event on.
        """
        if not self.speaking:
            begins = self._heard if self._loud_from < 0 else self._loud_from
            return max(self._stopped, begins - self._padding)
        if self._quiet_from < 0:
            return self._heard
        return min(self._heard, self._quiet_from + self._padding)

    def push(self, samples: Samples) -> list[SpeechEvent]:
        """Hears on, and says what it noticed.

        Args:
            samples: (samples,) or (1, samples), float32 in [-1, 1]; any number of them.

        Raises:
            InputError: Where they have another shape.
        """
        if samples.ndim == 2 and samples.shape[0] == 1:
            samples = samples[0]
        if samples.ndim != 1:
            raise InputError(f"got samples of shape {samples.shape}; wanted one channel")
        heard = np.concatenate((self._pending, samples.astype(np.float32, copy=False)))
        whole = len(heard) - len(heard) % self._judge.window
        self._pending = heard[whole:].copy()
        events: list[SpeechEvent] = []
        for start in range(0, whole, self._judge.window):
            self._hear(heard[start : start + self._judge.window].copy(), events)
        return events

    def flush(self) -> list[SpeechEvent]:
        """The stream ends: what is left is heard with silence behind it, and speech has stopped.

        What is pushed then is another stream, counted from 0.
        """
        events: list[SpeechEvent] = []
        end = self._heard + len(self._pending)
        if len(self._pending):
            missing = self._judge.window - len(self._pending)
            self._hear(np.pad(self._pending, (0, missing)), events)
        if self.speaking:
            quiet = end if self._quiet_from < 0 else self._quiet_from + self._padding
            events.append(SpeechEvent("stopped", quiet, end))
        self._reset()
        return [SpeechEvent(event, min(at, end), end) for event, at, _ in events]

    def state(self) -> bytes:
        """All that it remembers of the stream, for `restore` of one with the same options."""
        kept = _Kept(
            self.engine,
            self.rate,
            self._heard,
            self._pending.astype("<f4").tobytes(),
            self.speaking,
            self._loud_from,
            self._quiet_from,
            self._stopped,
            self._judge.state(),
        )
        return kept.to_bytes()

    def restore(self, state: bytes) -> None:
        """Goes on where the detector that gave `state` stood, bit for bit.

        Raises:
            SnapshotError: Where it is of another engine or rate, or no state at all; then nothing
                has changed.
        """
        kept = from_bytes(state, _Kept, "a speech detector")
        if (kept.engine, kept.rate) != (self.engine, self.rate):
            raise SnapshotError(
                f"got the state of the detector {kept.engine!r} at {kept.rate} samples/s; this one "
                f"is {self.engine!r} at {self.rate}"
            )
        size = len(kept.pending)
        counts = (kept.loud_from, kept.quiet_from, kept.stopped)
        if size % 4 or size >= 4 * self._judge.window or kept.heard % self._judge.window:
            raise SnapshotError(f"got a speech detector's state with {size} bytes of sound")
        if not 0 <= kept.heard < 2**62 or not all(-1 <= n <= kept.heard for n in counts):
            raise SnapshotError(f"got a speech detector's state at sample {kept.heard}: {counts}")
        self._judge.restore(kept.judge)
        self._pending = np.frombuffer(kept.pending, "<f4").astype(np.float32)
        self._heard, self.speaking = kept.heard, kept.speaking
        self._loud_from, self._quiet_from, self._stopped = counts

    def _reset(self) -> None:
        self._judge.reset()
        self.speaking = False
        self.probability = 0.0
        self._pending = np.zeros(0, np.float32)
        self._heard = 0  # samples in windows that were judged
        self._loud_from = self._quiet_from = -1  # samples, -1 for neither
        self._stopped = 0

    def _hear(self, window: Samples, events: list[SpeechEvent]) -> None:
        start, self._heard = self._heard, self._heard + len(window)
        self.probability = self._judge.judge(window)
        if self.probability >= self._threshold:
            self._quiet_from = -1
            if self.speaking:
                return
            self._loud_from = start if self._loud_from < 0 else self._loud_from
            if self._heard - self._loud_from >= self._judge.least_windows * len(window):
                events.append(SpeechEvent("started", self.settled, self._heard))
                self.speaking, self._loud_from = True, -1
        elif not self.speaking:
            self._loud_from = -1
        elif self.probability < self._low:
            self._quiet_from = start if self._quiet_from < 0 else self._quiet_from
            if self._heard - self._quiet_from >= self._silence:
                self._stopped = self.settled
                events.append(SpeechEvent("stopped", self._stopped, self._heard))
                self.speaking, self._quiet_from = False, -1


def _judge(engine: str, rate: int) -> Judge:
    if engine == "energy" or (engine == "auto" and not silero.is_installed()):
        return Loudness(rate)
    return silero.Silero(rate)
