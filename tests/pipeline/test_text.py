"""Text through whole pipelines: into vectors, beside sound, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import streamenc
from streamenc.errors import UsageError
from streamenc.io.reading import read_file
from streamenc.pipeline.builder import Pipeline
from tests.support import texts, zoo
from tests.support.media import write_wav
from tests.support.pipes import Given

SAID = [
    {"text": "good morning", "start": 0.2, "end": 0.6, "id": 3},
    {"text": "good moaning", "start": 0.2, "end": 0.6, "id": 3},
    {"text": "and good night", "start": 0.7, "end": 1.0, "id": 4},
]


@pytest.fixture
def transcript(tmp_path: Path) -> str:
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(said) + "\n" for said in SAID))
    return str(path)


def test_a_transcript_becomes_vectors(transcript: str, tmp_path: Path) -> None:
    with Pipeline() as pipeline:
        words = pipeline.source("words", transcript, kind="text")
        pipeline.sink(
            "out", tmp_path / "out.arrows", pipeline.encode("bytes", texts.codec(), words)
        )
        report = pipeline.run_blocking()
    assert report.outcome == "ended" and report["bytes"].frames_in == 3
    assert report["bytes"].frames_out == report["out"].frames_in == 3
    recording = streamenc.read(tmp_path / "out.arrows")
    assert recording.segments is not None and recording.segments.tolist() == [3, 3, 4]
    assert recording.latest.tolist() == [False, True, True]
    assert recording.times.tolist() == [0.2, 0.2, 0.7]
    for column, said in zip(recording.data.T, SAID, strict=True):
        np.testing.assert_allclose(column, texts.vector(str(said["text"])), rtol=1e-5)


def test_a_whole_file(transcript: str) -> None:
    recording = texts.codec().encode_file(transcript, source={"format": "json"})
    assert recording.data.shape == (texts.WIDTH, 3)


def test_sound_and_its_transcript_on_one_clock(transcript: str, tmp_path: Path) -> None:
    clip = write_wav(tmp_path / "clip.wav", np.zeros((1, 24_000)), 24_000)
    with Pipeline() as pipeline:
        sound = pipeline.encode(
            "mel", zoo.codec("mel"), pipeline.source("sound", str(clip)), hops=1
        )
        words = pipeline.source("words", transcript, kind="text")
        vectors = pipeline.encode("bytes", texts.codec(), words)
        both = pipeline.merge("both", [sound, words, vectors])
        pipeline.sink("out", tmp_path / "out.arrows", both)
        assert pipeline.run_blocking().outcome == "ended"
    heard, said, made = streamenc.read(tmp_path / "out.arrows").tracks
    assert heard.data.shape[1] >= 100 and heard.segments is None
    assert said.data[0].tolist() == [each["text"] for each in SAID]
    assert made.times.tolist() == said.times.tolist() == [0.2, 0.2, 0.7]
    info, frames = read_file(str(tmp_path / "out.arrows"))
    starts = [float(frame.pts * info.tracks[frame.track].time_base) for frame in frames]
    assert starts == sorted(starts)


def test_kinds_that_do_not_fit_are_refused_in_a_sentence(transcript: str) -> None:
    with Pipeline() as pipeline:
        words = pipeline.source("words", transcript, kind="text")
        with pytest.raises(UsageError, match="mel encodes sound, and words gives text: give it"):
            pipeline.encode("mel", zoo.codec("mel"), words)
        mic = pipeline.source("mic", "mic:")
        with pytest.raises(
            UsageError, match="bytes encodes text, and mic gives sound.*kind = text"
        ):
            pipeline.encode("bytes", texts.codec(), mic)
        for wrong in ({"channel": 0}, {"size": "4x4"}, {"conceal_ms": 5.0}, {"runs": True}):
            with pytest.raises(UsageError, match="bytes takes text"):
                pipeline.encode("bytes", texts.codec(), words, **wrong)  # type: ignore[arg-type]


def test_a_pipeline_file(transcript: str, tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    path.write_text(f"""
        [nodes.words]
        source = "{transcript}"
        kind = "text"
        [nodes.vectors]
        encode = "tests.support.texts:load"
        after = "words"
        [nodes.out]
        sink = "{tmp_path}/out.npz"
        after = "vectors"
    """)
    with Pipeline.from_toml(path) as pipeline:
        assert pipeline.run_blocking().outcome == "ended"
    assert streamenc.read(tmp_path / "out.npz").data.shape == (texts.WIDTH, 3)


def test_text_over_the_network_and_back(tmp_path: Path) -> None:
    address = f"zmq+ipc://{tmp_path}/words"
    with Pipeline() as pipeline:
        words = pipeline.graph.source(
            "words", Given(texts.INFO, texts.segments("a", "b", "ć", revised=(2,)))
        )
        both = pipeline.merge("both", [words, pipeline.encode("bytes", texts.codec(), words)])
        pipeline.sink("out", address, both, options={"mode": "credit"})
        got: list[tuple[int, int, bool, object]] = []
        with streamenc.subscribe(address, mode="credit") as subscription:
            assert pipeline.run_blocking().outcome == "ended"
            for piece in subscription:
                got.append(
                    (piece.frame.track, piece.segment, piece.revised, piece.data.tolist()[0][0])
                )
    assert [each for each in got if each[0] == 0] == [
        (0, 0, False, "a"),
        (0, 1, False, "b"),
        (0, 1, True, "ć"),
    ]
    assert [each[1:3] for each in got if each[0] == 1] == [(0, False), (1, False), (1, True)]
