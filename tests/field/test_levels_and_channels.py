"""Files whose levels or channels no microphone gives: told, bounded, and what to do is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import streamenc
from streamenc.io import source as source_of
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.reading import read_file
from streamenc.pipeline.builder import Pipeline
from tests.support import zoo
from tests.support.piped import read_all
from tests.support.program import streamenc as run

RATE = 16_000
TIMES = np.arange(2 * RATE) / RATE
TONE = (0.25 * np.sin(2 * np.pi * 330 * TIMES * (1 + TIMES))).astype(np.float32)


def written(path: Path, *channels: np.ndarray, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, np.stack(channels, axis=1), RATE, subtype)
    return path


def encoded(path: Path, name: str, target: Path, **options: object) -> tuple[np.ndarray, list[str]]:
    """What a small model makes of it, and what the run remarks."""
    with Pipeline() as pipeline:
        source = pipeline.source("input", str(path))
        pipeline.encode("encode", zoo.codec(name), source, **options)  # type: ignore[arg-type]
        pipeline.sink("output", str(target), "encode")
        report = pipeline.graph.run_blocking(handle_signals=False)
    _, frames = read_file(str(target))
    remarks = [remark for node in report.nodes for remark in node.remarks]
    return np.concatenate([frame.data for frame in frames], axis=1), remarks


@pytest.mark.parametrize("name", ["encodec", "mimi", "mel", "whisper-window", "wav2vec2"])
@pytest.mark.parametrize("value", [1e30, 3e38])
def test_one_absurd_sample_is_no_end(tmp_path: Path, name: str, value: float) -> None:
    struck = TONE.copy()
    struck[1000] = value
    clean, none = encoded(written(tmp_path / "a.wav", TONE), name, tmp_path / "a.arrows")
    got, remarks = encoded(written(tmp_path / "b.wav", struck), name, tmp_path / "b.arrows")
    assert none == []
    (remark,) = remarks
    assert remark.startswith("1 of 32000 samples lay beyond +-16")
    assert np.isfinite(got).all()
    assert got.shape == clean.shape
    if got.dtype.kind == "u":  # codes come back to what they are without it
        assert (got[:, -5:] == clean[:, -5:]).mean() > 0.9


def test_numbers_of_16_bits_in_floats_name_the_scale(tmp_path: Path) -> None:
    loud = written(tmp_path / "loud.wav", 32768 * TONE)
    done = run("encode", loud, "null:", "--stats", tmp_path / "stats.json")
    assert "say ?scale=1/32768 at the source" in " ".join(done.error.split())
    assert "scale=1/32768" in json.dumps(json.loads((tmp_path / "stats.json").read_text()))
    scaled = source_of(f"{loud}?scale=1/32768")
    np.testing.assert_allclose(read_all(scaled)[0], TONE, atol=1e-7)
    done = run("encode", f"{loud}?scale=1/32768", "null:")
    assert done.code == 0 and "beyond" not in done.error


def test_inspect_shows_what_is_not_finite(tmp_path: Path) -> None:
    bad = TONE.copy()
    bad[[5, 9]], bad[20] = np.nan, np.inf
    done = run("inspect", written(tmp_path / "a.wav", bad))
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines() if "peak" in line)
    assert lines["peak"].split()[0] == "0.250"
    assert "3 samples, which models refuse" in done.out
    bad[20] = 40
    assert "beyond +-16" in run("inspect", written(tmp_path / "a.wav", bad)).out


def test_opposite_phase_is_noticed_and_one_channel_picked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", TONE, -TONE)
    done = run("encode", path, tmp_path / "mix.arrows")
    said = " ".join(done.error.split())
    assert "the 2 channels cancel each other out" in said and "--channel 0" in said
    mono = written(tmp_path / "mono.wav", TONE)
    assert run("encode", mono, tmp_path / "mono.arrows", "-q").code == 0
    wanted = codes(tmp_path / "mono.arrows")
    assert not np.array_equal(codes(tmp_path / "mix.arrows"), wanted)
    for arguments in (f"{path}?channel=0", path, "--channel", "0"), (f"{path}?channel=0",):
        target = tmp_path / "one.arrows"
        done = run("encode", arguments[0], target, "-y", *arguments[2:])
        assert done.code == 0 and "cancel" not in done.error
        np.testing.assert_array_equal(codes(target), wanted)


def codes(path: Path) -> np.ndarray:
    return np.concatenate([frame.data for frame in read_file(str(path))[1]], axis=1)


def test_the_customer_on_the_right(tmp_path: Path) -> None:
    """Two speakers, one a channel: each is encoded as if it were alone."""
    other = np.roll(TONE, 5000) * np.float32(0.5)
    path = written(tmp_path / "call.wav", TONE, other)
    np.testing.assert_array_equal(read_all(MediaSource(str(path), channel=1))[0], other)
    np.testing.assert_array_equal(
        read_all(MediaSource(str(path), channel="1,0")), np.stack([other, TONE])
    )
    samples = np.round(np.stack([TONE, other], axis=1) * 2**15).astype("<i2")
    (tmp_path / "call.s16").write_bytes(samples.tobytes())
    pcm = source_of(f"pcm:{tmp_path}/call.s16?rate={RATE}&channels=2&channel=1")
    np.testing.assert_array_equal(read_all(pcm)[0], samples[:, 1] / np.float32(2**15))
    assert run("encode", path, tmp_path / "one.arrows", "--channel", "1", "-q").code == 0
    alone = written(tmp_path / "alone.wav", other)
    assert run("encode", alone, tmp_path / "alone.arrows", "-q").code == 0
    np.testing.assert_array_equal(codes(tmp_path / "one.arrows"), codes(tmp_path / "alone.arrows"))


def test_a_channel_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", TONE, TONE)
    done = run("encode", f"{path}?channel=2", "null:")
    assert done.code == 1 and "has no channel 2; it has 2 channels, 0 to 1" in done.error
    done = run("encode", path, "null:", "--channel", "2")
    assert done.code == 2 and "there is no channel 2: they are counted from 0" in done.error
    done = run("encode", path, "null:", "--channel", "left")
    assert done.code == 2 and "'channel' must be a number from 0" in done.error


def test_surround_into_a_stereo_model(tmp_path: Path) -> None:
    surround = written(tmp_path / "a.wav", *[TONE * np.float32(k / 6) for k in range(6)])
    got, remarks = encoded(surround, "encodec-48k", tmp_path / "a.arrows")
    assert got.size
    assert "6 channels were taken for 5.1 and mixed to stereo by ITU-R BS.775" in remarks[0]
    _, remarks = encoded(surround, "encodec-48k", tmp_path / "b.arrows", channel="0,1")
    assert remarks == []
    five = written(tmp_path / "five.wav", *[TONE] * 5)
    with pytest.raises(streamenc.FitError, match="--channel 0,1"):
        encoded(five, "encodec-48k", tmp_path / "c.arrows")
