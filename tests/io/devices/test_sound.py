"""Microphone and Speaker: real ones on a sound server, and fake ones that overflow on demand."""

import os
import subprocess
import sys
import time
import wave
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import anyio
import numpy as np
import pytest

from streamenc.errors import DeviceError, FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io import sink, source
from streamenc.io.devices import portaudio
from streamenc.io.devices.sound import Microphone, Speaker, list_devices
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


def test_a_missing_portaudio_names_the_cure(tmp_path, monkeypatch):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(DeviceError, match="PortAudio library not found.*apt install libportaudio2"):
        list_devices()
    with pytest.raises(DeviceError, match="libportaudio2"):
        anyio.run(Microphone().open)


class PortAudioError(Exception):
    pass


class FakeStream:
    """What a test drives in place of PortAudio's thread."""

    def __init__(self, sound, **options):
        if options["samplerate"] in sound.refused_rates:
            raise PortAudioError("Invalid sample rate", -9997)
        self.sound = sound
        self.samplerate = float(options["samplerate"])
        self.latency = 0.01
        self.options = options
        self.calls = []
        sound.opened.append(self)

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")

    def close(self):
        self.calls.append("close")

    def deliver(self, samples, at=0.0, overflow=False):
        """One block (samples, channels), heard at `at` seconds on the device's clock."""
        block = np.asarray(samples, np.float32)
        times = SimpleNamespace(inputBufferAdcTime=at)
        status = SimpleNamespace(input_overflow=overflow)
        self.options["callback"](block, len(block), times, status)
        block[:] = np.nan  # PortAudio uses its buffer again

    def demand(self, count, underflow=False):
        """What is played in `count` samples, (count, channels)."""
        block = np.full((count, self.options["channels"]), np.nan, np.float32)
        status = SimpleNamespace(output_underflow=underflow)
        self.options["callback"](block, count, SimpleNamespace(), status)
        return block

    def unplug(self):
        self.options["finished_callback"]()


@pytest.fixture
def sound(monkeypatch):
    """A machine with two microphones and two speakers."""
    names = ["USB Mic: Audio (hw:1,0)", "Built-in", "USB Headset", "Line out"]
    inputs = [1, 2, 1, 0]
    outputs = [0, 2, 2, 2]
    fake = SimpleNamespace(
        PortAudioError=PortAudioError,
        opened=[],
        refused_rates=(),
        default=SimpleNamespace(device=(1, 1)),
        query_hostapis=lambda: [{"name": "ALSA"}],
        query_devices=lambda: [
            {
                "name": name,
                "hostapi": 0,
                "max_input_channels": i,
                "max_output_channels": o,
                "default_samplerate": 44100.0,
            }
            for name, i, o in zip(names, inputs, outputs, strict=True)
        ],
    )
    fake.InputStream = lambda **options: FakeStream(fake, **options)
    fake.OutputStream = lambda **options: FakeStream(fake, **options)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def block(value, count=20, channels=1):
    return np.full((count, channels), value, np.float32)


async def heard(mic, count):
    """The next `count` frames."""
    frames = []
    async for frame in mic.frames():
        frames.append(frame)
        if len(frames) == count:
            break
    return frames


def test_devices_are_listed_and_found_by_name(sound):
    listed = [(d.index, d.kind, d.channels, d.rate, d.default, d.api) for d in list_devices()]
    assert listed == [
        (0, "input", 1, 44100, False, "ALSA"),
        (1, "input", 2, 44100, True, "ALSA"),
        (2, "input", 1, 44100, False, "ALSA"),
        (1, "output", 2, 44100, True, "ALSA"),
        (2, "output", 2, 44100, False, "ALSA"),
        (3, "output", 2, 44100, False, "ALSA"),
    ]
    for name, kind, index in (
        ("", "input", 1),
        ("usb mic: audio (hw:1,0)", "input", 0),
        ("HEAD", "input", 2),
        ("0", "input", 0),
        ("usb", "output", 2),
        ("line OUT", "output", 3),
    ):
        assert portaudio.find_device(name, kind).index == index
    with pytest.raises(DeviceError, match=r"2 microphones are called 'usb'; .* 0: USB Mic.*2: USB"):
        portaudio.find_device("usb", "input")
    for name, kind in (("webcam", "input"), ("3", "input"), ("0", "output")):
        with pytest.raises(DeviceError, match=rf"no \w+ are called '{name}'; .*1: Built-in"):
            portaudio.find_device(name, kind)
    sound.default.device = (-1, -1)
    with pytest.raises(DeviceError, match="no microphones are the default one; .*Built-in"):
        portaudio.find_device("", "input")
    sound.query_devices = list
    with pytest.raises(DeviceError, match="there is no speaker: plug one in"):
        portaudio.find_device("", "output")


def test_the_scheme_table_and_the_options_reach_the_device(sound):
    async def main():
        mic = source("mic:USB Mic?rate=16000&channels=1&block_ms=10&latency=high")
        info = await mic.open()
        await mic.aclose()
        await mic.aclose()
        return info

    info = anyio.run(main)
    assert info == StreamInfo("audio", Fraction(1, 16000), Fraction(16000), (1, None), "float32")
    (stream,) = sound.opened
    options = {k: stream.options[k] for k in ("device", "samplerate", "blocksize", "latency")}
    assert options == {"device": 0, "samplerate": 16000, "blocksize": 160, "latency": "high"}
    assert stream.calls == ["start", "close"]


@pytest.mark.parametrize(
    "query", ["rate=fast", "channels=0", "block_ms=0", "latency=never", "max_queue_ms=1", "gain=2"]
)
def test_bad_options(query):
    with pytest.raises(UsageError, match=query.partition("=")[0]):
        source(f"mic:?{query}")


def test_blocks_are_copied_and_timed(sound):
    async def main():
        mic = Microphone(rate=1000, channels=2)
        mic.clock = SimpleNamespace(now_ns=lambda: 77, busy=mic.clock.busy)
        await mic.open()
        for value in (1, 2, 3):
            sound.opened[0].deliver(block(value, channels=2))
        frames = await heard(mic, 3)
        mic.stop()
        assert await heard(mic, 1) == []
        await mic.aclose()
        return frames

    frames = anyio.run(main)
    assert [(f.pts, f.duration, f.seq, f.arrived_ns) for f in frames] == [
        (0, 20, 0, 77),
        (20, 20, 1, 77),
        (40, 20, 2, 77),
    ]
    for value, frame in zip((1, 2, 3), frames, strict=True):
        np.testing.assert_array_equal(frame.data, np.full((2, 20), value))


def test_a_late_graph_loses_exactly_what_is_counted(sound):
    async def main():
        mic = Microphone(rate=1000, max_queue_ms=60)  # 3 blocks
        await mic.open()
        for value in range(8):
            sound.opened[0].deliver(block(value))
        frames = await heard(mic, 3)
        assert mic.lost == 5
        for value in (8, 9):
            sound.opened[0].deliver(block(value))
        frames += await heard(mic, 2)
        assert mic.lost == 5
        await mic.aclose()
        return frames

    frames = anyio.run(main)
    got = [(int(f.data[0, 0]), f.pts, f.seq, f.discontinuity) for f in frames]
    assert got == [
        (0, 0, 0, False),
        (1, 20, 1, False),
        (2, 40, 2, False),
        (8, 160, 8, True),
        (9, 180, 9, False),
    ]


@pytest.mark.parametrize(
    ("at", "pts", "seq", "lost"),
    [
        (7.120, 120, 6, 4),  # 80 ms are missing: four blocks
        (7.090, 90, 5, 3),  # 50 ms: two and a half blocks
        (7.041, 40, 3, 1),  # the device's clock shows jitter only: the flag stands alone
        (0.0, 40, 3, 1),  # it stands still
        (9999.0, 40, 3, 1),  # it was set
    ],
)
def test_an_overflow_of_the_device_is_measured_on_its_clock(sound, at, pts, seq, lost):
    async def main():
        mic = Microphone(rate=1000)
        await mic.open()
        stream = sound.opened[0]
        stream.deliver(block(0), at=7.0)
        stream.deliver(block(1), at=7.02)
        stream.deliver(block(2), at=at, overflow=True)
        stream.deliver(block(3), at=at + 0.02)
        frames = await heard(mic, 4)
        assert mic.lost == lost
        await mic.aclose()
        return frames

    frames = anyio.run(main)
    assert [f.pts for f in frames] == [0, 20, pts, pts + 20]
    assert [f.seq for f in frames] == [0, 1, seq, seq + 1]
    assert [f.discontinuity for f in frames] == [False, False, True, False]


def test_what_was_read_is_delivered_after_stop_and_unplugging(sound):
    async def main():
        mic = Microphone(rate=1000)
        await mic.open()
        stream = sound.opened[0]
        stream.deliver(block(0))
        stream.unplug()
        with pytest.raises(DeviceError, match=r"Built-in.*stopped delivering \(unplugged\?\)"):
            assert len([f async for f in mic.frames()]) == 1
        await mic.aclose()

        mic = Microphone(rate=1000)
        await mic.open()
        stream = sound.opened[1]
        stream.deliver(block(0))
        mic.stop()
        stream.deliver(block(1))
        assert len([f async for f in mic.frames()]) == 1
        await mic.aclose()

    anyio.run(main)


def test_a_silent_device_is_given_up(sound, monkeypatch):
    monkeypatch.setattr(portaudio, "STALL_SECONDS", 0.2)

    async def main():
        mic = Microphone(rate=1000)
        await mic.open()
        with pytest.raises(DeviceError, match="stopped delivering"):
            await heard(mic, 1)
        await mic.aclose()

    anyio.run(main)


def test_a_refused_rate_says_what_the_device_takes(sound):
    sound.refused_rates = (24000,)
    info = StreamInfo("audio", Fraction(1, 24000), Fraction(24000), (1, None), "float32")
    with pytest.raises(DeviceError, match=r"24000 Hz: .*Invalid sample rate.*its own rate"):
        anyio.run(sink("speaker:Line").open, info)
    with pytest.raises(DeviceError, match=r"0: USB Mic.*44100 Hz.*24000 Hz"):
        anyio.run(source("mic:0?rate=24000").open)


AUDIO = StreamInfo("audio", Fraction(1, 1000), Fraction(1000), (1, None), "float32")


def ramp(start, count):
    data = np.arange(start, start + count, dtype=np.float32)[None]
    return Frame(data, pts=start, duration=count, seq=0)


def test_a_speaker_buffers_plays_counts_underflows_and_drains(sound):
    async def main():
        speaker = Speaker(buffer_ms=100)
        await speaker.open(AUDIO)
        stream = sound.opened[0]

        async def play(count, **status):
            await anyio.lowlevel.checkpoint()
            return stream.demand(count, **status)[:, 0].tolist()

        await speaker.write(ramp(1, 60))
        assert await play(30, underflow=True) == [0] * 30  # not enough yet, and not its fault
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speaker.write, ramp(61, 60))
            await anyio.wait_all_tasks_blocked()  # 120 are there: the write waits for 20
            assert await play(30) == [*range(1, 31)]
        assert await play(50) == [*range(31, 81)]
        assert speaker.underflows == 0
        assert await play(50) == [*range(81, 121), *[0] * 10]
        assert speaker.underflows == 1
        assert await play(10) == [0] * 10
        await speaker.write(ramp(200, 100))
        assert await play(10) == [*range(200, 210)]
        assert await play(10, underflow=True) == [*range(210, 220)]
        assert speaker.underflows == 2
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speaker.aclose)
            await anyio.wait_all_tasks_blocked()
            assert stream.calls == ["start"]
            assert await play(90) == [*range(220, 300), *[0] * 10]
            assert stream.calls == ["start"]  # the device still holds some
            assert await play(10) == [0] * 10
        assert stream.calls == ["start", "stop", "close"]
        assert speaker.underflows == 2
        await speaker.aclose()

    anyio.run(main)


def test_a_speaker_plays_even_less_than_its_buffer(sound):
    async def main():
        speaker = Speaker(buffer_ms=100)
        await speaker.open(AUDIO)
        await speaker.write(ramp(1, 5))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speaker.aclose)
            await anyio.wait_all_tasks_blocked()
            assert sound.opened[0].demand(19).any() == 0  # not yet steady
            assert sound.opened[0].demand(8)[:, 0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
            assert sound.opened[0].demand(17).any() == 0
        assert sound.opened[0].calls == ["start", "stop", "close"]

    anyio.run(main)


def test_a_device_that_throws_its_first_blocks_away_gets_silence(sound):
    async def main():
        speaker = Speaker(buffer_ms=10)
        await speaker.open(AUDIO)
        await speaker.write(ramp(1, 10))
        for _ in range(3):
            assert not sound.opened[0].demand(10, underflow=True).any()
        assert not sound.opened[0].demand(10).any()
        assert sound.opened[0].demand(10)[:, 0].tolist() == [*range(1, 11)]
        assert speaker.underflows == 0
        await speaker._close()

    anyio.run(main)


def test_a_cancelled_write_stops_the_speaker_at_once(sound):
    async def main():
        speaker = Speaker(buffer_ms=100)
        await speaker.open(AUDIO)
        with anyio.move_on_after(0.05):
            await speaker.write(ramp(0, 10**6))
        with anyio.fail_after(1.5):
            await speaker.aclose()
        assert sound.opened[0].calls == ["start", "close"]

    anyio.run(main)


@pytest.mark.parametrize("how", ["unplugged", "silent"])
def test_a_speaker_that_went_away_is_noticed(sound, monkeypatch, how):
    monkeypatch.setattr(portaudio, "STALL_SECONDS", 0.2)

    async def main():
        speaker = Speaker()
        await speaker.open(AUDIO)
        if how == "unplugged":
            sound.opened[0].unplug()
        with pytest.raises(DeviceError, match=r"Built-in.*stopped playing \(unplugged\?\)"):
            await speaker.write(ramp(0, 1000))
        await speaker.aclose()
        assert sound.opened[0].calls == ["start", "close"]

    anyio.run(main)


def test_a_speaker_takes_audio_only(sound):
    codes = StreamInfo("codes", Fraction(1, 25), Fraction(25), (8, None), "uint16")
    with pytest.raises(FitError, match="a speaker plays audio"):
        anyio.run(Speaker().open, codes)


def test_closing_without_opening():
    for end in (Microphone(), Speaker()):
        anyio.run(end.aclose)
        anyio.run(end.aclose)
