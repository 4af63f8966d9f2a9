"""Sound on standard output: what the next program in a pipe reads."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import wave
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile

from streamenc.cli.main import main
from streamenc.errors import OutputError
from streamenc.graph.node import BlockingSink
from streamenc.io import sink as sink_of
from streamenc.io import source as source_of
from streamenc.io.files.standard.standardoutput import StandardOutput
from tests.support.drive import audio_info, noise, sound
from tests.support.piped import fifo, read_all
from tests.support.program import streamenc

RATE = 16_000
SOUND = noise(3 * RATE).clip(-1, 1)
WHOLE = np.minimum(np.rint(SOUND[0] * np.float64(2**15)), 2**15 - 1).astype(np.int16)
PROGRAM = [sys.executable, "-m", "streamenc"]


def wrote(sink: BlockingSink, channels: np.ndarray = SOUND) -> bytes:
    """What it writes to standard output."""
    reader, writer = os.pipe()
    got: list[bytes] = []

    def collect() -> None:
        with os.fdopen(reader, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=collect)
    thread.start()
    with os.fdopen(writer, "w") as stdout, mock.patch("sys.stdout", stdout):
        sink.open_blocking(audio_info(RATE, len(channels)))
        for frame in sound(channels, 1000):
            sink.write_blocking(frame)
        sink.close_blocking()
        sink.close_blocking()
    thread.join(10)
    return got[0]


def test_sound_is_a_wav_that_python_and_libsndfile_read() -> None:
    data = wrote(StandardOutput())
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(10**7), "<i2"), WHOLE)
    got, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(got, WHOLE)


@pytest.mark.parametrize(("format", "step"), [("s24", 2**-23), ("f32", 0)])
def test_formats_of_the_wav(format: str, step: float) -> None:
    both = np.concatenate([SOUND, -SOUND])
    got, _ = soundfile.read(io.BytesIO(wrote(StandardOutput(format=format), both)))
    np.testing.assert_allclose(got.T, both, atol=step)


@pytest.mark.parametrize(
    "format", ["s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be"]
)
def test_samples_without_a_header_are_read_as_they_were_written(
    tmp_path: Path, format: str
) -> None:
    both = np.concatenate([SOUND, -SOUND])
    sink = sink_of(f"pcm:-?format={format}")
    assert isinstance(sink, BlockingSink)
    data = wrote(sink, both)
    assert list(sink.remarks) == [f"wrote {format}, 2 channels, 16000 Hz, without a header"]
    path = tmp_path / "a.raw"
    path.write_bytes(data)
    got = read_all(source_of(f"{path}?format={format}&channels=2&rate={RATE}"))
    step = 0 if format[0] == "f" else 2.0 ** (1 - int(format[1:3]))
    np.testing.assert_allclose(got, both, atol=max(step, 1e-7))


def test_a_file_and_a_named_pipe_of_samples(tmp_path: Path) -> None:
    for path in (tmp_path / "a.pcm", fifo(tmp_path / "b.pcm")):
        got: list[bytes] = []
        if path.exists():
            thread = threading.Thread(target=lambda to=got, of=path: to.append(of.read_bytes()))
            thread.start()
        sink = sink_of(str(path))
        assert isinstance(sink, BlockingSink)
        sink.open_blocking(audio_info(RATE))
        for frame in sound(SOUND, 1000):
            sink.write_blocking(frame)
        sink.close_blocking()
        if got or path.name == "b.pcm":
            thread.join(10)
        data = got[0] if got else path.read_bytes()
        np.testing.assert_array_equal(np.frombuffer(data, "<i2"), WHOLE)


def test_on_a_terminal_sound_is_json_lines_and_samples_are_refused() -> None:
    main, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stdout, mock.patch("sys.stdout", stdout):
        sink = StandardOutput()
        sink.open_blocking(audio_info(RATE))
        sink.close_blocking()
        with pytest.raises(OutputError, match="standard output is a terminal; pipe it"):
            sink_of("pcm:-").open_blocking(audio_info(RATE))  # type: ignore[attr-defined]
    assert json.loads(os.read(main, 4096))["info"]["kind"] == "audio"
    os.close(main)


@pytest.mark.parametrize("options", [{"format": "json"}, {"values": "yes"}])
def test_json_lines_of_sound_on_request(options: dict[str, str]) -> None:
    lines = [json.loads(line) for line in wrote(StandardOutput(**options)).splitlines()]  # type: ignore[arg-type]
    assert lines[0]["info"]["rate"] == "16000/1" and len(lines) == 49


def decoded(arguments: list[object], path: Path) -> np.ndarray:
    """What the command line writes to standard output, which is a file here."""
    with path.open("w") as stdout, mock.patch("sys.stdout", stdout):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    assert not ended.value.code
    return soundfile.read(io.BytesIO(path.read_bytes()), dtype="int16")[0]


def test_the_command_line_decodes_to_standard_output_what_it_decodes_to_a_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUND[0], RATE)
    assert streamenc("encode", path, tmp_path / "a.arrows", "-q").code == 0
    assert streamenc("decode", tmp_path / "a.arrows", tmp_path / "b.wav", "-q").code == 0
    got = decoded(["decode", tmp_path / "a.arrows", "-", "-q"], tmp_path / "out")
    np.testing.assert_array_equal(got, soundfile.read(tmp_path / "b.wav", dtype="int16")[0])


@pytest.mark.slow
def test_tokens_through_three_programs(tmp_path: Path) -> None:
    """encode | decode | a reader of WAV, and the same by way of files."""
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUND[0], RATE)
    encode = [*PROGRAM, "encode", "-", "-", "-q"]
    decode = [*PROGRAM, "decode", "-", "-", "-q"]
    with path.open("rb") as file:
        first = subprocess.Popen(encode, stdin=file, stdout=subprocess.PIPE)
        second = subprocess.Popen(decode, stdin=first.stdout, stdout=subprocess.PIPE)
        assert first.stdout is not None
        first.stdout.close()
        got, _ = second.communicate(timeout=60)
    assert (first.wait(10), second.returncode) == (0, 0)
    assert streamenc("encode", path, tmp_path / "a.arrows", "-q").code == 0
    assert streamenc("decode", tmp_path / "a.arrows", tmp_path / "b.wav", "-q").code == 0
    wanted, _ = soundfile.read(tmp_path / "b.wav", dtype="int16")
    piped, rate = soundfile.read(io.BytesIO(got), dtype="int16")
    assert rate == RATE
    # Steps of another size round otherwise.
    assert len(piped) == len(wanted) and np.abs(piped.astype(int) - wanted).max() <= 1


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_failure_of_the_program(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(SOUND[0], 20), RATE)
    assert streamenc("encode", path, tmp_path / "a.arrows", "-q").code == 0
    decode = [*PROGRAM, "decode", tmp_path / "a.arrows", "-", "-q"]
    with subprocess.Popen(decode, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        assert program.stdout.read(4) == b"RIFF"
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(60) == 0


@pytest.mark.parametrize("target", ["-", "pcm:-"])
def test_a_reader_that_goes_away(target: str) -> None:
    """Which the command line takes for an end, by the cause."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stdout, mock.patch("sys.stdout", stdout):
        sink = sink_of(target)
        assert isinstance(sink, BlockingSink)
        sink.open_blocking(audio_info(RATE))
        os.close(reader)
        with pytest.raises(OutputError) as failed:
            for frame in sound(SOUND, 1000):
                sink.write_blocking(frame)
        assert isinstance(failed.value.__cause__, BrokenPipeError)
        sink.close_blocking()


def test_two_outputs_do_not_share_standard_output(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUND[0], RATE)
    done = streamenc("encode", path, "-", "-?values=yes")
    assert done.code == 2 and "several outputs go to standard output" in done.error
    (tmp_path / "a.bin").write_bytes(b"mine")
    done = streamenc("decode", path, f"pcm:{tmp_path}/a.bin")
    assert done.code == 2 and "pass --overwrite" in done.error
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
