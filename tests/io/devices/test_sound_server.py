"""Microphone and Speaker on a sound server that each test starts."""

import os
import subprocess
import sys
import time
import wave
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.support import pulse

needs_pulse = pytest.mark.skipif(
    bool(pulse.MISSING), reason=f"not installed: {', '.join(pulse.MISSING)}"
)


ROOT = str(Path(__file__).parents[3])


# Records until it reads a line.
RECORD = """
import sys, threading
import anyio, numpy as np
from streamenc.io import source

async def main(target, path):
    mic = source(target)
    info = await mic.open()
    frames = []
    threading.Thread(target=lambda: sys.stdin.readline() and mic.stop(), daemon=True).start()
    try:
        async for frame in mic.frames():
            if not frames:
                print("recording", flush=True)
            frames.append(frame)
    finally:
        await mic.aclose()
        await mic.aclose()
    np.savez(
        path,
        samples=np.concatenate([f.data for f in frames], -1),
        lengths=[f.data.shape[-1] for f in frames],
        pts=[f.pts for f in frames],
        durations=[f.duration for f in frames],
        seq=[f.seq for f in frames],
        flags=[f.discontinuity for f in frames],
        arrived_ns=[f.arrived_ns for f in frames],
        lost=mic.lost,
        rate=int(info.rate),
    )

anyio.run(main, sys.argv[1], sys.argv[2])
"""


PLAY = """
import sys
from fractions import Fraction
import anyio, numpy as np
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io import sink

async def main(target, path, repeat):
    samples = np.load(path)
    rate = 24000
    speaker = sink(target)
    await speaker.open(
        StreamInfo("audio", Fraction(1, rate), Fraction(rate), (1, None), "float32")
    )
    try:
        for k in range(0, samples.shape[-1] * repeat, 1920):
            at = k % samples.shape[-1]
            data = samples[:, at : at + 1920]
            await speaker.write(Frame(data, pts=k, duration=data.shape[-1], seq=k // 1920))
            if k == 0:
                print("playing", flush=True)
    finally:
        await speaker.aclose()
        await speaker.aclose()
    print("underflows", speaker.underflows, flush=True)

anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


def chirp(rate, seconds=1.0):
    """(samples,) from 200 to 1000 Hz, low enough for resamplers to shift by less than a sample."""
    time_seconds = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * (200 * time_seconds + 400 / seconds * time_seconds**2)
    return (0.5 * np.sin(phase)).astype(np.float32)


def correlation(heard, played):
    """The highest normalised correlation of `played` with any stretch of `heard`: 1 is equal."""
    size = 1 << int(np.ceil(np.log2(len(heard) + len(played))))
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size)), size)
    at = int(np.argmax(product[: len(heard) - len(played) + 1]))
    stretch = heard[at : at + len(played)]
    return float(product[at] / (np.linalg.norm(stretch) * np.linalg.norm(played) + 1e-9))


def write_wav(path, samples, rate):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@contextmanager
def child(command, env, **options):
    """A child process that does not outlive the block."""
    process = subprocess.Popen(command, env={**env, "PYTHONPATH": ROOT}, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def python(code, *arguments, env):
    """A child of its own for each use: PortAudio lists the devices once per process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return child(command, env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@needs_pulse
@pytest.mark.device
@pytest.mark.parametrize(
    ("target", "rate", "channels", "length"),
    [
        ("mic:?rate=48000&latency=0.2", 48_000, 1, 960),
        ("mic:DEFAULT?rate=24000&channels=2&block_ms=40&latency=0.2", 24_000, 2, 960),
    ],
)
def test_a_microphone_hears_what_is_played(tmp_path, target, rate, channels, length):
    write_wav(tmp_path / "chirp.wav", chirp(48_000), 48_000)
    with (
        pulse.pulse_server(tmp_path) as server,
        python(RECORD, target, tmp_path / "heard", env=server.env) as recorder,
    ):
        assert recorder.stdout.readline() == "recording\n", recorder.communicate()
        subprocess.run(["paplay", tmp_path / "chirp.wav"], env=server.env, check=True, timeout=30)
        time.sleep(0.5)  # for what is still on its way
        _, errors = recorder.communicate("stop\n", timeout=30)
        assert recorder.returncode == 0, errors
    heard = np.load(tmp_path / "heard.npz")
    assert heard["rate"] == rate and heard["samples"].dtype == np.float32
    assert heard["samples"].shape == (channels, heard["lengths"].sum())
    assert set(heard["lengths"]) == {length}
    assert heard["lost"] == 0 and not heard["flags"].any()
    np.testing.assert_array_equal(heard["seq"], np.arange(len(heard["seq"])))
    np.testing.assert_array_equal(heard["durations"], heard["lengths"])
    np.testing.assert_array_equal(heard["pts"], np.arange(len(heard["pts"])) * length)
    arrivals = np.diff(heard["arrived_ns"])
    assert (arrivals >= 0).all()
    assert arrivals.mean() == pytest.approx(length / rate * 1e9, rel=0.3)
    for channel in heard["samples"]:
        assert correlation(channel, chirp(rate)) > 0.95


@needs_pulse
@pytest.mark.device
def test_an_unplugged_microphone_is_noticed(tmp_path):
    with (
        pulse.pulse_server(tmp_path) as server,
        python(RECORD, "mic:", tmp_path / "heard", env=server.env) as recorder,
    ):
        assert recorder.stdout.readline() == "recording\n", recorder.communicate()
        server.kill()
        _, errors = recorder.communicate(timeout=15)
    assert recorder.returncode == 1
    assert "DeviceError: the microphone" in errors and "stopped delivering" in errors


@needs_pulse
@pytest.mark.device
def test_a_speaker_plays_what_it_is_given_to_the_end(tmp_path):
    np.save(tmp_path / "chirp.npy", chirp(24_000)[None])
    raw = tmp_path / "heard.raw"
    listen = ["parec", "-d", "cable.monitor", "--format=float32le", "--rate=24000", "--channels=1"]
    target = "speaker:?buffer_ms=300"
    with (
        pulse.pulse_server(tmp_path) as server,
        raw.open("wb") as file,
        child([*listen, "--latency-msec=50"], server.env, stdout=file) as monitor,
    ):
        due = time.monotonic() + 20
        while raw.stat().st_size == 0 and time.monotonic() < due:
            time.sleep(0.05)
        with python(PLAY, target, tmp_path / "chirp.npy", 1, env=server.env) as player:
            output, errors = player.communicate(timeout=60)
            assert player.returncode == 0, errors
            assert output.startswith("playing\nunderflows ")
        time.sleep(0.5)
        monitor.terminate()
        monitor.wait()
    assert correlation(np.fromfile(raw, "<f4"), chirp(24_000)) > 0.95


@needs_pulse
@pytest.mark.device
def test_an_unplugged_speaker_is_noticed(tmp_path):
    np.save(tmp_path / "chirp.npy", chirp(24_000)[None])
    with (
        pulse.pulse_server(tmp_path) as server,
        python(PLAY, "speaker:", tmp_path / "chirp.npy", 1000, env=server.env) as player,
    ):
        assert player.stdout.readline() == "playing\n", player.communicate()
        server.kill()
        _, errors = player.communicate(timeout=15)
    assert player.returncode == 1
    assert "DeviceError: the speaker" in errors and "stopped playing" in errors


@pytest.mark.device
def test_a_machine_without_any_sound_device(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "PULSE_SERVER": f"unix:{tmp_path}/none"}
    with python("import sounddevice as s; print(len(s.query_devices()))", env=env) as process:
        count, errors = process.communicate(timeout=30)
    if count != "0\n":
        pytest.skip(errors.strip() or "this machine has sound cards")
    np.save(tmp_path / "chirp.npy", chirp(24_000)[None])
    for code, arguments, word in (
        (RECORD, ("mic:", tmp_path / "heard"), "microphone"),
        (PLAY, ("speaker:", tmp_path / "chirp.npy", 1), "speaker"),
    ):
        with python(code, *arguments, env=env) as process:
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert f"DeviceError: there is no {word}: plug one in" in errors
