"""A film through the whole program: sound and images to one stream of tokens, and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import streamenc
from streamenc.codec import Codec
from streamenc.errors import UsageError
from streamenc.graph.report import GraphReport
from streamenc.io.reading import read_file, tracks_of
from streamenc.models.model import Model
from streamenc.pipeline.builder import Pipeline
from tests.support import program, zoo
from tests.support.media import write_film
from tests.support.program import Done

SECONDS, FPS = 2.0, 25


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.mkv", seconds=SECONDS, fps=FPS)


@pytest.fixture(scope="module")
def cosmos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of codes, 4 frames and 8 x 8 pixels each."""
    folder = tmp_path_factory.mktemp("models") / "DV4x8x8"
    folder.mkdir()
    zoo.save_cosmos_codes(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(film: Path, cosmos: Path) -> Path:
    """What the command line makes of the film."""
    path = film.parent / "film.arrows"
    model = ("-m", "nano", "-n", 4, "--video", cosmos, "--video-set", "mode=window")
    done = run("encode", film, path, *model, "--size", "48x32")
    assert "images.fit" in done.error and "merge" in done.error
    return path


def run(*args: object, code: int = 0) -> Done:
    done = program.streamenc(*args)
    assert done.code == code, done.error
    return done


def test_sound_and_images_become_one_stream_in_order_of_time(tokens: Path, cosmos: Path) -> None:
    info, frames = read_file(str(tokens))
    assert tracks_of(str(tokens)) == info.tracks
    sound, images = info.tracks
    assert (sound.model, images.model) == ("nano", cosmos.name)
    assert (images.kind, images.shape, images.dtype) == ("codes", (1, None, 4, 6), "uint16")
    assert images.rate == pytest.approx(FPS / 4)
    starts = [float(frame.pts * info.track(frame.track).time_base) for frame in frames]
    assert starts == sorted(starts)
    for track, items in ((0, 50 * SECONDS), (1, 1 + np.ceil((SECONDS * FPS - 1) / 4))):
        of_track = [frame for frame in frames if frame.track == track]
        assert not any(frame.discontinuity for frame in of_track)
        assert sum(frame.data.shape[1] for frame in of_track) == pytest.approx(items, abs=6)
        ticks = sum(frame.duration for frame in of_track)
        assert float(ticks * info.track(track).time_base) == pytest.approx(SECONDS, abs=0.15)


def test_and_back_to_a_film(tokens: Path, cosmos: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.mp4"
    run("decode", tokens, back, "-m", "nano", "-m", cosmos, "--video-set", "mode=window")
    with av.open(str(back)) as container:
        image, sound = container.streams.video[0], container.streams.audio[0]
        assert (image.width, image.height) == (48, 32)
        times = [float(frame.time) for frame in container.decode(image)]
    assert len(times) == SECONDS * FPS
    assert np.allclose(np.diff(times), 1 / FPS, atol=2e-3)
    with av.open(str(back)) as container:
        samples = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
    assert samples / sound.rate == pytest.approx(SECONDS, abs=0.2)
    words = run("decode", tokens, back, "-y", "-m", "nano", code=2).error
    assert "holds 2 streams; got 1 of --model" in words


def test_images_alone_and_a_look_at_them(film: Path, cosmos: Path, tmp_path: Path) -> None:
    codes, sheet = tmp_path / "codes.arrows", tmp_path / "sheet.png"
    run("encode", film, codes, "-m", cosmos, "--set", "mode=window", "--size", "48x32", "-q")
    info, frames = read_file(str(codes))
    assert info.shape == (1, None, 4, 6)
    done = run("inspect", codes, "--png", sheet, "--original", film, "--model", cosmos)
    assert "64000 entries" in done.out and str(sheet.name) in done.out.replace("\n", "")
    assert sheet.read_bytes()[:4] == b"\x89PNG"
    assert len(frames) == 1 + np.ceil((SECONDS * FPS - 1) / 4)


def slowed(model: Model, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    step = model.step

    def late(x: Any, *rest: Any, **options: Any) -> Any:
        time.sleep(seconds if x.shape[-1] else 0)
        return step(x, *rest, **options)

    monkeypatch.setattr(model, "step", late)


def live(codec: Codec, fps: int, out: Path) -> tuple[Pipeline, GraphReport]:
    """A camera for two seconds, through an encoder."""
    with Pipeline() as pipeline:
        target = f"test:motion?size=64x48&fps={fps}&seconds=2&live=true"
        codes = pipeline.encode("codes", codec, pipeline.source("camera", target, kind="video"))
        pipeline.sink("out", str(out), codes)
        return pipeline, pipeline.graph.run_blocking(handle_signals=False)


def test_a_model_of_single_images_gets_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera that is three times faster than it: latency stays, what is left out is counted."""
    zoo.save_vit()(tmp_path)
    codec = streamenc.load(tmp_path, part="encoder")
    slowed(codec.encoder, 0.06, monkeypatch)
    _, report = live(codec, 50, tmp_path / "out.arrows")
    info, frames = read_file(str(tmp_path / "out.arrows"))
    assert report.outcome == "ended" and 5 < len(frames) < 50
    assert report.dropped == 100 - len(frames)
    assert sum(frame.discontinuity for frame in frames) > len(frames) / 2
    (sink,) = [node.sink for node in report.nodes if node.sink]
    # Two images wait and one is in hand, so the newest is never older than some steps, which on a
    # busy machine take longer.
    assert sink.end_to_end.p50_ms < 5 * 2000 / len(frames)
    assert frames[-1].pts * info.time_base > 1.8


def test_a_model_with_a_memory_runs_on_over_images_that_are_left_out(
    cosmos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codec = streamenc.load(cosmos, part="encoder", mode="window")
    slowed(codec.encoder, 0.3, monkeypatch)
    _, report = live(codec, 50, tmp_path / "out.arrows")
    _, frames = read_file(str(tmp_path / "out.arrows"))
    assert report.outcome == "ended" and report.dropped > 10
    assert not any(frame.discontinuity for frame in frames)
    assert "images are left out" in caplog.text
    ends = [frame.pts + frame.duration for frame in frames]
    assert ends == sorted(ends) and len(frames) > 4


def test_what_makes_no_sense_is_said(film: Path, cosmos: Path) -> None:
    codec = streamenc.load(cosmos, part="encoder")
    with Pipeline() as pipeline:
        camera = pipeline.source("camera", "test:bars?live=true", kind="video")
        with pytest.raises(UsageError, match="a live source has no end: load it with mode=window"):
            pipeline.encode("codes", codec, camera)
        sound = streamenc.load("nano", part="encoder")
        with pytest.raises(UsageError, match="size, fit and filter are of images"):
            pipeline.encode("nano", sound, camera, size="32x32")
    for args, words in (
        (("-m", "nano", "--size", "32x32"), "--size, --fit and --filter are of images"),
        (("-m", cosmos, "--video", cosmos), "takes images itself"),
        (("-m", cosmos, "--size", "32"), "WIDTHxHEIGHT"),
        (("-m", cosmos, "--fit", "squeeze"), "crop, pad"),
    ):
        assert words in run("encode", film, film.parent / "x.arrows", *args, code=2).error
