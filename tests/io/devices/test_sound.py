"""Microphone and Speaker: real ones on a sound server, and fake ones that overflow on demand."""

import sys
from collections import deque
from fractions import Fraction
from types import SimpleNamespace

import anyio
import numpy as np
import pytest

from streamenc.errors import DeviceError, FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io import sink, source
from streamenc.io.devices import portaudio
from streamenc.io.devices.sound import Microphone, Speaker, list_devices


def test_a_missing_portaudio_names_the_cure(tmp_path, monkeypatch):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(
        DeviceError,
        match="PortAudio library not found.*apt install libportaudio2.*brew install portaudio",
    ):
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


@pytest.fixture
def windows(sound):
    """The same three microphones by three interfaces, as Windows lists them."""
    apis = ["MME", "Windows DirectSound", "Windows WASAPI"]
    names = ["Microphone (Realtek High Definition Audio)", "Microphone (USB)", "Line In (Card)"]
    sound.query_hostapis = lambda: [{"name": api} for api in apis]
    sound.query_devices = lambda: [
        {
            "name": name[:31] if api == "MME" else name,
            "hostapi": apis.index(api),
            "max_input_channels": 2,
            "max_output_channels": 0,
            "default_samplerate": 48000.0,
        }
        for api in apis
        for name in names
    ]
    sound.default.device = (4, -1)  # the USB one, by DirectSound
    return sound


def test_a_name_opens_a_device_that_is_listed_once_for_each_interface(windows):
    for name, api, index in (
        ("", "", 4),
        ("Microphone (USB)", "", 4),
        ("usb", "", 4),
        ("Line", "", 5),
        ("Line", "MME", 2),
        ("line in (card)", "wasapi", 8),
        ("", "wasapi", 6),
        # MME cuts names off: whole, they are those of the others, and cut off those of MME.
        ("Microphone (Realtek High Definition Audio)", "", 3),
        ("Microphone (Realtek High Defini", "", 0),
        ("7", "", 7),
    ):
        assert portaudio.find_device(name, "input", api).index == index, (name, api)
    with pytest.raises(DeviceError, match="2 microphones are called 'microphone'"):
        portaudio.find_device("microphone", "input")
    with pytest.raises(
        DeviceError, match=r"interface called 'ASIO'; there are MME, Windows Direct"
    ):
        portaudio.find_device("usb", "input", "ASIO")
    windows.default.device = (-1, -1)
    assert portaudio.find_device("usb", "input").index == 1


def test_an_interface_is_an_option_of_both_ends(windows):
    async def main():
        mic = source("mic:usb?api=WASAPI")
        await mic.open()
        await mic.aclose()

    anyio.run(main)
    assert windows.opened[0].options["device"] == 7
    assert Speaker(api="MME").api == "MME"


def test_one_channel_of_a_microphone_array(sound):
    async def main():
        mic = source("mic:?rate=1000&channel=2")
        info = await mic.open()
        sound.opened[0].deliver(np.arange(60).reshape(20, 3))
        (frame,) = await heard(mic, 1)
        await mic.aclose()
        return info, frame

    info, frame = anyio.run(main)
    assert info.shape == (1, None)
    assert sound.opened[0].options["channels"] == 3
    np.testing.assert_array_equal(frame.data, np.arange(2, 60, 3)[None])


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
        (said,) = mic.remarks
        assert said.startswith("5 blocks of 20 ms were lost here, as the graph was more than ")
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
        (said,) = mic.remarks
        assert said.startswith(f"{lost} blocks of 20 ms were lost in the device")
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


def test_a_block_that_comes_just_before_the_end_is_heard(sound):
    class Racing(deque):
        """Found empty, it is filled at once: PortAudio's thread does not wait for ours."""

        def __bool__(self):
            filled = len(self) > 0
            if not filled and not stream.sound.late:
                stream.sound.late = True
                stream.deliver(block(1))
                stream.unplug()
            return filled

    async def main():
        nonlocal stream
        mic = Microphone(rate=1000)
        mic._blocks = Racing()
        await mic.open()
        stream = sound.opened[0]
        stream.deliver(block(0))
        heard = []
        with pytest.raises(DeviceError, match="unplugged"):
            async for frame in mic.frames():
                heard.append(frame.pts)
        assert heard == [0, 20]
        await mic.aclose()

    stream = None
    sound.late = False
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
