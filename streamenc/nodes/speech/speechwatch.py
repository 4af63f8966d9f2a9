"""SpeechWatch: when speech starts and stops in sound of any rate, on the sound's own clock."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from streamenc.errors import InputError, SnapshotError
from streamenc.graph.timeline import Timeline
from streamenc.nodes.speech.detector import Detector, SpeechEvent
from streamenc.nodes.speech.kept import Kept, from_bytes
from streamenc.nodes.speech.narrowband import Narrowband

Samples = np.ndarray[Any, Any]


class SpeechTold(NamedTuple):
    """Speech started, or stopped.

    Attributes:
        pts: When, in the stream's ticks.
        sample: The same as a sample of the sound that came, counted from the last start: of the
            stream, or behind a discontinuity.
        known: How many of these samples had to come until it was known, however they were cut.
    """

    event: Literal["started", "stopped"]
    pts: int
    sample: int
    known: int


class _Kept(Kept):
    """A watch's state."""

    anchored: bool
    anchor: int
    taken: int
    narrowband: bytes
    detector: bytes


class SpeechWatch:
    """Mixes to one channel, resamples to what the detector takes, and dates what it finds.

    How the sound is cut makes no difference. Behind a discontinuity, one that is said or a pts that
    is off by more than a tick plus a sample, the detector starts anew: speech stops where the sound
    did.

    Args:
        rate: Samples a second that come.
        time_base: Seconds per tick of pts.
        **options: Those of Detector.

    Attributes:
        engine: Which detector it is: "silero" or "energy".
        speaking: Whether speech has started, and not stopped.

    Raises:
        UsageError: As Detector, and where `rate` is out of range.
    """

    def __init__(self, rate: Fraction | int, time_base: Fraction, **options: Any) -> None:
        self._narrowband = Narrowband(rate)
        self._detector = Detector(self._narrowband.out, **options)
        self._timeline = Timeline(Fraction(rate), time_base)
        # From the detector's samples to those that came.
        self._samples = Timeline(Fraction(self._narrowband.out), 1 / Fraction(rate))
        self._anchored = False
        self._anchor = 0  # pts of sample 0
        self._taken = 0

    @property
    def engine(self) -> str:
        return self._detector.engine

    @property
    def speaking(self) -> bool:
        return self._detector.speaking

    @property
    def settled(self) -> int:
        """What lies before this sample is known to be speech, or not; see Detector.settled."""
        return min(self._samples.pts(self._detector.settled), self._taken)

    @property
    def taken(self) -> int:
        """Samples that came since the last start."""
        return self._taken

    def ends_at(self, pts: int, discontinuity: bool) -> bool:
        """Whether what is pushed with these starts anew."""
        gap = discontinuity or self._timeline.gap(self._taken, pts) != 0
        return self._anchored and gap

    def pts(self, sample: int) -> int:
        """When a sample is, counted as in SpeechTold."""
        return self._timeline.pts(sample)

    def push(self, samples: Samples, pts: int, *, discontinuity: bool = False) -> list[SpeechTold]:
        """Hears on, and says what it noticed. What is not finite is taken for silence.

        Args:
            samples: (channels, samples) or (1, channels, samples), float32 in [-1, 1]; any number.

        Raises:
            InputError: Where they have another shape.
        """
        if samples.ndim == 3 and samples.shape[0] == 1:
            samples = samples[0]
        if samples.ndim != 2 or not samples.shape[0]:
            raise InputError(f"got samples of shape {samples.shape}; wanted (channels, samples)")
        told = self.flush() if self.ends_at(pts, discontinuity) else []
        if not self._anchored:
            self._anchored, self._anchor = True, pts
            self._timeline.anchor(pts)
        self._taken += samples.shape[1]
        mixed = samples.mean(axis=0, dtype=np.float32)
        if not np.isfinite(mixed).all():
            mixed = np.where(np.isfinite(mixed), mixed, np.float32(0))
        return told + self._dated(self._detector.push(self._narrowband.push(mixed)))

    def flush(self) -> list[SpeechTold]:
        """The stream ends here; what is pushed then starts anew, with the pts that it has."""
        events = self._detector.push(self._narrowband.flush())
        told = self._dated(events + self._detector.flush())
        self._anchored, self._anchor, self._taken = False, 0, 0
        return told

    def state(self) -> bytes:
        """All that it remembers of the stream, for `restore` of one with the same arguments."""
        kept = _Kept(
            self._anchored,
            self._anchor,
            self._taken,
            self._narrowband.state(),
            self._detector.state(),
        )
        return kept.to_bytes()

    def restore(self, state: bytes) -> None:
        """Goes on where the watch that gave `state` stood, bit for bit.

        Raises:
            SnapshotError: Where it is of another detector or rate, or no state at all.
        """
        kept = from_bytes(state, _Kept, "a speech watch")
        if not 0 <= kept.taken < 2**62:
            raise SnapshotError(f"got a speech watch's state at sample {kept.taken}")
        self._detector.restore(kept.detector)
        self._narrowband.restore(kept.narrowband)
        self._anchored, self._anchor, self._taken = kept.anchored, kept.anchor, kept.taken
        self._timeline.anchor(kept.anchor)

    def _dated(self, events: list[SpeechEvent]) -> list[SpeechTold]:
        told = []
        for event, at, known_at in events:
            sample = min(self._samples.pts(at), self._taken)
            known = min(self._narrowband.needed(known_at), self._taken)
            told.append(SpeechTold(event, self._timeline.pts(sample), sample, known))
        return told
