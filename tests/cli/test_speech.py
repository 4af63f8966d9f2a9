"""Speech and layouts on the command line, and in pipeline files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import streamenc
from streamenc.errors import UsageError
from streamenc.io.reading import read_file
from streamenc.pipeline.builder import Pipeline
from tests.support.program import Done
from tests.support.talking import talk

Call = Callable[..., Done]
RATE = 16_000  # nano's
ENERGY = ("--vad-set", "engine=energy")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    soundfile.write(path, talk(RATE), RATE, subtype="FLOAT")
    return path


def done(call: Call, *arguments: object) -> Done:
    result = call(*arguments)
    assert result.code == 0, result.error
    return result


def refused(call: Call, *arguments: object) -> str:
    result = call(*arguments)
    assert result.code == 2, result.error
    return " ".join(result.error.split())


def test_events_beside_the_codes(clip: Path, tmp_path: Path, call: Call) -> None:
    out = done(call, "encode", clip, "-", "--vad", "events", *ENERGY, "-q").out
    info, *lines = map(json.loads, out.splitlines())
    assert [track["kind"] for track in info["info"]["tracks"]] == ["codes", "text"]
    told = [line for line in lines if line["track"] == 1]
    assert [line["text"] for line in told] == [[["started"]], [["stopped"]]] * 2
    seconds = [line["pts_seconds"] for line in told]
    assert seconds == pytest.approx([1.0, 3.5, 4.5, 6.5], abs=0.35)
    # Recorded, the codes are those of the whole sound, and a decoder takes them alone.
    both, alone = tmp_path / "both.arrows", tmp_path / "alone.arrows"
    done(call, "encode", clip, both, "--vad", "events", *ENERGY)
    done(call, "encode", clip, alone)
    codes, events = streamenc.read(both).tracks
    assert np.array_equal(codes.data, streamenc.read(alone).data)
    assert events.data.tolist() == [["started", "stopped"] * 2]
    for path in (both, alone):
        done(call, "decode", path, path.with_suffix(".wav"))
    sounds = [soundfile.read(path.with_suffix(".wav"))[0] for path in (both, alone)]
    assert np.array_equal(*sounds)


def test_only_speech_is_encoded(clip: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "speech.arrows"
    told = done(call, "encode", clip, out, "--vad", "speech", *ENERGY).error
    assert "s are speech, in 2 stretches (energy)" in " ".join(told.split())
    frames = read_file(str(out))[1]
    flagged = [frame.pts / RATE for frame in frames if frame.discontinuity]
    assert flagged == pytest.approx([4.5], abs=0.35)
    seconds = sum(frame.duration for frame in frames) / RATE
    assert seconds == pytest.approx(4.5, abs=1.2)


def test_events_of_a_live_stream_come_when_they_are_known(tmp_path: Path, call: Call) -> None:
    clip = tmp_path / "live.wav"
    soundfile.write(clip, talk(RATE)[RATE // 2 : 2 * RATE], RATE, subtype="FLOAT")
    ended = done(call, "encode", clip, "-", "--realtime", "--vad", "events", *ENERGY)
    assert "later than in order" not in ended.error
    lines = list(map(json.loads, ended.out.splitlines()[1:]))
    told = [index for index, line in enumerate(lines) if line.get("track") == 1]
    start = lines[told[0]]["pts_seconds"]
    assert start == pytest.approx(0.5, abs=0.3)
    assert lines[told[0] - 1]["pts_seconds"] < start + 0.8


@pytest.mark.parametrize("layout", ["flat", "delay", "delay:0,2,1,1,1,1,1,1"])
def test_layouts_and_their_inverse(layout: str, clip: Path, tmp_path: Path, call: Call) -> None:
    plain, laid = tmp_path / "plain.arrows", tmp_path / "laid.npz"
    done(call, "encode", clip, plain, "-n", "8")
    done(call, "encode", clip, laid, "-n", "8", "--layout", layout)
    codes, tokens = streamenc.read(plain).data, streamenc.read(laid)
    assert tokens.data.shape[0] == (1 if layout == "flat" else 8)
    assert tokens.info.codebook_size == (8 * 1024 if layout == "flat" else 1025)
    if layout == "flat":
        book = np.arange(8)[:, None] * 1024
        assert np.array_equal(tokens.data.reshape(-1, 8).T, codes[:8] + book)
    for path in (plain, laid):
        done(call, "decode", path, path.with_suffix(".wav"))
    done(call, "decode", laid, tmp_path / "told.wav", "--layout", layout)
    names = ("plain.wav", "laid.wav", "told.wav")
    first, *others = (soundfile.read(tmp_path / name)[0] for name in names)
    if layout == "delay":
        file = streamenc.load("nano").encode_file(clip, codebooks=8, layout=layout)
        assert np.array_equal(file.data, tokens.data)
    assert all(np.array_equal(first, other) for other in others)


def test_a_pipeline_file_with_both(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "speech.toml"
    path.write_text(
        f"""
        [nodes.clip]
        source = "{clip}"
        [nodes.speech]
        vad = "speech"
        engine = "energy"
        padding_ms = 200
        after = "clip"
        [nodes.tokens]
        encode = "nano"
        codebooks = 4
        layout = "delay"
        after = "speech"
        [nodes.record]
        sink = "{tmp_path}/tokens.arrows"
        after = "tokens"
        [nodes.sound]
        decode = "nano"
        layout = "delay"
        after = "tokens"
        [nodes.play]
        sink = "{tmp_path}/sound.wav"
        after = "sound"
        [nodes.events]
        vad = "events"
        engine = "energy"
        after = "clip"
        [nodes.tell]
        sink = "{tmp_path}/events.jsonl"
        after = "events"
        """
    )
    with Pipeline.from_toml(path) as pipeline:
        report = pipeline.graph.run_blocking(handle_signals=False)
    assert report.outcome == "ended"
    info, frames = read_file(str(tmp_path / "tokens.arrows"))
    assert info.shape == (4, None) and info.codebook_size == 1025
    assert (tmp_path / "events.jsonl").read_text().count("started") == 2
    assert frames[0].data[:, 0].tolist()[1:] == [1024] * 3


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("vad = 'music'", "one of speech, events"),
        ("vad = 'speech'\nsilence_ms = -1", "silence_ms"),
        ("vad = 'speech'\nlevel = 3", "a vad knows after, capacity, engine"),
    ],
)
def test_pipeline_files_that_do_not_fit(keys: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f"[nodes.mic]\nsource = 'x.wav'\n[nodes.a]\nafter = 'mic'\n{keys}\n")
    with pytest.raises(UsageError, match=words):
        Pipeline.from_toml(path)


def test_what_does_not_fit(clip: Path, tmp_path: Path, call: Call) -> None:
    to = ("encode", clip, tmp_path / "out.arrows")
    assert "one of speech, events" in refused(call, *to, "--vad", "music")
    assert "--vad-set is of --vad" in refused(call, *to, "--vad-set", "threshold=0.5")
    assert "vad has no option 'level'" in refused(
        call, *to, "--vad", "events", "--vad-set", "level=1"
    )
    assert "--vad-set takes NAME=VALUE" in refused(call, *to, "--vad", "events", "--vad-set", "x")
    assert "layout='rows'" in refused(call, *to, "--layout", "rows")
    wrong = refused(call, *to, "--vad", "events", "-m", "tests.support.texts:load")
    assert "--vad is of sound alone" in wrong
    done(call, *to, "-m", "mel")
    assert call("encode", clip, tmp_path / "mel.arrows", "-m", "mel", "--layout", "flat").code == 2
