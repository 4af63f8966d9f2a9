"""Times of files as people have them: what is missing is found, and nothing else."""

from __future__ import annotations

import os
import random
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.videosource import VideoSource
from streamenc.nodes.chunker import Chunker
from streamenc.testing import drive
from tests.support.clips import images
from tests.support.sound import decoded_samples, gaps, listen, packet_times, samples_of, write_sound
from tests.support.web import folder, web

# What FFmpeg's muxers and demuxers themselves date so that no time is right.
UNDATED = {("flac", "asf"), ("flac", "wtv"), ("aac", "rm")}
# Where its decoder leaves off samples that are no padding.
CUT_OFF = {("alac", "caf")}


def jitter(most_ms: float, seed: int = 0) -> Any:
    rng = random.Random(seed)
    return lambda number: rng.uniform(-most_ms, most_ms) / 1000


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [
        ("a.ogg", "libopus", 48_000, 2),
        ("a.webm", "libopus", 48_000, 1),
        ("a.mkv", "aac", 44_100, 2),
        ("a.mp3", "libmp3lame", 44_100, 1),
        ("a.aac", "aac", 22_050, 1),
        ("a.ts", "libmp3lame", 44_100, 2),
        ("a.ac3", "ac3", 48_000, 2),
        ("a.flv", "aac", 44_100, 1),
        ("a.caf", "pcm_s16be", 44_100, 2),
        ("a.avi", "libmp3lame", 44_100, 2),
        ("a.avi", "g722", 16_000, 1),  # 160 times too slow, says FFmpeg of it
        ("a.avi", "eac3", 48_000, 2),
    ],
)
def test_every_sample_that_was_decoded_comes_and_no_gap(
    tmp_path: Path, name: str, codec: str, rate: int, channels: int
) -> None:
    path = write_sound(tmp_path / name, codec, rate, channels)
    _, frames, source = listen(path)
    assert gaps(frames) == [] and source.lost == 0
    assert samples_of(frames) == decoded_samples(path)
    assert name.endswith(".ts") or frames[0].pts == 0


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "alac", "libopus"])
def test_mp4_ends_where_it_says(tmp_path: Path, codec: str) -> None:
    """An encoder fills its last frame; a packet's duration or the edit list says how far."""
    rate = 48_000 if codec == "libopus" else 44_100
    path = write_sound(tmp_path / "a.mp4", codec, rate, seconds=2.0)
    _, frames, _ = listen(path)
    assert gaps(frames) == [] and frames[0].pts == 0
    assert samples_of(frames) == 2 * rate


def test_the_last_fragment_of_an_mp4_ends_where_it_says(tmp_path: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    path = write_sound(tmp_path / "a.mp4", "aac", 44_100, seconds=2.0, options=options)
    _, frames, _ = listen(path)
    # Nothing in it says that its first frame is what an encoder puts before the sound.
    assert gaps(frames) == [] and samples_of(frames) == 1024 + 2 * 44_100


@pytest.mark.parametrize(("rate", "length"), [(8000, 1000), (16_000, 8000), (48_000, 20_000)])
def test_vorbis_of_one_page_ends_where_it_says(tmp_path: Path, rate: int, length: int) -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal(length)
    soundfile.write(tmp_path / "a.ogg", sound, rate, format="OGG", subtype="VORBIS")
    expected, _ = soundfile.read(tmp_path / "a.ogg", dtype="float32")
    _, frames, _ = listen(tmp_path / "a.ogg")
    assert gaps(frames) == [] and frames[0].pts == 0
    got = np.concatenate([frame.data for frame in frames], axis=1)[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_mp3_begins_at_0_as_its_sound_does(tmp_path: Path) -> None:
    _, frames, _ = listen(write_sound(tmp_path / "a.mp3", "libmp3lame", 44_100))
    assert frames[0].pts == 0
    assert samples_of(frames) == 2 * 44_100


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libopus"), ("a.mkv", "aac")])
def test_a_browsers_jitter_is_no_gap(tmp_path: Path, name: str, codec: str) -> None:
    path = write_sound(tmp_path / name, codec, 48_000, seconds=12, late_seconds=jitter(9))
    info, frames, _ = listen(path)
    assert gaps(frames) == []
    assert samples_of(frames) == decoded_samples(path)
    chunker = Chunker(1920, 1920)
    chunks = drive(chunker, info, frames)
    assert chunker.restarts == 0
    assert len(chunks) == -(-samples_of(frames) // 1920)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "samples"),
    [
        ("a.webm", "libopus", 48_000, 960),
        ("a.mkv", "aac", 44_100, 1024),
        ("a.ts", "libmp3lame", 44_100, 1152),
        ("a.mp4", "aac", 44_100, 1024),
        ("a.flv", "aac", 44_100, 1024),
    ],
)
@pytest.mark.parametrize("most_ms", [0, 9])
def test_lost_packets_are_found_once_at_their_place_also_under_jitter(
    tmp_path: Path, name: str, codec: str, rate: int, samples: int, most_ms: float
) -> None:
    lost = {40, 75, 76, 110, 150}
    path = write_sound(
        tmp_path / name, codec, rate, seconds=5, lost=lost, late_seconds=jitter(most_ms)
    )
    times = packet_times(write_sound(tmp_path / f"whole{name}", codec, rate, seconds=5), rate)
    _, frames, _ = listen(path)
    found = gaps(frames)
    assert [gap for _, gap in found] == [samples, 2 * samples, samples, samples]
    for (begin, _), number in zip(found, (40, 75, 110, 150), strict=True):
        assert begin == pytest.approx(times[number], abs=samples / 2 if most_ms else 48)


def test_a_block_that_is_dated_late_and_the_next_on_time_is_no_gap(tmp_path: Path) -> None:
    """As Vorbis is in Ogg, where its blocks become short."""
    path = write_sound(
        tmp_path / "a.mkv", "flac", 44_100, seconds=5, block=1024,
        late_seconds=lambda number: 0.06 if number % 7 == 5 else 0,
    )  # fmt: skip
    _, frames, _ = listen(path)
    assert gaps(frames) == [] and samples_of(frames) == 5 * 44_100


def test_raw_aac_whose_rate_changes_breaks_once_and_loses_nothing(tmp_path: Path) -> None:
    first = write_sound(tmp_path / "a.aac", "aac", 24_000, seconds=2)
    second = write_sound(tmp_path / "b.aac", "aac", 44_100, seconds=2)
    counts = decoded_samples(first), decoded_samples(second)
    path = tmp_path / "c.aac"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    _, frames, source = listen(path)
    assert gaps(frames) == [(counts[0], 0)] and source.lost == 0
    (remark,) = source.remarks
    assert "changes from 24000 Hz mono to 44100 Hz mono at 2." in remark
    wanted = counts[0] + Fraction(counts[1] * 24_000, 44_100)
    assert samples_of(frames) == pytest.approx(float(wanted), abs=2)


@pytest.mark.parametrize(
    "links",
    [
        [("libopus", 48_000, 1), ("libopus", 48_000, 2)],
        [("flac", 44_100, 2), ("libopus", 48_000, 1), ("libopus", 48_000, 2)],
        [("libopus", 48_000, 1), ("flac", 16_000, 1)],
    ],
)
def test_every_link_of_a_chained_ogg_is_read_whole(tmp_path: Path, links: Any) -> None:
    path = tmp_path / "chain.ogg"
    parts = [write_sound(tmp_path / f"{n}.ogg", *link) for n, link in enumerate(links)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    info, frames, source = listen(path)
    rate, channels = links[0][1:]
    wanted = [
        decoded_samples(part) * rate / link[1] for part, link in zip(parts, links, strict=True)
    ]
    assert info.rate == rate and all(frame.data.shape[0] == channels for frame in frames)
    assert source.lost == 0
    assert samples_of(frames) == pytest.approx(sum(wanted), abs=2 * len(links))
    # Each link begins at 0 anew.
    assert [begin for begin, _ in gaps(frames)] == pytest.approx(wanted[:-1], abs=2)


def test_a_chained_ogg_by_a_name_that_could_be_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("concat:a.ogg")
    parts = [write_sound(tmp_path / f"{n}.ogg", "libopus", 48_000, n) for n in (1, 2)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, frames, source = listen(path)
    assert samples_of(frames) == sum(map(decoded_samples, parts)) and source.lost == 0
    (remark,) = source.remarks
    assert "at 2.00 s" in remark  # of the sound that was heard: the link begins at 0 anew


def test_a_link_of_another_form_in_a_pipe_is_told_of(tmp_path: Path) -> None:
    parts = [write_sound(tmp_path / f"{n}.ogg", "libopus", 48_000, n) for n in (1, 2)]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    chain = b"".join(part.read_bytes() for part in parts)
    writer = threading.Thread(target=pipe.write_bytes, args=(chain,))
    writer.start()
    _, frames, source = listen(pipe)
    writer.join()
    assert samples_of(frames) == 2 * 48_000 and source.lost == 0
    assert "a chained Ogg" in source.broken and "save it" in source.broken


def test_a_link_of_another_form_from_a_server_is_an_error(tmp_path: Path) -> None:
    parts = [write_sound(tmp_path / f"{n}.ogg", "libopus", 48_000, n) for n in (1, 2)]
    (tmp_path / "chain.ogg").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames: list[Frame] = []
    with web(folder(tmp_path)) as server:
        source = MediaSource(f"{server.address}/chain.ogg")
        source.open_blocking()
        with pytest.raises(MediaError, match="chained Ogg.*save it"):
            frames += iter(source.read, None)
        source.close_blocking()
    assert samples_of(frames) == decoded_samples(parts[0])


def encoded_with_b_frames(path: Path, format: str, count: int, lost: set[int]) -> Path:
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(
            "libx264", rate=25, width=64, height=48, pix_fmt="yuv420p",
            options={"preset": "ultrafast", "bf": "2", "b_strategy": "0", "g": "30"},
        )  # fmt: skip
        packets = []
        for number, image in enumerate(images(count, "64x48")):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(image.transpose(1, 2, 0)), "rgb24"
            )
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += stream.encode(frame)
        for number, packet in enumerate(packets + stream.encode(None)):
            if number not in lost:
                container.mux(packet)
    return path


def watch(path: Path) -> tuple[Fraction, list[Frame], list[str]]:
    source = VideoSource(str(path))
    info = source.open_blocking()
    frames = list(iter(source.read, None))
    source.close_blocking()
    return info.time_base, frames, source.remarks


@pytest.mark.parametrize("format", ["avi", "asf", "mp4", "matroska"])
def test_images_out_of_order_in_the_container_are_none_on_the_screen(
    tmp_path: Path, format: str
) -> None:
    """AVI knows in which order H.264 was encoded, and nothing else."""
    time_base, frames, remarks = watch(encoded_with_b_frames(tmp_path / "a", format, 60, set()))
    assert not any(frame.discontinuity for frame in frames)
    assert bool(remarks) == (format in ("avi", "asf"))
    seconds = [(frame.pts - frames[0].pts) * time_base for frame in frames]
    assert seconds == pytest.approx([n / 25 for n in range(60)], abs=0.001)


CODECS = [
    ("aac", (48_000, 44_100, 8000)),
    ("libmp3lame", (48_000, 44_100, 22_050, 8000)),
    ("ac3", (48_000, 44_100)),
    ("eac3", (48_000,)),
    ("mp2", (48_000, 44_100)),
    ("libopus", (48_000,)),
    ("vorbis", (44_100, 24_000)),
    ("flac", (96_000, 44_100, 8000)),
    ("alac", (44_100,)),
    ("pcm_s16le", (44_100, 8000)),
    ("pcm_mulaw", (8000,)),
    ("adpcm_ms", (22_050,)),
    ("adpcm_ima_wav", (22_050,)),
    ("g722", (16_000,)),
    ("tta", (44_100,)),
    ("wavpack", (44_100,)),
    ("libopencore_amrnb", (8000,)),
]
FORMATS = ["adts", "aiff", "amr", "asf", "au", "avi", "caf", "eac3", "ac3", "f4v", "flac", "flv"]
FORMATS += ["3gp", "ipod", "latm", "matroska", "mov", "mp2", "mp3", "mp4", "mpeg", "mpegts", "nut"]
FORMATS += ["ogg", "rm", "tta", "voc", "w64", "wav", "webm", "wtv", "wv"]


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "rates"), CODECS, ids=str)
def test_every_codec_in_every_container_is_counted(
    tmp_path: Path, codec: str, rates: tuple[int, ...]
) -> None:
    tried = 0
    for rate in rates:
        for channels in (1, 2):
            for format in FORMATS:
                if (codec, format) in UNDATED | CUT_OFF or (format == "flv" and rate == 8000):
                    continue
                path = tmp_path / "a"
                try:
                    write_sound(path, codec, rate, channels, format=format)
                    wanted = decoded_samples(path)
                except (av.error.FFmpegError, ValueError, IndexError):
                    continue  # no such pair
                tried += 1
                _, frames, source = listen(path)
                case = codec, rate, channels, format
                assert (case, gaps(frames), source.lost) == (case, [], 0)
                short = wanted - samples_of(frames)
                assert (
                    0 <= short < 1536
                    if format in ("mp4", "mov", "ipod", "3gp", "f4v")
                    else not short
                )
    assert tried


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "codec", "rate", "samples"),
    [
        ("webm", "libopus", 48_000, 960),
        ("matroska", "aac", 48_000, 1024),
        ("matroska", "libmp3lame", 44_100, 1152),
        ("matroska", "flac", 44_100, 4608),
        ("matroska", "pcm_s16le", 16_000, 960),
        ("mpegts", "aac", 48_000, 1024),
        ("mpegts", "ac3", 48_000, 1536),
        ("mpegts", "libopus", 48_000, 960),
        ("mp4", "aac", 44_100, 1024),
        ("mp4", "libopus", 48_000, 960),
        ("flv", "libmp3lame", 44_100, 1152),
        ("nut", "aac", 44_100, 1024),
    ],
)
def test_losses_and_jitter_in_every_container(
    tmp_path: Path, format: str, codec: str, rate: int, samples: int
) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        packets = int(20 * rate / samples)
        lost = {at + rng.randrange(10) for at in range(40, packets - 40, 40)}
        for most_ms in (0, 4, 9):
            path = write_sound(
                tmp_path / "a", codec, rate, seconds=20, format=format, lost=lost,
                late_seconds=jitter(most_ms, seed), block=samples,
            )  # fmt: skip
            _, frames, _ = listen(path)
            found = gaps(frames)
            case = seed, most_ms
            assert (case, [gap for _, gap in found]) == (case, [samples] * len(lost))
            # To the packet, from the first loss on; to the next where jitter is nearly half of one.
            begins = [begin - found[0][0] for begin, _ in found]
            wanted = [(number - min(lost)) * samples for number in sorted(lost)]
            off = max(abs(begin - want) for begin, want in zip(begins, wanted, strict=True))
            assert off <= (samples if most_ms == 9 else 0), case


@pytest.mark.slow
def test_lost_pages_of_an_ogg_are_found(tmp_path: Path) -> None:
    for codec, rate in (("libopus", 48_000), ("flac", 44_100)):
        path = write_sound(
            tmp_path / "a.ogg", codec, rate, seconds=10, options={"page_duration": "200000"}
        )
        whole = decoded_samples(path)
        raw = path.read_bytes()
        at = [n for n in range(len(raw)) if raw.startswith(b"OggS\0", n)]
        path.write_bytes(raw[: at[12]] + raw[at[13] : at[30]] + raw[at[31] :])
        _, frames, _ = listen(path)
        found = gaps(frames)
        assert len(found) == 2 and all(gap > 0 for _, gap in found)
        assert samples_of(frames) + sum(gap for _, gap in found) == whole
