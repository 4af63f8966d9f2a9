"""Speech that is detected: where it is, cut anyhow, and from a state that was written down."""

from __future__ import annotations

import numpy as np
import pytest

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.nodes.speech import silero
from streamenc.nodes.speech.detector import RATES, Detector, SpeechEvent
from tests.support.talking import engines, pieces, talk

ENGINES = engines()


def events(detector: Detector, *parts: np.ndarray) -> list[SpeechEvent]:
    return [event for part in parts for event in detector.push(part)] + detector.flush()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("engine", ENGINES)
def test_speech_between_pauses(engine: str, rate: int) -> None:
    found = events(Detector(rate, engine=engine), talk(rate))
    assert [event for event, _, _ in found] == ["started", "stopped"] * 2
    seconds = [at / rate for _, at, _ in found]
    assert seconds == pytest.approx([1.0, 3.5, 4.5, 6.5], abs=0.35)
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("level", [0.0, 1e-3, 0.03])
def test_no_speech_in_silence_and_noise(engine: str, level: float) -> None:
    noise = np.random.default_rng(1).normal(0, level, 10 * 16_000).astype(np.float32)
    found = events(Detector(engine=engine), noise)
    if engine == "energy" and level > 0.01:  # until it has lasted for 3 s
        assert [event for event, _, _ in found] == ["started", "stopped"]
        assert found[1].at_sample < 5 * 16_000
    else:
        assert found == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stream_that_begins_and_ends_in_a_word(engine: str) -> None:
    sound = talk(16_000)[int(1.3 * 16_000) : int(3.2 * 16_000)]
    (started, begin, _), (stopped, end, _) = events(Detector(engine=engine), sound)
    assert (started, stopped, end) == ("started", "stopped", len(sound))
    assert begin < 8000


@pytest.mark.parametrize("engine", ENGINES)
def test_cut_anyhow_and_restored_anywhere(engine: str) -> None:
    sound = talk(16_000)
    whole = events(Detector(engine=engine), sound)
    for seed in (2, 3):
        detector, found = Detector(engine=engine), []
        for piece in pieces(sound, seed):
            found += detector.push(piece[None])
            state, detector = detector.state(), Detector(engine=engine)
            detector.restore(state)
            assert detector.state() == state
        assert found + detector.flush() == whole
    # Nothing is left of a stream that has ended.
    assert events(detector, sound) == whole


def test_what_is_settled_never_changes() -> None:
    sound, detector = talk(16_000), Detector(engine="energy", padding_ms=300, silence_ms=200)
    told: list[SpeechEvent] = []
    settled = 0
    for start in range(0, len(sound), 400):
        new = detector.push(sound[start : start + 400])
        assert all(at >= settled for _, at, _ in new)
        assert detector.settled >= settled
        settled, told = detector.settled, told + new
        assert settled <= start + 400
    stops = [at for event, at, _ in told if event == "stopped"]
    starts = [at for event, at, _ in told if event == "started"]
    assert all(stop <= start for stop, start in zip(stops, starts[1:], strict=False))


def test_padding_and_silence() -> None:
    """A shorter silence ends speech earlier; padding moves both ends by as much."""
    sound = talk(16_000)
    plain = events(Detector(engine="energy", padding_ms=0), sound)
    padded = events(Detector(engine="energy", padding_ms=200), sound)
    moved = [b.at_sample - a.at_sample for a, b in zip(plain, padded, strict=True)]
    assert moved == [-3200, 3200, -3200, 3200]
    assert len(events(Detector(engine="energy", silence_ms=60), sound)) > len(plain)
    assert len(events(Detector(engine="energy", silence_ms=2000), sound)) == 2


class Script:
    """Judges each window by a list."""

    name, window, least_windows = "energy", 512, 1

    def __init__(self, *probabilities: float) -> None:
        self.left = list(probabilities)

    def reset(self) -> None: ...
    def judge(self, window: np.ndarray) -> float:
        return self.left.pop(0)


def test_hysteresis() -> None:
    """0.4 is no start, and no end either; an end needs quiet at its end, too."""
    detector = Detector(engine="energy", padding_ms=0, silence_ms=64)
    detector._judge = Script(0.4, 0.5, 0.4, 0.4, 0.4, 0.1, 0.4, 0.5, 0.1, 0.4, 0.1, 0.9)
    found = detector.push(np.zeros(12 * 512, np.float32))
    assert [(event, at // 512, known // 512) for event, at, known in found] == [
        ("started", 1, 2),
        ("stopped", 8, 11),
        ("started", 11, 12),
    ]


def test_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="threshold"):
        Detector(threshold=2)
    with pytest.raises(UsageError, match="silence_ms"):
        Detector(silence_ms=-1)
    with pytest.raises(UsageError, match="engine"):
        Detector(engine="ear")
    with pytest.raises(UsageError, match="8000 or 16000"):
        Detector(44_100)
    with pytest.raises(InputError, match=r"\(2, 5\)"):
        Detector(engine="energy").push(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("engine", ENGINES)
def test_states_that_are_none(engine: str) -> None:
    detector = Detector(engine=engine)
    detector.push(talk(16_000)[:20_123])
    state = detector.state()
    with pytest.raises(SnapshotError, match="8000"):
        Detector(8000, engine=engine).restore(state)
    other = next((e for e in ENGINES if e != engine), None)
    if other is not None:
        with pytest.raises(SnapshotError, match=other):
            Detector(engine=other).restore(state)
    fresh = Detector(engine=engine)
    before = fresh.state()
    random = np.random.default_rng(4)
    for _ in range(200):
        damaged = bytearray(state[: random.integers(0, len(state))])
        for at in random.integers(0, len(damaged), 3) if damaged else ():
            damaged[at] = random.integers(0, 256)
        with pytest.raises(SnapshotError):
            fresh.restore(bytes(damaged))
    assert fresh.state() == before


def test_without_silero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "_file", lambda: None)
    assert Detector().engine == "energy"
    with pytest.raises(UsageError, match=r"streamenc\[vad\]"):
        Detector(engine="silero")
