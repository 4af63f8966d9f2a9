"""Speech in a graph: what is let through, and what is told."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.speech.speechwatch import SpeechTold, SpeechWatch
from streamenc.nodes.speech.voiceactivity import Vad, VadEvents
from streamenc.testing import drive
from tests.support.talking import talk

RATE = 24_000
INFO = StreamInfo("audio", Fraction(1, RATE), Fraction(RATE), (1, None), "float32")


def frames(sound: np.ndarray, size: int, first: int = 0) -> list[Frame]:
    starts = range(0, len(sound), size)
    parts = [sound[None, start : start + size] for start in starts]
    return [
        Frame(part, first + start, part.shape[1], index, arrived_ns=index)
        for index, (start, part) in enumerate(zip(starts, parts, strict=True))
    ]


def told(sound: np.ndarray) -> list[SpeechTold]:
    watch = SpeechWatch(RATE, INFO.time_base, engine="energy")
    return watch.push(sound[None], 0) + watch.flush()


@pytest.mark.parametrize("size", [100, 480, 5000, 10**6])
def test_only_speech_passes_sample_by_sample(size: int) -> None:
    sound, heard = talk(RATE), []
    node = Vad(engine="energy", on_event=heard.append)
    out = drive(node, INFO, frames(sound, size))
    assert heard == told(sound)
    (_, start, *_), (_, stop, *_), (_, again, *_), (_, end, *_) = heard
    passed = np.concatenate([frame.data[0] for frame in out])
    assert np.array_equal(passed, np.concatenate((sound[start:stop], sound[again:end])))
    assert [frame.seq for frame in out] == list(range(len(out)))
    assert all(np.array_equal(f.data[0], sound[f.pts : f.pts + f.duration]) for f in out)
    assert [frame.pts for frame in out if frame.discontinuity] == [again]
    seconds = (stop - start + end - again) / RATE
    length = len(sound) / RATE
    assert node.remarks == [f"{seconds:.1f} of {length:.1f} s are speech, in 2 stretches (energy)"]


def test_a_short_pause_is_held_back_and_passes() -> None:
    """What is let through comes at once while there is speech, and whole behind a short pause."""
    sound = talk(RATE, 0.3)
    node = Vad(engine="energy", silence_ms=600, padding_ms=50)
    node.open(INFO)
    passed, behind = 0, []
    for frame in frames(sound, 480):
        passed += sum(each.data.shape[1] for each in node.push(frame))
        behind.append(frame.pts + 480 - passed)
    node.close()
    (_, start, *_), *_ = told(sound)
    talking = [late - start for late in behind[int(0.5 * 50) : int(2.5 * 50)]]
    assert min(talking) < 0.1 * RATE
    assert not any(frame.discontinuity for frame in drive(Vad(engine="energy"), INFO, []))


def test_a_gap_in_the_sound() -> None:
    sound = talk(RATE)
    parts = [*frames(sound[: 2 * RATE], 480), *frames(sound[int(5.2 * RATE) :], 480, 10 * RATE)]
    out = drive(Vad(engine="energy"), INFO, parts)
    (flagged,) = (frame for frame in out if frame.discontinuity)
    assert flagged.pts >= 10 * RATE
    before = [frame for frame in out if frame.pts < 10 * RATE]
    assert before[-1].pts + before[-1].duration == 2 * RATE
    # The flag of a frame that was left out stands on the one that follows.
    parts = frames(sound, 480)
    parts[0] = parts[0].with_(discontinuity=True)
    assert drive(Vad(engine="energy"), INFO, parts)[0].discontinuity


def test_without_a_gate_all_passes_untouched() -> None:
    sound, heard = talk(RATE), []
    parts = frames(sound, 480)
    out = drive(Vad(engine="energy", gate=False, on_event=heard.append), INFO, parts)
    assert all(a is b for a, b in zip(out, parts, strict=True))
    assert heard == told(sound)


def test_events_as_text() -> None:
    sound = talk(RATE)
    node = VadEvents(engine="energy")
    info = node.open(INFO)
    assert info == StreamInfo("text", INFO.time_base, Fraction(0), (1, None), "str")
    out = drive(VadEvents(engine="energy"), INFO, frames(sound, 480))
    assert all(info.fits(frame.data) and not frame.duration for frame in out)
    wanted = [(event, pts) for event, pts, *_ in told(sound)]
    assert [(frame.data[0, 0], frame.pts) for frame in out] == wanted
    late = [frame.arrived_ns * 480 - frame.pts for frame in out[:-1]]
    assert all(0 < samples < 0.7 * RATE for samples in late)


def test_no_sound_gives_nothing() -> None:
    assert drive(Vad(engine="energy"), INFO, []) == []
    assert drive(VadEvents(engine="energy"), INFO, []) == []


@pytest.mark.parametrize("node", [Vad, VadEvents])
def test_what_does_not_fit(node: type[Vad] | type[VadEvents]) -> None:
    with pytest.raises(UsageError, match="padding_ms"):
        node(padding_ms=-5)
    with pytest.raises(FitError, match="heard in sound"):
        node(engine="energy").open(replace(INFO, kind="features"))
