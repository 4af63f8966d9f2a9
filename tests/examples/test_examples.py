"""Every example runs, as its first lines say."""

from __future__ import annotations

import json
import re
import runpy
import socket
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.reading import read_file
from streamenc.pipeline.builder import Pipeline
from tests.bench.conftest import whisper
from tests.support import program, references, zoo
from tests.support.media import write_film, write_wav
from tests.support.program import script

__all__ = ["whisper"]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CLIP = EXAMPLES / "data" / "speech.flac"


def python(*args: str | Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """1.5 s of a rising tone."""
    times = np.arange(36_000) / 24_000
    return write_wav(tmp_path / "clip.wav", 0.3 * np.sin(2000 * times**2)[None], 24_000)


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Mimi with frames of 80 ms."""
    folder = tmp_path_factory.mktemp("mimi")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        references.mimi(upsampling_ratios=[8, 6, 5, 4]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["nano", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mel", "mimi"))]
)
def test_the_demo(name: str, clip: Path, mimi: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    decodes = name != "mel"
    model = {"nano": [], "mel": ["--model", "mel"], "mimi": ["--model", mimi]}[name]
    done = python(EXAMPLES / "demo.py", "--input", clip, "--output", output, *model)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for word in ("encode.chunk", "end to end ms", "subscriber", "p50 / p99 / max"):
        assert word in done.stderr
    info, frames = read_file(str(output / "tokens.arrows"))
    assert info.kind == ("codes" if decodes else "features")
    assert sum(frame.duration for frame in frames) == 36_000
    assert (output / "encoded.png").read_bytes()[:4] == b"\x89PNG"
    assert (output / "decoded.wav").exists() == decodes
    page = (output / "index.html").read_text()
    assert page.count("<audio") == (2 if decodes else 1) and 'src="data:image/png' in page
    assert 'src="http' not in page  # it needs nothing from elsewhere
    if decodes:
        sound, pieces = read_file(str(output / "decoded.wav"))
        assert sound.rate == (16_000 if name == "nano" else 24_000)
        assert sum(piece.data.shape[-1] for piece in pieces) == 1.5 * sound.rate
        assert re.search(r"kbit/s, PESQ (\d\.\d\d of|not)", done.stderr)


def test_the_demos_table_of_a_subscriber(tmp_path: Path) -> None:
    latency = {"count": 5, "mean_ms": 1.0, "p50_ms": 1.25, "p99_ms": 31.7, "max_ms": 250.0}
    sink = {
        "end_to_end": latency,
        "deadline_misses": 1,
        "gaps": 2,
        "media_seconds": 1.5,
        "realtime_factor": 0.987,
        "first_frame_ms": 80.0,
    }
    nodes = [
        {"name": "in", "frames_in": 0, "sink": None},
        {"name": "out", "frames_in": 5, "sink": sink},
    ]
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(demo["subscriber_table"]({"dropped": 3, "nodes": nodes}))
    _, line = capture.get().splitlines()
    assert re.split(" {2,}", line.strip()) == [
        "out",
        "5",
        "1.50",
        "0.99",
        "1.25 / 31.7 / 250",
        *"132",
    ]


def test_the_demo_without_a_clip(tmp_path: Path) -> None:
    done = script(EXAMPLES / "demo.py", "--input", "nothere.wav", "--output", tmp_path)
    assert done.code == 1
    assert "demo: " in done.error and "nothere.wav" in done.error
    assert "Traceback" not in done.error


def test_the_pipeline_file_as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with Pipeline.from_toml(EXAMPLES / "pipeline.toml") as pipeline:
        assert pipeline.live and list(pipeline.sinks.values()) == [
            "zmq+tcp://127.0.0.1:5555",
            "pipeline.arrows",
        ]


def test_the_pipeline_file_runs(clip: Path, tmp_path: Path) -> None:
    text = (EXAMPLES / "pipeline.toml").read_text()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recording = tmp_path / "pipeline.arrows"
    for old, new in (
        ("examples/data/speech.flac", clip),
        ("127.0.0.1:5555", f"127.0.0.1:{port}"),
        ("pipeline.arrows", recording),
    ):
        assert f'{old}"' in text
        text = text.replace(f'{old}"', f'{new}"')
    path = tmp_path / "pipeline.toml"
    path.write_text(text)
    done = program.streamenc("run", path)
    assert done.code == 0, done.error
    info, frames = read_file(str(recording))
    assert info.model == "mel" and sum(frame.duration for frame in frames) == 36_000


def test_a_microphone_and_a_camera(clip: Path, tmp_path: Path) -> None:
    """The pipeline as shipped, with a clip and moving patterns for the devices."""
    zoo.save_vit("dinov2")(tmp_path)
    recording = tmp_path / "out.arrows"
    text = (EXAMPLES / "camera.toml").read_text()
    for old, new in (
        ('"mic:"', f'"{clip}"\nrealtime = true'),
        ('"camera:" ', '"test:motion?live=true&seconds=1.5"'),
        ('"facebook/dinov2-small"', f'"{tmp_path}"'),
        ('"zmq+tcp://127.0.0.1:5555"', f'"{recording}"'),
    ):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "camera.toml"
    path.write_text(text)
    done = program.streamenc("run", path)
    assert done.code == 0, done.error
    info, frames = read_file(str(recording))
    assert [track.kind for track in info.tracks] == ["codes", "features"]
    times = [float(frame.pts * info.tracks[frame.track].time_base) for frame in frames]
    assert len({frame.track for frame in frames}) == 2
    # Both began when the graph did, and last as long.
    for track in (0, 1):
        of_track = [at for at, frame in zip(times, frames, strict=True) if frame.track == track]
        assert abs(of_track[0]) < 0.7 and 1.0 < of_track[-1] - of_track[0] < 1.6


def test_a_film_becomes_one_sequence(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", seconds=1.0, width=128, height=96)
    model = tmp_path / "DV4x8x8"
    model.mkdir()
    zoo.save_cosmos_codes(model)
    done = script(EXAMPLES / "film_tokens.py", film, tmp_path / "film.npz", model)
    assert done.code == 0, done.error
    assert "tokens of 80384 entries" in done.out
    with np.load(tmp_path / "film.npz") as made:
        tokens, seconds = made["tokens"], made["seconds"]
    info, frames = read_file(f"{tmp_path}/film.npz.arrows")
    assert len(tokens) == len(seconds) == sum(frame.data.size for frame in frames)
    assert (np.diff(seconds) >= 0).all()
    sound = tokens < 16 * 1024
    # 8 codebooks in turn, each with ids of its own; and 32 x 32 codes a latent.
    assert (tokens[sound] // 1024 == np.tile(np.arange(8), sound.sum() // 8)).all()
    images = [frame.data for frame in frames if frame.track == 1]
    assert images[0].shape == (1, 1, 32, 32)
    codes = np.concatenate([data.reshape(-1) for data in images]).astype(int)
    assert (tokens[~sound] - 16 * 1024 == codes).all()


@pytest.mark.parametrize("model", ["nano", "mel", "mimi", "encodec-48k"])
def test_a_codec_on_a_stream(model: str, clip: Path, mimi: Path, tmp_path: Path) -> None:
    name: str | Path = {"mimi": mimi}.get(model, model)
    if model == "encodec-48k":
        zoo.save_encodec_48k(name := tmp_path / "encodec")
    done = script(EXAMPLES / "stream_codec.py", name, clip)
    assert done.code == 0, done.error
    *lines, shapes, difference = done.out.splitlines()
    frames = sum(int(line.split()[-4]) for line in lines)
    assert shapes.count(f", {frames})") == 2
    if model == "mel":
        assert float(difference.split()[-1]) < 1e-4


def test_many_sessions() -> None:
    done = script(EXAMPLES / "many_sessions.py", "8", "3")
    assert done.code == 0, done.error
    assert "caller" in done.out and "is sent away: all 6 sessions" in done.out
    assert "the frozen one hears: this session was closed after 1 s" in done.out
    assert re.search(r"0 open of \d, 1 timed out, 0 dropped; [1-9] refused", done.out)
    assert re.search(r"codes as alone: (100|9[89])\.\d\d% of .* of \d streams", done.out)


def test_live_captions(whisper: Path, clip: Path) -> None:
    done = python(EXAMPLES / "live_captions.py", whisper, clip)
    assert done.returncode == 0, done.stderr
    *lines, count = done.stdout.splitlines()
    assert count == "phrases: 1"
    assert len([line for line in lines if line.startswith("~")]) == 1
    assert "Traceback" not in done.stderr


def test_phrases_end_at_pauses_and_after_a_while() -> None:
    phrases = runpy.run_path(str(EXAMPLES / "live_captions.py"))["Phrases"]
    node = phrases(hold_seconds=0.03, most_seconds=0.1)
    assert node.open(AUDIO) == AUDIO
    levels = [0, 0.5, 0.5, 0, 0, 0, 0, 0, 0.5, *[0.5] * 12]
    out = []
    for k, level in enumerate(levels):
        out += node.push(Frame(np.full((1, 10), level, np.float32), 10 * k, 10, k))
    assert [(f.pts // 10, f.discontinuity) for f in out] == [
        *[(1, False), (2, False), (3, False), (4, False), (5, False)],
        *[(8, True), *[(k, False) for k in range(9, 18)]],
        *[(18, True), (19, False), (20, False)],
    ]
    assert [f.seq for f in out] == list(range(len(out)))
    with pytest.raises(FitError, match="listens to audio"):
        phrases().open(StreamInfo("codes", Fraction(1), Fraction(1), (1, None), "uint16"))


Gate: Any = runpy.run_path(str(EXAMPLES / "custom_node.py"))["Gate"]
AUDIO = StreamInfo("audio", Fraction(1, 1000), Fraction(1000), (1, None), "float32")


def through_the_gate(levels: list[float], **options: float) -> list[tuple[int, int, bool]]:
    """(pts, seq, flag) of what passes of frames of 10 ms; 1000 samples a second."""
    gate = Gate(**options)
    assert gate.open(AUDIO) == AUDIO
    out = []
    for k, level in enumerate(levels):
        out += gate.push(Frame(np.full((1, 10), level, np.float32), 10 * k, 10, k))
    out += gate.flush()
    assert gate.shut_ticks == 10 * (len(levels) - len(out))
    return [(f.pts, f.seq, f.discontinuity) for f in out]


def test_a_gate_cuts_silence_out_and_says_so() -> None:
    levels = [0, 0, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 0.5, 0]
    assert through_the_gate(levels, hold_seconds=0.02) == [
        (20, 0, True),
        (30, 1, False),
        (40, 2, False),
        (50, 3, False),
        (60, 4, False),
        (90, 5, True),
        (100, 6, False),
        (110, 7, False),
    ]


def test_a_gate_is_open_for_sound_and_shut_for_silence() -> None:
    assert through_the_gate([0.5] * 5) == [(10 * k, k, False) for k in range(5)]
    assert through_the_gate([0.0] * 5) == []
    with pytest.raises(FitError, match="listens to audio"):
        Gate().open(StreamInfo("codes", Fraction(1), Fraction(1), (1, None), "uint16"))


def test_a_gate_in_a_graph() -> None:
    done = script(EXAMPLES / "custom_node.py")
    assert done.code == 0, done.error
    assert "4 pauses were cut out" in done.out


def test_units_of_speech(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A hop of 320 samples, as published.
        stem = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 8], "conv_stride": [5, 8, 8]}
        zoo.save_speech("hubert", **stem)(tmp_path / "hubert")
    centroids = tmp_path / "centroids.npy"
    for _ in range(2):  # they are learnt, then read
        done = script(EXAMPLES / "hubert_units.py", tmp_path / "hubert", centroids, CLIP, "2")
        assert done.code == 0, done.error
    assert np.load(centroids).shape == (50, 24)
    info, *runs = [json.loads(line) for line in done.out.splitlines()]
    assert (info["info"]["rate"], info["info"]["codebook_size"]) == ("50/1", 50)
    units = [run["codes"][0][0] for run in runs]
    assert all(a != b for a, b in zip(units, units[1:], strict=False)) and len(set(units)) > 10
    ends = [run["pts"] + run["duration"] for run in runs]
    assert ends[:-1] == [run["pts"] for run in runs[1:]]


def test_codes_of_xcodec_by_what_it_hears(tmp_path: Path, clip: Path) -> None:
    from tests.support import references

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        references.xcodec(published_hop=True).save_pretrained(tmp_path / "xcodec")
    done = script(EXAMPLES / "xcodec_codes.py", tmp_path / "xcodec", clip)
    assert done.code == 0, done.error
    head, *rows = done.out.splitlines()
    assert head.split()[-4:] == ["1", "books", "3", "books"] and len(rows) == 10
    shares = [float(row.split()[-1].rstrip("%")) for row in rows]
    assert all(0 <= share <= 100 for share in shares)
