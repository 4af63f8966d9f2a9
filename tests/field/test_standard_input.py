"""What people pipe in: whatever it is, it is decoded, or refused with what to do."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from pathlib import Path

import anyio
import av
import numpy as np
import pytest
import soundfile

from streamenc.errors import MediaError
from streamenc.io import source as source_of
from streamenc.io.files.pcm import PcmSource
from streamenc.io.files.standard.standardinput import StandardInput
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.videosource import VideoSource
from tests.support.media import write_film
from tests.support.piped import fifo, integers, read_all, standard_input, wave_bytes
from tests.support.program import streamenc

RATE = 22_050
TIMES = np.arange(RATE) / RATE
TONE = 0.4 * np.sin(2 * np.pi * 300 * TIMES * (1 + TIMES))
WHOLE = np.round(TONE * 32767).astype(np.int64)
PCM = integers(WHOLE, 2)
# Of codecs that do not take any.
RATES = {"libopus": 24_000, "ac3": 48_000, "eac3": 48_000}
UNKNOWN_SIZES = [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFF0000, 0]


def encoded(name: str) -> bytes:
    """A second of a tone, in the container and codec that the name says."""
    container, codec = name.split("/")
    if codec.isupper():
        file = io.BytesIO()
        soundfile.write(file, TONE, RATE, codec, format=container.upper())
        return file.getvalue()
    file = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"} if container in ("mp4", "mov") else {}
    with av.open(file, "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=RATES.get(codec, RATE), layout="mono")
        sound = av.AudioFrame.from_ndarray(TONE[None].astype(np.float32), "fltp", "mono")
        sound.sample_rate, sound.pts = RATE, 0
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "wav/PCM_16", "wav/FLOAT", "rf64/PCM_24", "w64/PCM_16", "aiff/PCM_16", "au/PCM_16",
        "flac/PCM_16", "nist/PCM_16", "voc/PCM_16", "ogg/VORBIS", "ogg/libopus",
        "mp3/libmp3lame", "mp2/mp2", "adts/aac", "ac3/ac3", "eac3/eac3", "matroska/flac",
        "webm/libopus", "mp4/aac", "mov/pcm_s16le", "mpegts/aac", "nut/flac", "flv/aac",
        "tta/tta",
    ],
)  # fmt: skip
def test_a_pipe_gives_what_the_file_gives(tmp_path: Path, name: str) -> None:
    data = encoded(name)
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    file = read_all(MediaSource(str(path)))
    pieces = [data[:700], *(data[at : at + 5000] for at in range(700, len(data), 5000))]
    with standard_input(*pieces):
        source = source_of("-")
        piped = read_all(source)
    assert not [remark for remark in source.remarks if "took standard input" in remark]
    assert piped.shape[1] > RATE // 2
    # What an encoder of MP3 added at the end, or of Vorbis in one page, is known only where one can
    # seek.
    added = 600 if name in ("mp3/libmp3lame", "ogg/VORBIS") else 0
    assert 0 <= piped.shape[1] - file.shape[1] <= added
    np.testing.assert_array_equal(piped[:, : file.shape[1]], file)


def test_what_ffmpeg_reads_from_files_alone_names_the_cure() -> None:
    with standard_input(encoded("caf/PCM_16")):
        source = StandardInput()
        with pytest.raises(MediaError, match="begins as CAF; name it as a file"):
            source.open_blocking()
        source.close_blocking()


@pytest.mark.parametrize("claimed", UNKNOWN_SIZES)
def test_a_recorder_does_not_know_how_long_it_will_be(claimed: int) -> None:
    with standard_input(wave_bytes(PCM, rate=RATE, claimed=claimed)):
        source = StandardInput()
        got = read_all(source)
    np.testing.assert_array_equal(got[0], (WHOLE / 2**15).astype(np.float32))
    assert not source.broken


def test_tokens_of_a_pipe_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wave_bytes(PCM, rate=RATE))

    def columns(lines: str) -> list[tuple[int, ...]]:
        frames = [json.loads(line) for line in lines.splitlines()]
        return [column for f in frames if "codes" in f for column in zip(*f["codes"], strict=True)]

    file = streamenc("encode", path, tmp_path / "a.jsonl", "-q")
    assert file.code == 0, file.error
    with standard_input(wave_bytes(PCM, rate=RATE, claimed=0xFFFFFFFF)):
        piped = streamenc("encode", "-", "-", "-q")
    assert piped.code == 0, piped.error
    assert columns(piped.out) == columns((tmp_path / "a.jsonl").read_text())
    assert len(columns(piped.out)) == 50
    # And what was printed can be piped on.
    with standard_input(piped.out.encode()):
        done = streamenc("decode", "-", tmp_path / "b.wav", "-q")
    assert done.code == 0, done.error
    assert soundfile.info(tmp_path / "b.wav").frames == 16_000


def test_samples_without_a_header_stay_samples_and_the_run_says_so(tmp_path: Path) -> None:
    with standard_input(PCM):
        done = streamenc("encode", "-", "null:", "--stats", tmp_path / "stats.json")
    assert done.code == 0
    said = "took standard input for s16le, 1 channel, 24000 Hz; say pcm:-?rate=... for another"
    assert said in " ".join(done.error.split())
    with standard_input(PCM):
        source = StandardInput(rate=RATE, channels="2")
        got = read_all(source)
    np.testing.assert_array_equal(got, (WHOLE.reshape(-1, 2).T / 2**15).astype(np.float32))
    assert source.remarks[0].startswith("took standard input for s16le, 2 channels, 22050 Hz")


def test_what_is_said_of_samples_is_not_so_of_a_header() -> None:
    with standard_input(wave_bytes(PCM, rate=RATE)):
        source = StandardInput(rate=16_000, channels=1)
        assert source.open_blocking().rate == RATE
        source.close_blocking()
    (remark,) = source.remarks
    assert "22050 Hz with 1 channel" in remark and "rate=16000" in remark
    assert "channels=1" not in remark


@pytest.mark.parametrize("name", ["talk.raw", "talk.pcm"])
def test_a_wav_that_is_called_raw_is_decoded(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(wave_bytes(PCM, rate=RATE))
    source = source_of(str(path))
    np.testing.assert_array_equal(read_all(source)[0], (WHOLE / 2**15).astype(np.float32))
    assert source.replayed
    assert f"{path} begins as WAV" in source.remarks[0]
    path.write_bytes(PCM)
    source = source_of(str(path))
    assert read_all(source).shape == (1, RATE)
    assert source.remarks == []


def test_pcm_is_samples_or_refused_unless_one_insists(tmp_path: Path) -> None:
    data = wave_bytes(PCM, rate=RATE)
    with standard_input(data):
        source = source_of("pcm:-")
        source.open_blocking()
        with pytest.raises(
            MediaError, match="begins as WAV, .* say - to have it decoded.*raw=true"
        ):
            source.read()
        source.close_blocking()
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(MediaError, match="leave out pcm:, or say raw=true"):
        source_of(f"pcm:{path}").open_blocking()
    assert read_all(PcmSource(str(path), raw="yes")).shape == (1, len(data) // 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(100), "begins as JPEG image: take it with a model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "begins as PNG image"),
        (b"\0\0\0\x01\x67" + bytes(100), "begins as H.264: take it with a model"),
        (b"\xfd7zXZ\0" + bytes(100), "begins as xz archive"),
        (b"\x1f\x8b\x08" + bytes(100), "begins as gzip archive: it holds no sound; say pcm:-"),
        (b"<!DOCTYPE html><html><body>404 not found", "begins as text"),
        (b"ECDC\0\0\0\0\x10" + bytes(50), "name it as a file"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, message: str) -> None:
    with standard_input(data):
        source = StandardInput()
        with pytest.raises(MediaError, match=message):
            source.open_blocking()
        source.close_blocking()


def test_a_film_on_standard_input(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mkv", seconds=1)
    wanted = [frame.pts for frame in frames_of(VideoSource(str(path)))]
    with standard_input(path.read_bytes()):
        source = source_of("-", kind="video")
        assert [frame.pts for frame in frames_of(source)] == wanted
    with standard_input(path.read_bytes()):
        both = list(frames_of(source_of("-", kind="av")))
    assert {frame.track for frame in both} == {0, 1}
    assert sum(frame.track == 1 for frame in both) == len(wanted) == 25


def test_of_several_sounds_a_pipe_gives_the_best_as_the_file_does() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        streams = [out.add_stream("flac", rate=RATE, layout="mono") for _ in range(2)]
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for stream, level in zip(streams, (1000, 9000), strict=True):
            samples = np.full((1, RATE), level, np.int16)
            sound = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            sound.sample_rate, sound.pts = RATE, 0
            out.mux([*stream.encode(sound), *stream.encode(None)])
    for options, level in (({}, 9000), ({"stream": 0}, 1000)):
        with standard_input(file.getvalue()):
            heard = read_all(StandardInput("-", **options))
        assert heard.max() == pytest.approx(level / 32768)


def test_an_mp4_whose_index_comes_last_names_the_cure(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", seconds=1)
    with standard_input(path.read_bytes()):
        source = source_of("-", kind="video")
        with pytest.raises(MediaError, match="faststart"):
            source.open_blocking()
        source.close_blocking()
    # A file on standard input is all there.
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", file)
        assert len(list(frames_of(source_of("-", kind="video")))) == 25


def frames_of(source):
    try:
        source.open_blocking()
        yield from iter(source.read, None)
    finally:
        source.close_blocking()


@pytest.mark.parametrize("begun", [b"", b"RI", wave_bytes(PCM[:3000], rate=RATE), PCM[:3000]])
def test_it_can_be_stopped_while_nothing_comes(begun: bytes) -> None:
    async def main() -> None:
        source = StandardInput()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    await source.open()
                    async for _ in source.frames():
                        pass

                tasks.start_soon(run)
                await anyio.sleep(0.4)
                began = time.monotonic()
                source.stop()
            assert time.monotonic() - began < 0.5
        await source.aclose()

    with standard_input(begun, hold=True) as writer:
        anyio.run(main)
        os.close(writer)


def test_a_named_pipe_is_looked_at_as_well(tmp_path: Path) -> None:
    path = fifo(tmp_path / "a.raw")
    data = wave_bytes(PCM, rate=RATE)
    threading.Thread(target=path.write_bytes, args=[data], daemon=True).start()
    got = read_all(source_of(str(path)))
    np.testing.assert_array_equal(got[0], (WHOLE / 2**15).astype(np.float32))


def test_sound_of_a_wav_comes_as_it_is_recorded() -> None:
    """The first frame is there long before a second is."""
    with standard_input(wave_bytes(PCM[: RATE // 5], rate=RATE, claimed=0), hold=True) as writer:
        source = StandardInput()
        source.open_blocking()
        frame = source.read()
        assert frame is not None and frame.duration <= RATE // 20
        source.stop()
        source.close_blocking()
        os.close(writer)
