from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from streamenc import io
from streamenc.errors import UsageError
from streamenc.graph.node import Sink, Source
from streamenc.io.devices.camera import Camera
from streamenc.io.devices.screen import Screen
from streamenc.io.files.ecdc import EcdcSink, EcdcSource
from streamenc.io.files.jsonlines import JsonLinesSink
from streamenc.io.files.null import NullSink
from streamenc.io.files.pcm import PcmSource
from streamenc.io.files.recording import RecordingSink, RecordingSource
from streamenc.io.files.soundwriter import AudioFileSink
from streamenc.io.files.standard.jsonsource import JsonLinesSource
from streamenc.io.files.standard.standardinput import StandardInput
from streamenc.io.files.standard.standardoutput import PcmSink, StandardOutput
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.audiovideo import AudioVideoSource
from streamenc.io.media.pattern import PatternSource
from streamenc.io.media.videosource import VideoSource
from streamenc.io.network.zeromq import ZmqSource


@pytest.mark.parametrize(
    ("target", "cls", "address"),
    [
        ("-", StandardInput, "-"),
        ("-?rate=16000", StandardInput, "-"),
        ("pcm:-", PcmSource, "-"),
        ("pcm:/tmp/fifo?rate=16000", PcmSource, "/tmp/fifo"),
        ("a/b.PCM?channels=2", StandardInput, "a/b.PCM"),
        ("a.jsonl", JsonLinesSource, "a.jsonl"),
        ("talk.arrows", RecordingSource, "talk.arrows"),
        ("talk.ecdc", EcdcSource, "talk.ecdc"),
        ("talk.mp3", MediaSource, "talk.mp3"),
        ("talk", MediaSource, "talk"),
        ("clip.mkv?stream=1", MediaSource, "clip.mkv"),
        (r"C:\clip.mkv", MediaSource, r"C:\clip.mkv"),
        ("./12:30.wav", MediaSource, "./12:30.wav"),
        ("file:talk.arrows.wav", MediaSource, "file:talk.arrows.wav"),
        ("http://host/a.arrows?part=1", MediaSource, "http://host/a.arrows?part=1"),
        ("RTSP://host/live", MediaSource, "RTSP://host/live"),
    ],
)
def test_sources(target: str, cls: type, address: str) -> None:
    made = io.source(target)
    assert type(made) is cls
    assert made.address == address  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("target", "kind", "cls", "address"),
    [
        ("clip.mp4", "video", VideoSource, "clip.mp4"),
        ("clip.mp4?fps=5", "av", AudioVideoSource, "clip.mp4"),
        ("rtsp://h/live?x=1", "video", VideoSource, "rtsp://h/live?x=1"),
        ("rtsp://h/live", "av", AudioVideoSource, "rtsp://h/live"),
        ("-", "audio", StandardInput, "-"),
        ("-?fps=5", "video", VideoSource, "-"),
        ("-", "av", AudioVideoSource, "-"),
        ("camera:/dev/video0?size=640x480", "video", Camera, "/dev/video0"),
        ("camera:", "video", Camera, ""),
        ("screen::99.0", "video", Screen, ":99.0"),
        ("screen:?fps=5", "video", Screen, ""),
        ("test:noise?live=false", "video", PatternSource, "noise"),
        ("talk.arrows", "video", RecordingSource, "talk.arrows"),
    ],
)
def test_sources_of_a_kind(target: str, kind: str, cls: type, address: str) -> None:
    made = io.source(target, kind=kind)
    assert type(made) is cls
    assert made.address == address  # type: ignore[attr-defined]


def test_token_streams_are_what_they_are() -> None:
    assert isinstance(io.source("zmq+tcp://127.0.0.1:5555", kind="av"), ZmqSource)


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("camera:", "audio", "'camera:' gives video, but audio was wanted"),
        ("screen:", "av", "'screen:' gives video, but av was wanted"),
        ("test:bars", "audio", "gives video"),
        ("mic:", "video", "'mic:' gives audio, but video was wanted"),
        ("a.raw", "video", "gives audio"),
        ("a.mp4", "film", "kind must be one of audio, video, av, text; got 'film'"),
    ],
)
def test_a_source_of_another_kind_is_refused(target: str, kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        io.source(target, kind=kind)


@pytest.mark.parametrize(
    ("target", "cls", "address"),
    [
        ("-", StandardOutput, "-"),
        ("pcm:-?format=f32le", PcmSink, "-"),
        ("a.raw", PcmSink, "a.raw"),
        ("null:", NullSink, ""),
        ("a.jsonl?values=yes", JsonLinesSink, "a.jsonl"),
        ("a.arrows?flush_ms=0", RecordingSink, "a.arrows"),
        ("a.ecdc", EcdcSink, "a.ecdc"),
        ("a.wav?format=s24", AudioFileSink, "a.wav"),
        ("a.FLAC", AudioFileSink, "a.FLAC"),
        ("a.ogg", AudioFileSink, "a.ogg"),
        ("a.opus", AudioFileSink, "a.opus"),
    ],
)
def test_sinks(target: str, cls: type, address: str) -> None:
    made = io.sink(target)
    assert type(made) is cls
    assert made.address == address  # type: ignore[attr-defined]


def test_options_come_from_the_query_and_from_python() -> None:
    made = io.source("pcm:-?rate=16000&channels=2", channels=1)
    assert isinstance(made, PcmSource)
    assert (made.rate, made.channels) == (16000, 1)


def test_a_file_whose_name_has_a_question_mark_wins(tmp_path: Path) -> None:
    path = tmp_path / "what.wav?stream=1"
    path.write_bytes(b"")
    made = io.source(str(path))
    assert isinstance(made, MediaSource)
    assert (made.address, made.stream) == (str(path), None)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mpc:x", r"unknown scheme 'mpc:'.*known are .*http.*mic.*pcm.*rtsp.*udp.*or a file"),
        ("mqs://me:hush@host/x", r"unknown scheme 'mqs:' in input 'mqs://\*\*\*@host/x'"),
        ("gopher://x", "unknown scheme"),
        ("pcm:a?rat=8000", "no option 'rat'; it has rate, channels, format, chunk_ms"),
        ("a.arrows?x=1", "no option 'x'; it has none"),
    ],
)
def test_what_no_source_knows_is_said(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        io.source(target)


def test_what_no_sink_knows_is_said() -> None:
    for target in ("a.mp3", "a", "http://host/a.wav"):
        with pytest.raises(UsageError, match=r"known file endings are .*\.arrows.*\.wav"):
            io.sink(target)
    with pytest.raises(UsageError, match="unknown scheme 'mic:'"):
        io.sink("mic:")


@pytest.mark.parametrize(
    ("path", "base"),
    [(entry.path, Source) for entry in (*io.SOURCES.values(), *io.MEDIA_KINDS.values())]
    + [(entry.path, Sink) for entry in io.SINKS.values()],
)
def test_every_entry_is_there_and_takes_an_address(path: str, base: type) -> None:
    module, _, name = path.partition(":")
    try:
        cls = getattr(import_module(module), name)
    except OSError as error:  # the sound device's library is missing on this machine
        pytest.skip(str(error))
    assert issubclass(cls, base)
    first, *options = inspect.signature(cls).parameters.values()
    assert first.name == "address"
    assert all(option.default is not inspect.Parameter.empty for option in options)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("speaker:", "audio"),
        ("a.wav?format=s24", "audio"),
        ("a.MP4", "av"),
        ("a.arrows", ""),
        ("-", ""),
        ("null:", ""),
        ("mqtt://host/talk.wav", ""),
        ("zmq+ipc:///tmp/clip.mp4", ""),
    ],
)
def test_what_sinks_take(target: str, kind: str) -> None:
    assert io.sink_entry(target).kind == kind


def test_which_sources_are_devices() -> None:
    devices = {"mic:USB", "MIC:", "camera:?fps=10", "screen:"}
    others = {"mic", "camera/a.wav", "test:bars", "-", "rtsp://host/live", "mqtt://host/mic"}
    assert {t for t in devices | others if io.source_entry(t).device} == devices


def test_nothing_is_loaded_before_it_is_used() -> None:
    heavy = {"av", "pyarrow", "zmq", "torch"}
    code = f"import sys, streamenc.io; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sources_and_sinks_need_no_torch() -> None:
    modules = sorted(
        {entry.path.partition(":")[0] for entry in [*io.SOURCES.values(), *io.SINKS.values()]}
    )
    code = f"""
import sys
from importlib import import_module
for name in {modules}:
    import_module(name)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
