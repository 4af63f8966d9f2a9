from __future__ import annotations

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamenc.errors import FitError, InputError, OutputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.soundwriter import AudioFileSink
from tests.support.disk import fill, tiny_disk


def info_of(rate: int, channels: int = 1, time_base: Fraction | None = None) -> StreamInfo:
    time_base = time_base or Fraction(1, rate)
    return StreamInfo("audio", time_base, Fraction(rate), (channels, None), "float32")


def noise(rate: int, channels: int = 1, seconds: float = 1.0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (channels, round(rate * seconds))).astype(np.float32)


def tone(rate: int, channels: int = 1) -> np.ndarray[Any, Any]:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def frames_of(samples: np.ndarray[Any, Any], size: int = 777) -> list[Frame]:
    starts = range(0, samples.shape[1], size)
    pieces = [samples[:, at : at + size] for at in starts]
    return [
        Frame(p, at, p.shape[1], i) for i, (at, p) in enumerate(zip(starts, pieces, strict=True))
    ]


def write(path: Path, info: StreamInfo, frames: list[Frame], **options: Any) -> AudioFileSink:
    sink = AudioFileSink(str(path), **options)
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    sink.close_blocking()
    return sink


def read(path: Path) -> tuple[int, np.ndarray[Any, Any]]:
    """(sample rate, (channels, samples) of float64), by PyAV alone."""
    with av.open(str(path)) as container:
        pieces = []
        for frame in container.decode(audio=0):
            data = frame.to_ndarray()
            if not frame.format.is_planar:
                data = data.reshape(-1, frame.layout.nb_channels).T
            top = 1 if data.dtype.kind == "f" else 2.0 ** (8 * data.itemsize - 1)
            pieces.append(data / top)
            rate = frame.sample_rate
    return rate, np.concatenate(pieces, axis=1)


@pytest.mark.parametrize(
    ("name", "format", "step"),
    [
        ("a.wav", "", 2**-15),
        ("a.wav", "s24", 2**-23),
        ("a.wav", "f32", 0),
        ("a.flac", "s16", 2**-15),
        ("a.flac", "s24", 2**-23),
        ("A.WAV", "", 2**-15),
    ],
)
@pytest.mark.parametrize(
    ("rate", "channels"), [(8000, 1), (24000, 1), (44100, 2), (48000, 6), (96000, 2)]
)
def test_lossless_files_hold_every_sample(
    tmp_path: Path, name: str, format: str, step: float, rate: int, channels: int
) -> None:
    samples = noise(rate, channels)
    write(tmp_path / name, info_of(rate, channels), frames_of(samples), format=format)
    got_rate, got = read(tmp_path / name)
    assert got_rate == rate
    assert got.shape == samples.shape
    # Rounded to the nearest step; only the topmost half step is cut off.
    error = np.abs(got - samples)
    assert error[samples < 1 - step].max() <= step / 2
    assert error.max() <= step


@pytest.mark.parametrize("name", ["a.ogg", "a.opus"])
@pytest.mark.parametrize(("rate", "channels"), [(24000, 1), (44100, 2), (16000, 1), (96000, 2)])
def test_opus_keeps_the_sound_and_its_length(
    tmp_path: Path, name: str, rate: int, channels: int
) -> None:
    write(tmp_path / name, info_of(rate, channels), frames_of(tone(rate, channels)))
    got_rate, got = read(tmp_path / name)
    assert got_rate == 48000
    assert got.shape[0] == channels
    assert got.shape[1] == pytest.approx(48000, abs=960)
    wanted = tone(48000)[0, 4800:43200]
    for channel in got[:, 4800:43200]:
        assert np.corrcoef(channel, wanted)[0, 1] > 0.99  # in phase: no delay was added


def test_clipping_is_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.array([[0.5, 1.0, -1.0, 1.5, -7.0]], np.float32)
    frames = [Frame(samples, 0, 5, 0), Frame(samples, 5, 5, 1)]
    sink = write(tmp_path / "a.wav", info_of(8000), frames)
    assert sink.clipped == 4
    assert len(caplog.records) == 1
    _, got = read(tmp_path / "a.wav")
    top = 1 - 2**-15
    np.testing.assert_array_equal(got[0], [0.5, top, -1, top, -1] * 2)


def test_gaps_are_filled_with_silence(tmp_path: Path) -> None:
    base = Fraction(1, 44100)  # the source's time base; the sound is at 8 kHz
    half = np.full((1, 4000), 0.5, np.float32)
    frames = [
        Frame(half, 1000, 22050, 0),
        Frame(half, 1000 + 22050 + 132300, 22050, 7, discontinuity=True),
    ]
    write(tmp_path / "a.wav", info_of(8000, 1, base), frames)
    _, got = read(tmp_path / "a.wav")
    assert got.shape[1] == 4000 + 24000 + 4000
    assert (got[:, 4000:28000] == 0).all()
    assert (got[:, 28000:] == 0.5).all()


@pytest.mark.parametrize(
    ("jump", "flag", "logged"), [(-100, True, 1), (9000, True, 1), (0, True, 0), (9000, False, 0)]
)
def test_other_jumps_are_closed_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, jump: int, flag: bool, logged: int
) -> None:
    data = np.zeros((1, 500), np.float32)
    frames = [Frame(data, 0, 500, 0), Frame(data, 500 + jump, 500, 1, discontinuity=flag)]
    write(tmp_path / "a.wav", info_of(8000), frames, max_gap_s="1")
    assert read(tmp_path / "a.wav")[1].shape[1] == 1000
    assert len(caplog.records) == logged


WRITE_FOREVER = """
import itertools, sys
from fractions import Fraction
import numpy as np
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.soundwriter import AudioFileSink

sink = AudioFileSink(sys.argv[1])
sink.open_blocking(
    StreamInfo("audio", Fraction(1, 24000), Fraction(24000), (1, None), "float32")
)
for seq in itertools.count():
    sink.write_blocking(Frame(np.full((1, 480), 0.25, np.float32), 480 * seq, 480, seq))
    print(seq, flush=True)
"""


@pytest.mark.parametrize(("name", "slack"), [("a.wav", 0), ("a.flac", 9216), ("a.ogg", 48000)])
def test_a_killed_writer_leaves_a_file_that_plays(tmp_path: Path, name: str, slack: int) -> None:
    path = tmp_path / name
    command = [sys.executable, "-c", WRITE_FOREVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 250:
                break
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([250, *map(int, writer.stdout.read().splitlines())])
    rate, got = read(path)
    assert got.shape[1] * 24000 // rate >= 480 * (acknowledged + 1) - slack
    if name == "a.wav":
        assert (got == 0.25).all()


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_an_empty_stream_is_an_empty_file(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, info_of(24000), [])
    with av.open(str(tmp_path / name)) as container:
        assert not [frame.samples for frame in container.decode(audio=0)]


def test_a_full_disk_is_said_and_what_was_written_plays(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        path = disk / "a.wav"
        sink = AudioFileSink(str(path))
        sink.open_blocking(info_of(24000))
        with pytest.raises(OutputError, match="disk is full"):
            for frame in frames_of(noise(24000, 1, 10)):
                sink.write_blocking(frame)
        with pytest.raises(OutputError, match="closed"):
            sink.write_blocking(frames_of(noise(24000))[0])
        sink.close_blocking()
        _, got = read(path)
    assert got.shape[1] > 20000
    np.testing.assert_allclose(got, noise(24000, 1, 10)[:, : got.shape[1]], atol=2**-15)


def test_a_disk_that_fills_up_at_the_end_is_said(tmp_path: Path) -> None:
    samples = noise(24000, 1, 10)
    with tiny_disk(tmp_path / "disk") as disk:
        sink = AudioFileSink(str(disk / "a.flac"))
        sink.open_blocking(info_of(24000))
        fill(disk)
        with pytest.raises(OutputError, match="disk is full"):
            # Less than a block of FLAC waits in the encoder until the end.
            for frame in frames_of(samples[:, :4000]):
                sink.write_blocking(frame)
            sink.close_blocking()
        sink.close_blocking()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    codes = StreamInfo("codes", Fraction(1, 75), Fraction(75), (2, None), "uint16", "m", 1024)
    with pytest.raises(FitError, match="decode it first"):
        AudioFileSink(str(tmp_path / "a.wav")).open_blocking(codes)
    odd = StreamInfo("audio", Fraction(1, 75), Fraction(25, 2), (1, None), "float32")
    with pytest.raises(FitError, match="whole sample rate"):
        AudioFileSink(str(tmp_path / "a.wav")).open_blocking(odd)
    with pytest.raises(FitError, match="flac cannot hold"):
        AudioFileSink(str(tmp_path / "a.flac")).open_blocking(info_of(48000, 24))
    sink = AudioFileSink(str(tmp_path / "a.wav"))
    sink.open_blocking(info_of(24000, 2))
    with pytest.raises(InputError, match="1x5"):
        sink.write_blocking(Frame(np.zeros((1, 5), np.float32), 0, 5, 0))
    sink.close_blocking()


def test_files_and_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="mkdir"):
        AudioFileSink(str(tmp_path / "no" / "a.wav")).open_blocking(info_of(24000))
    (tmp_path / "a.wav").write_bytes(b"precious")
    with pytest.raises(OutputError, match="overwrite"):
        AudioFileSink(str(tmp_path / "a.wav"), overwrite="false").open_blocking(info_of(24000))
    assert (tmp_path / "a.wav").read_bytes() == b"precious"
    for name, option, value in (
        ("a.wav", "format", "s8"),
        ("a.ogg", "format", "s16"),
        ("a.wav", "max_gap_s", "-1"),
        ("a.wav", "overwrite", "perhaps"),
    ):
        with pytest.raises(UsageError, match=option):
            AudioFileSink(name, **{option: value})
    with pytest.raises(UsageError, match=r"a\.xyz"):
        AudioFileSink("a.xyz")
    AudioFileSink("a.wav").close_blocking()


def test_what_is_not_finite_is_clamped_and_counted(tmp_path: Path) -> None:
    samples = noise(8000)
    samples[0, :3] = np.nan, np.inf, -np.inf
    sink = write(tmp_path / "a.wav", info_of(8000), frames_of(samples))
    assert sink.clipped == 3
    np.testing.assert_allclose(read(tmp_path / "a.wav")[1][0, :3], [0, 1, -1], atol=2**-14)
