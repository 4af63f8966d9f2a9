"""Text from files and pipes: lines, transcripts and subtitles, with their times."""

from __future__ import annotations

import os
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from streamenc import io
from streamenc.errors import MediaError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.reading import read_file
from streamenc.io.text.textsource import INFO, TextSource

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello <i>there</i>,
world

2
00:00:03,000 --> 00:00:04,000
{\\an8}Second & one
"""
VTT = """WEBVTT

00:01.000 --> 00:02.500 align:start
<v Roger>Hello there,
world

00:03.000 --> 00:04.000
Second &amp; one
"""
TITLES = [("Hello there, world", 0, 1000, 1500), ("Second & one", 1, 3000, 1000)]


def told(frames: list[Frame]) -> list[tuple[str, int, int, int]]:
    return [(f.data[0, 0], f.segment, f.pts, f.duration) for f in frames]


def frames_of(path: Path, **options: object) -> tuple[TextSource, list[Frame]]:
    source = TextSource(str(path), **options)  # type: ignore[arg-type]
    try:
        assert source.open_blocking() == INFO
        return source, list(iter(source.read, None))
    finally:
        source.close_blocking()


@pytest.mark.parametrize("name", ["a.txt", "a", "a.log"])
def test_lines(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("\ufeffone\r\ntwo\n\nthree €, without an end".encode())
    source, frames = frames_of(tmp_path / name)
    assert told(frames) == [
        ("one", 0, 0, 1000),
        ("two", 1, 1000, 1000),
        ("three €, without an end", 3, 2000, 1000),
    ]
    assert source.live is False and source.replayed and not source.lost


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    assert frames_of(tmp_path / "a.txt")[1] == []


def test_a_transcript_is_seen_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "start": 1, "end": 2}\n{"text": "b", "final": false}\n')
    assert told(frames_of(path)[1]) == [("a", -1, 1000, 1000)]
    assert len(frames_of(path, partials="true")[1]) == 2
    assert frames_of(path, format="lines")[1][0].data[0, 0].startswith('{"text"')


def test_what_is_too_long_is_read_past(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n" + b"x" * 1_000_000 + b"\ntwo\n" + b"y" * 300_000)
    source, frames = frames_of(path, max_bytes=100)
    assert [(f.data[0, 0], f.segment, f.discontinuity) for f in frames] == [
        ("one", 0, False),
        ("two", 2, True),
    ]
    assert source.lost == 2
    assert source.remarks[0].endswith("the first was line 2: 1000000 bytes")


@pytest.mark.parametrize(("name", "text"), [("a.srt", SRT), ("a.vtt", VTT)])
def test_subtitles(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    info, frames = read_file(str(tmp_path / name))
    assert info == INFO and told(frames) == TITLES
    source, frames = frames_of(tmp_path / name, max_bytes=15)
    assert told(frames) == TITLES[1:] and frames[0].discontinuity and source.lost == 1


def film(path: Path, *tracks: str) -> Path:
    """A Matroska with subtitles of its own, one track each."""
    with av.open(str(path), "w", format="matroska") as out:
        sound = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        made = []
        for text in tracks:
            (path.parent / "t.srt").write_text(text)
            read = av.open(str(path.parent / "t.srt"))
            title = read.streams.subtitles[0]
            made.append((read, title, out.add_stream_from_template(title)))
        for packet in sound.encode(frame):
            out.mux(packet)
        for read, title, stream in made:
            for packet in read.demux(title):
                if packet.pts is not None:
                    packet.stream = stream
                    out.mux(packet)
            read.close()
    return path


def test_the_subtitles_of_a_film(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", SRT.replace("Hello", "Hallo"), SRT)
    assert told(frames_of(path, stream=1)[1]) == TITLES
    source = io.source(str(path), kind="text")
    assert isinstance(source, TextSource)
    assert told(frames_of(path)[1])[0][0] == "Hallo there, world"
    with pytest.raises(MediaError, match="has 2 tracks of subtitles; got stream=2"):
        frames_of(path, stream=2)


def test_what_holds_no_text(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv")
    with pytest.raises(MediaError, match="has no subtitles, so no text is in it"):
        frames_of(path)
    (tmp_path / "a.bin").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(
        MediaError, match="begins as PNG image, and holds no text; say format=lines"
    ):
        frames_of(tmp_path / "a.bin")
    with pytest.raises(MediaError, match="cannot open .*none"):
        frames_of(tmp_path / "none")
    with pytest.raises(MediaError, match="cannot open .*none.txt"):
        frames_of(tmp_path / "none.txt")
    with pytest.raises(MediaError, match="cannot read .*none.srt"):
        frames_of(tmp_path / "none.srt")
    with pytest.raises(MediaError, match="is a folder"):
        frames_of(tmp_path, format="lines")


def test_what_is_piped_in_is_live_and_dated_by_its_arrival(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    source = TextSource(str(path))
    assert source.live and not source.replayed

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            time.sleep(0.1)
            pipe.write(b"one\ntw")
            time.sleep(0.3)
            pipe.write(b"o\n")

    writer = threading.Thread(target=write)
    # Opened without waiting, and held open until somebody writes.
    holder = os.open(path, os.O_RDWR)
    source.open_blocking()
    writer.start()
    first, second = source.read(), source.read()
    writer.join()
    os.close(holder)
    assert first is not None and second is not None
    assert [f.data[0, 0] for f in (first, second)] == ["one", "two"]
    assert first.pts >= 50 and second.pts - first.pts >= 200 and first.duration == 0
    assert second.arrived_ns > first.arrived_ns > 0
    source.stop()
    assert source.read() is None
    source.close_blocking()


def test_what_a_path_or_scheme_stands_for(tmp_path: Path) -> None:
    for target, kind, address in (
        ("text:a/b.jsonl?partials=true", "", "a/b.jsonl"),
        ("text:-", "", "-"),
        ("a.txt", "", "a.txt"),
        ("a.SRT", "", "a.SRT"),
        ("a.vtt", "", "a.vtt"),
        ("a.jsonl", "text", "a.jsonl"),
        ("-?format=json", "text", "-"),
        ("film.mkv", "text", "film.mkv"),
        ("notes", "text", "notes"),
    ):
        source = io.source(target, kind=kind)
        assert isinstance(source, TextSource) and source.address == address
    with pytest.raises(UsageError, match="'a.txt' gives text, but audio was wanted"):
        io.source("a.txt", kind="audio")
    with pytest.raises(UsageError, match="'mic:' gives audio, but text was wanted"):
        io.source("mic:", kind="text")
    with pytest.raises(UsageError, match="format"):
        io.source("text:a?format=xml")


def test_times_are_milliseconds() -> None:
    assert (INFO.time_base, INFO.rate, INFO.segmented) == (Fraction(1, 1000), 0, True)
