"""Files that end before their end: what is there is right, and that it is not all is told."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamenc import io
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.containersource import ContainerSource
from streamenc.io.media.integrity.extent import shortfall
from tests.support.clips import encoded, write_clip
from tests.support.media import write_wav
from tests.support.program import streamenc
from tests.support.web import web

RATE = 48_000
# By the ending: what is in it, and whether it says how long it is, or where it ends.
SOUND = {
    "wav": ("pcm_s16le", True),
    "flac": ("flac", True),
    "mp3": ("libmp3lame", True),
    "opus": ("libopus", True),
    "aac": ("aac", False),
    "mka": ("libopus", True),
    "aiff": ("pcm_s16be", True),
    "au": ("pcm_s16be", True),
    "caf": ("pcm_s16le", True),
    "w64": ("pcm_s16le", True),
    "ac3": ("ac3", False),
    "m4a": ("aac", True),
}
FILMS = {
    "mp4": ("libx264", True),
    "mkv": ("libx264", True),
    "ts": ("libx264", True),
    "avi": ("mpeg4", True),
    "flv": ("libx264", True),
    "mpg": ("mpeg2video", False),
    "webm": ("libvpx", True),
    "mjpeg": ("mjpeg", False),
    "frag.mp4": ("libx264", True),
}


def write_sound(path: Path, codec: str, seconds: float = 3) -> Path:
    noise = np.random.default_rng(0).standard_normal(round(RATE * seconds))
    wave = (0.3 * np.sin(np.arange(len(noise)) / 20) + 0.02 * noise).astype(np.float32)
    options = {"movflags": "faststart"} if path.suffix == ".m4a" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(encoded(codec), rate=RATE, layout="mono")
        form = av.AudioResampler(stream.format.name, "mono", RATE)
        for start in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
            block.sample_rate, block.pts = RATE, start
            for frame in form.resample(block):
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_film(path: Path, codec: str) -> Path:
    plain = path.with_name("plain.mkv")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    write_clip(plain, codec, count=60, size="96x64", pix_fmt=pix_fmt)
    flags = "frag_keyframe+empty_moov" if path.name.endswith("frag.mp4") else "faststart"
    options = {"movflags": flags} if path.suffix == ".mp4" else {}
    with av.open(str(plain)) as source, av.open(str(path), "w", options=options) as target:
        (stream,) = source.streams.video
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copied
                target.mux(packet)
    return path


def play(path: Path, kind: str) -> tuple[list[Frame], ContainerSource]:
    source = io.source(str(path), kind=kind)
    assert isinstance(source, ContainerSource)
    try:
        source.open_blocking()
        return list(iter(source.read, None)), source  # type: ignore[arg-type]
    finally:
        source.close_blocking()


def foreign_samples(got: list[Frame], whole: list[Frame]) -> list[int]:
    """The pts of frames whose samples are not those of the whole file at their place."""
    right = np.zeros(max(frame.pts + frame.duration for frame in whole) + 1, np.float32)
    shift = whole[0].pts
    for frame in whole:
        right[frame.pts - shift : frame.pts - shift + frame.duration] = frame.data[0]
    wrong = []
    for frame in got:
        at = frame.pts - shift
        if at < 0 or not np.array_equal(frame.data[0], right[at : at + frame.duration]):
            wrong.append(frame.pts)
    return wrong


def foreign_images(got: list[Frame], whole: list[Frame]) -> list[int]:
    right = {frame.pts: frame.data for frame in whole}
    return [frame.pts for frame in got if not np.array_equal(frame.data, right.get(frame.pts))]


def check_cuts(path: Path, kind: str, parts: list[float], told: bool) -> None:
    whole, source = play(path, kind)
    assert source.broken == "" and source.lost == 0
    assert shortfall(path) == ""
    data = path.read_bytes()
    for part in parts:
        path.write_bytes(data[: int(part * len(data))])
        try:
            got, source = play(path, kind)
        except MediaError:
            continue  # said in a sentence
        foreign = foreign_samples if kind == "audio" else foreign_images
        assert foreign(got, whole) == [], f"cut at {part}"
        assert len(got) < len(whole) or source.broken, f"cut at {part}"
        if told:
            assert "cut short" in source.broken and path.name in source.broken, f"cut at {part}"


def cases(quick: tuple[str, ...]) -> Iterator[Any]:
    for kind, zoo in (("audio", SOUND), ("video", FILMS)):
        for ending, (codec, told) in zoo.items():
            if ending in quick or not quick:
                yield pytest.param(ending, kind, codec, told, id=ending)


def written(path: Path, kind: str, codec: str) -> Path:
    return write_sound(path, codec) if kind == "audio" else write_film(path, codec)


@pytest.mark.parametrize(
    ("ending", "kind", "codec", "told"), [*cases(("wav", "flac", "mp3", "opus", "mkv", "mp4"))]
)
def test_half_of_a_file(tmp_path: Path, ending: str, kind: str, codec: str, told: bool) -> None:
    check_cuts(written(tmp_path / f"a.{ending}", kind, codec), kind, [0.55], told)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "kind", "codec", "told"), [*cases(())])
def test_a_file_cut_anywhere(
    tmp_path: Path, ending: str, kind: str, codec: str, told: bool
) -> None:
    parts = [0.001, 0.01, 0.1, 0.23, 0.37, 0.5, 0.71, 0.83, 0.9, 0.97]
    check_cuts(written(tmp_path / f"a.{ending}", kind, codec), kind, parts, told)


def test_a_header_that_promises_seconds(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((1, RATE)), RATE)
    path.write_bytes(path.read_bytes()[:100])
    frames, source = play(path, "audio")
    assert sum(frame.duration for frame in frames) == 28
    assert "holds 100 of the 96,044 bytes that its header promises" in source.broken


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_half_of_a_wav_on_a_server(tmp_path: Path, part: float) -> None:
    path = write_wav(tmp_path / "a.wav", np.full((1, 8000), 0.1, np.float32), 8000)
    data = path.read_bytes()[: int(path.stat().st_size * part)]
    length = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data)
    with web(lambda _, send: send(length + data)) as server:
        source = MediaSource(f"{server.address}/a.wav")
        source.open_blocking()
        while source.read() is not None:
            pass
        source.close_blocking()
    assert ("bytes that its header promises" in source.broken) == (part < 1)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 2_000_000_000])
def test_sizes_that_mean_nothing_are_no_fault(tmp_path: Path, size: int) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((1, RATE)), RATE)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", size)
    data[40:44] = struct.pack("<I", size)
    path.write_bytes(data)
    frames, source = play(path, "audio")
    assert sum(frame.duration for frame in frames) == RATE and source.broken == ""


def test_the_command_line_tells_and_goes_on(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "b.wav", np.zeros((1, 16_000)), 16_000)
    sound.write_bytes(sound.read_bytes()[:20_000])
    stats = tmp_path / "stats.json"
    done = streamenc("encode", sound, tmp_path / "b.jsonl", "-m", "mel", "--stats", stats)
    assert done.code == 0
    assert "b.wav holds 20,000 of the 32,044 bytes" in " ".join(done.error.split())
    assert "cut short" in json.dumps(json.loads(stats.read_text()))


def test_a_source_that_is_whole_says_nothing(tmp_path: Path) -> None:
    source = MediaSource(str(write_wav(tmp_path / "a.wav", np.zeros((1, 800)), 8000)))
    source.open_blocking()
    assert source.broken == "" and list(source.remarks) == []
    assert len([*iter(source.read, None)]) >= 1 and source.broken == ""
    source.close_blocking()
