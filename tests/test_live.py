"""The live path as a user has it: the real program, a real sound server, a clip that is heard."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

import streamenc
from streamenc.io.reading import read_file
from tests.support import pulse, references
from tests.support.drive import joined
from tests.support.media import write_wav
from tests.support.program import streamenc as streamenc_here

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "examples" / "data" / "speech.flac"
SECONDS = 3

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(bool(pulse.MISSING), reason=f"not installed: {', '.join(pulse.MISSING)}"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pulse.PulseServer]:
    with pulse.pulse_server(tmp_path_factory.mktemp("pulse")) as server:
        yield server


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray[Any, Any]]:
    """Some seconds of the clip at 24 kHz: the file, and its samples."""
    info, frames = read_file(str(CLIP))
    resampled = soxr.resample(joined(frames)[0], float(info.rate), 24_000)[None]
    samples = resampled[:, 24_000 : 24_000 * (1 + SECONDS)]
    return write_wav(tmp_path_factory.mktemp("clip") / "speech.wav", samples, 24_000), samples


@contextmanager
def program(
    server: pulse.PulseServer, *args: str | Path, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """`streamenc ARGS` on the server's devices; it does not outlive the block."""
    command = [sys.executable, "-m", "streamenc", *map(str, args)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, env=server.env, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    due = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < due, "waited too long"
        time.sleep(0.05)


def recording(path: Path) -> Callable[[], bool]:
    """Whether more than the header is in the file."""
    return lambda: path.exists() and path.stat().st_size > 3000


def similarity(heard: np.ndarray[Any, Any], clip: np.ndarray[Any, Any]) -> float:
    """Best correlation of a spectrogram (bands, frames) with any stretch of a longer one."""
    frames = clip.shape[1]
    stretches = (heard[:, k : k + frames] for k in range(heard.shape[1] - frames + 1))
    return max(float(np.corrcoef(s.ravel(), clip.ravel())[0, 1]) for s in stretches)


def test_a_microphone_to_a_recording_until_ctrl_c(
    server: pulse.PulseServer, speech: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    wav, samples = speech
    target, stats = tmp_path / "mel.arrows", tmp_path / "stats.json"
    with program(server, "encode", "mic:", target, "-m", "mel", "--stats", stats) as encoder:
        wait_for(encoder, recording(target))
        subprocess.run(["paplay", wav], env=server.env, check=True, timeout=30)
        time.sleep(0.5)  # for what is still on its way
        encoder.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, errors = encoder.communicate(timeout=15)
    assert encoder.returncode == 0, errors
    assert time.monotonic() - begin < 5
    assert "stopped after" in errors and "Traceback" not in errors
    info, frames = read_file(str(target))
    assert info.model == "mel" and info.time_base.denominator in (44_100, 48_000)
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    heard, clip = joined(frames), streamenc.load("mel").encode(samples)[0].numpy()
    assert similarity(np.maximum(heard, -12), np.maximum(clip, -12)) > 0.9


def test_a_microphone_through_nano_and_back(
    server: pulse.PulseServer, speech: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    """Nothing but a microphone: no model is named, none is downloaded."""
    wav, samples = speech
    target, decoded = tmp_path / "tokens.arrows", tmp_path / "decoded.wav"
    with program(server, "encode", "mic:", target, "-n", "12") as encoder:
        wait_for(encoder, recording(target))
        subprocess.run(["paplay", wav], env=server.env, check=True, timeout=30)
        time.sleep(0.5)
        encoder.send_signal(signal.SIGINT)
        _, errors = encoder.communicate(timeout=15)
    assert encoder.returncode == 0, errors
    info, codes = read_file(str(target))
    assert info.model == "nano" and codes[0].data.shape[0] == 12
    done = streamenc_here("decode", target, decoded, "-q")
    assert done.code == 0, done.error
    sound, frames = read_file(str(decoded))
    mel = streamenc.load("mel", rate=16_000, n_fft=512, win_length=400, hop=160)
    heard = mel.encode(joined(frames))[0].numpy()
    narrow = soxr.resample(samples[0], 24_000, 16_000)
    clip = mel.encode(narrow)[0].numpy()
    assert sound.rate == 16_000
    assert similarity(np.maximum(heard, -8), np.maximum(clip, -8)) > 0.9


@pytest.mark.slow  # tests/io/devices/test_sound_server.py has an unplugged microphone by itself
def test_the_sound_server_goes_away(tmp_path: Path) -> None:
    target = tmp_path / "tokens.arrows"
    with (
        pulse.pulse_server(tmp_path / "pulse") as server,
        program(server, "encode", "mic:", target, "-q") as encoder,
    ):
        wait_for(encoder, recording(target))
        server.kill()
        _, errors = encoder.communicate(timeout=20)
    assert encoder.returncode == 1
    # PortAudio itself writes what ALSA told it.
    (line,) = [line for line in errors.splitlines() if not line.startswith("Expression ")]
    assert line.startswith("streamenc: node 'input' failed: DeviceError: the microphone")
    assert read_file(str(target))[1], "what was heard is kept"


def test_devices_are_listed_with_the_default(server: pulse.PulseServer) -> None:
    with program(server, "devices") as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    (header, *rows) = output.splitlines()
    assert header.split() == ["kind", "index", "name", "api", "channels", "rate", "default"]
    defaults = [row.split() for row in rows if row.rstrip().endswith("*")]
    assert sorted(row[0] for row in defaults) == ["compute", "input", "output"]


def test_a_microphone_that_is_not_there(server: pulse.PulseServer) -> None:
    with program(server, "encode", "mic:NOSUCH", "null:") as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    (line,) = errors.strip().splitlines()
    assert "NOSUCH" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["encode", "mic:", "null:"], "there is no microphone"),
        pytest.param(
            ["decode", "{codes}", "speaker:", "-m", "{mimi}"],
            "there is no speaker",
            marks=pytest.mark.slow,  # tests/io/devices/test_sound_server.py has it by itself
        ),
    ],
)
def test_without_a_device(
    args: list[str], words: str, tmp_path: Path, codes: tuple[Path, Path]
) -> None:
    # In torch, as another process may be compiling, of which a line would tell.
    nowhere = {
        "HOME": str(tmp_path),
        "PULSE_SERVER": f"unix:{tmp_path}/none",
        "STREAMENC_BACKEND": "torch",
    }
    count = "import sounddevice as s; print(len(s.query_devices()))"
    found = subprocess.run(
        [sys.executable, "-c", count], env=nowhere, capture_output=True, text=True, timeout=30
    )
    if found.stdout != "0\n":
        pytest.skip(found.stderr.strip() or "this machine has sound cards")
    mimi, recorded = codes
    command = [arg.format(codes=recorded, mimi=mimi) for arg in args]
    done = subprocess.run(
        [sys.executable, "-m", "streamenc", *command],
        env=nowhere,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("streamenc: ") and words in line


@pytest.fixture(scope="module")
def codes(
    tmp_path_factory: pytest.TempPathFactory, speech: tuple[Path, np.ndarray[Any, Any]]
) -> tuple[Path, Path]:
    """A small Mimi's folder, and a recording of what it makes of the clip."""
    folder = tmp_path_factory.mktemp("mimi")
    references.mimi(upsampling_ratios=[8, 6, 5, 4]).save_pretrained(folder)
    recorded = tmp_path_factory.mktemp("codes") / "codes.arrows"
    done = streamenc_here("encode", speech[0], recorded, "-m", folder, "-q")
    assert done.code == 0, done.error
    return folder, recorded


def test_a_token_stream_is_played(
    server: pulse.PulseServer, codes: tuple[Path, Path], tmp_path: Path
) -> None:
    mimi, recorded = codes
    url = f"zmq+ipc://{tmp_path}/tokens"
    raw = tmp_path / "heard.raw"
    listen = ["parec", "-d", "cable.monitor", "--format=float32le", "--rate=24000", "--channels=1"]
    with (
        raw.open("wb") as file,
        subprocess.Popen([*listen, "--latency-msec=50"], env=server.env, stdout=file) as monitor,
        program(server, "listen", f"{url}?mode=credit", "speaker:", "-m", mimi) as player,
    ):
        # The recording goes out as it is, through a pipeline of its own.
        pipeline = tmp_path / "publish.toml"
        pipeline.write_text(
            f"[nodes.codes]\nsource = '{recorded}'\n"
            f"[nodes.publish]\nsink = '{url}?mode=credit'\nafter = 'codes'\n"
        )
        done = streamenc_here("run", pipeline, "-q")
        assert done.code == 0, done.error
        _, errors = player.communicate(timeout=60)
        assert player.returncode == 0, errors
        assert "ended after" in errors
        time.sleep(0.5)
        monitor.terminate()
    heard = np.fromfile(raw, "<f4")
    assert np.count_nonzero(np.abs(heard) > 0.01) > 24_000
