from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import FitError, InputError, MediaError, OutputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.ecdc import EcdcSink, EcdcSource
from streamenc.io.files.ecdcformat import HEADER_BYTES, PREFIX
from tests.support.disk import tiny_disk
from tests.support.profile import examples

DATA_AT = PREFIX.size + HEADER_BYTES
RATES = {"encodec_24khz": (24000, Fraction(75)), "encodec_48khz": (48000, Fraction(5000, 33))}


def info_of(name: str, codebooks: int = 8, time_base: Fraction | None = None) -> StreamInfo:
    rate, frame_rate = RATES[name]
    time_base = time_base or Fraction(1, rate)
    model = f"facebook/{name}"
    return StreamInfo("codes", time_base, frame_rate, (codebooks, None), "uint16", model, 1024)


def random_codes(codebooks: int, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 1024, (codebooks, count)).astype(np.uint16)


def clip(samples: int, codebooks: int = 8, pieces: tuple[int, ...] = (1,)) -> list[Frame]:
    """24 kHz: codes for so many samples in frames of `pieces` code frames, over and over."""
    total = -(-samples // 320)
    codes = random_codes(codebooks, total)
    frames, at = [], 0
    while at < total:
        count = min(pieces[len(frames) % len(pieces)], total - at)
        end = min((at + count) * 320, samples)
        frames.append(Frame(codes[:, at : at + count], 320 * at, end - 320 * at, len(frames)))
        at += count
    return frames


def segments(samples: int, codebooks: int = 4) -> list[Frame]:
    """48 kHz: one frame per segment, as long as the encodec package makes them."""
    frames = []
    for seq, pts in enumerate(range(0, samples, 47520)):
        count = -(-min(samples - pts, 48000) // 320)
        codes = random_codes(codebooks, count, seq)
        duration = min(samples - pts, 47520)
        frames.append(Frame(codes, pts, duration, seq, scale=float(np.float32(0.1 + seq))))
    return frames


def write(path: Path, info: StreamInfo, frames: list[Frame], **options: Any) -> bytes:
    sink = EcdcSink(str(path), **options)
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    sink.close_blocking()
    return path.read_bytes()


def read(path: Path) -> tuple[StreamInfo, list[Frame], bool]:
    source = EcdcSource(str(path))
    try:
        info = source.open_blocking()
        return info, list(iter(source.read, None)), bool(source.broken)
    finally:
        source.close_blocking()
        source.close_blocking()


def joined(frames: list[Frame]) -> np.ndarray[Any, Any]:
    return np.concatenate([frame.data for frame in frames], axis=1)


def header_of(raw: bytes) -> Any:
    return json.loads(raw[PREFIX.size : DATA_AT])


@settings(max_examples=examples(40, fast=10), deadline=None)
@given(
    samples=st.integers(1, 40_000),
    codebooks=st.sampled_from([1, 2, 3, 4, 8, 32]),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_clips_come_back(
    tmp_path_factory: pytest.TempPathFactory, samples: int, codebooks: int, pieces: list[int]
) -> None:
    path = tmp_path_factory.mktemp("clip") / "a.ecdc"
    frames = clip(samples, codebooks, tuple(pieces))
    write(path, info_of("encodec_24khz", codebooks), frames)
    info, got, truncated = read(path)
    assert info == info_of("encodec_24khz", codebooks)
    assert not truncated
    np.testing.assert_array_equal(joined(got), joined(frames))
    # One sample less for the lengths that the encodec package would round up.
    assert sum(frame.duration for frame in got) in (samples, samples - (samples % 320 == 0))
    assert [frame.pts for frame in got] == [
        sum(f.duration for f in got[:i]) for i in range(len(got))
    ]
    assert [frame.seq for frame in got] == list(range(len(got)))


@pytest.mark.parametrize(
    "samples",
    [1, 321, 47200, 47519, 47520, 47521, 47680, 47681, 47840, 47841, 48000, 48001, 95040, 95041,
     95200, 95201, 96000, 100_000, 47520 + 321, 237_600],
)  # fmt: skip
def test_segments_come_back(tmp_path: Path, samples: int) -> None:
    frames = segments(samples)
    write(tmp_path / "a.ecdc", info_of("encodec_48khz", 4), frames)
    info, got, truncated = read(tmp_path / "a.ecdc")
    assert info == info_of("encodec_48khz", 4)
    assert not truncated
    assert len(got) == len(frames)
    for a, b in zip(got, frames, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert (a.pts, a.duration, a.seq, a.scale) == (b.pts, b.duration, b.seq, b.scale)


def test_durations_in_another_time_base_give_the_length(tmp_path: Path) -> None:
    base = Fraction(1, 44100)
    frames = [Frame(random_codes(2, 75), 44100 * i, 44100, i) for i in range(3)]
    frames.append(Frame(random_codes(2, 38), 132300, 22050, 3))
    raw = write(tmp_path / "a.ecdc", info_of("encodec_24khz", 2, base), frames)
    assert header_of(raw) == {"m": "encodec_24khz", "al": 84000, "nc": 2, "lm": False}


def test_lost_frames_leave_a_shorter_clip_that_is_valid(tmp_path: Path) -> None:
    frames = clip(3200)
    kept = [*frames[:3], frames[3].with_(duration=7, discontinuity=True), *frames[7:]]
    write(tmp_path / "a.ecdc", info_of("encodec_24khz"), kept)
    _, got, truncated = read(tmp_path / "a.ecdc")
    assert not truncated
    np.testing.assert_array_equal(joined(got), joined(kept))


def test_a_stream_cut_after_a_whole_segment_ends_where_no_other_would_follow(
    tmp_path: Path,
) -> None:
    frames = segments(200_000)[:2]
    write(tmp_path / "a.ecdc", info_of("encodec_48khz", 4), frames)
    _, got, truncated = read(tmp_path / "a.ecdc")
    assert not truncated
    assert sum(frame.duration for frame in got) == 2 * 47520
    np.testing.assert_array_equal(got[0].data, frames[0].data)
    np.testing.assert_array_equal(got[1].data, frames[1].data[:, :149])


def test_fewer_codebooks_than_the_stream_could_have(tmp_path: Path) -> None:
    raw = write(tmp_path / "a.ecdc", info_of("encodec_24khz", 32), clip(3200, codebooks=2))
    assert header_of(raw)["nc"] == 2


def test_an_empty_stream_is_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "a.ecdc", info_of("encodec_24khz"), [])
    _, frames, truncated = read(tmp_path / "a.ecdc")
    assert frames == [] and not truncated


def bad_frames() -> list[tuple[str, Frame, str]]:
    codes = random_codes(8, 3)
    return [
        ("encodec_24khz", Frame(codes[:4], 0, 960, 1), "4 codebooks after 8"),
        ("encodec_24khz", Frame(codes[0], 0, 960, 1), "codebooks"),
        ("encodec_24khz", Frame(codes.astype(np.float32), 0, 960, 1), "unsigned"),
        ("encodec_24khz", Frame(codes + np.uint16(1024), 0, 960, 1), "1024 entries"),
        ("encodec_48khz", Frame(random_codes(8, 150), 0, 960, 1), "only the last"),
        ("encodec_48khz", Frame(random_codes(8, 151), 0, 960, 1), "only the last"),
    ]


@pytest.mark.parametrize(("name", "frame", "message"), bad_frames())
def test_frames_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, frame: Frame, message: str
) -> None:
    sink = EcdcSink(str(tmp_path / "a.ecdc"))
    sink.open_blocking(info_of(name))
    sink.write_blocking(Frame(random_codes(8, 7), 0, 2240, 0))
    with pytest.raises(InputError, match=message):
        sink.write_blocking(frame)
    sink.close_blocking()
    _, got, truncated = read(tmp_path / "a.ecdc")
    assert joined(got).shape == (8, 7) and not truncated


def test_streams_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.ecdc")
    mimi = StreamInfo(
        "codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "kyutai/mimi", 2048
    )
    own = StreamInfo(
        "codes", Fraction(1, 24000), Fraction(75), (8, None), "uint16", "./weights", 1024
    )
    for info in (mimi, own):
        with pytest.raises(FitError, match="model=encodec_24khz"):
            EcdcSink(path).open_blocking(info)
    sink = EcdcSink(path, model="encodec_24khz")
    sink.open_blocking(own)
    sink.close_blocking()
    with pytest.raises(UsageError, match="model"):
        EcdcSink(path, model="mimi")
    with pytest.raises(OutputError, match="overwrite"):
        EcdcSink(path, overwrite=False).open_blocking(info_of("encodec_24khz"))
    with pytest.raises(OutputError, match="closed"):
        sink.write_blocking(clip(320)[0])


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 13, 50, 149])
def test_a_short_clip_gives_its_whole_frames(tmp_path: Path, cut: int) -> None:
    frames = clip(15 * 320)
    raw = write(tmp_path / "a.ecdc", info_of("encodec_24khz"), frames)
    assert len(raw) == DATA_AT + 150
    (tmp_path / "cut.ecdc").write_bytes(raw[: DATA_AT + cut])
    _, got, truncated = read(tmp_path / "cut.ecdc")
    assert truncated
    whole = cut // 10
    assert sum(frame.duration for frame in got) == 320 * whole
    if whole:
        np.testing.assert_array_equal(joined(got), joined(frames)[:, :whole])


def test_a_short_file_gives_its_whole_segments(tmp_path: Path) -> None:
    frames = segments(200_000)
    raw = write(tmp_path / "a.ecdc", info_of("encodec_48khz", 4), frames)
    whole = 4 + 150 * 4 * 10 // 8
    for cut in (0, 3, whole - 1, whole, 2 * whole + 5, len(raw) - DATA_AT - 1):
        (tmp_path / "cut.ecdc").write_bytes(raw[: DATA_AT + cut])
        _, got, truncated = read(tmp_path / "cut.ecdc")
        assert truncated
        assert len(got) == cut // whole
        for a, b in zip(got, frames, strict=False):
            np.testing.assert_array_equal(a.data, b.data)
            assert (a.duration, a.scale) == (47520, b.scale)


WRITE_FOREVER = """
import itertools, sys
from fractions import Fraction
import numpy as np
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.ecdc import EcdcSink

sink = EcdcSink(sys.argv[1])
sink.open_blocking(StreamInfo(
    "codes", Fraction(1, 24000), Fraction(75), (8, None), "uint16", "facebook/encodec_24khz", 1024
))
for seq in itertools.count():
    sink.write_blocking(Frame(np.full((8, 1), seq % 1024, np.uint16), 320 * seq, 320, seq))
    print(seq, flush=True)
"""


def test_a_killed_writer_leaves_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.ecdc"
    command = [sys.executable, "-c", WRITE_FOREVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 100:
                break
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([100, *map(int, writer.stdout.read().splitlines())])
    _, frames, truncated = read(path)
    codes = joined(frames)
    assert truncated
    assert codes.shape[1] >= acknowledged + 1
    assert (codes == np.arange(codes.shape[1]) % 1024).all()


def file_with(header: Any, data: bytes = b"", version: int = 0, magic: bytes = b"ECDC") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!4sBI", magic, version, len(text)) + text + data


GOOD = {"m": "encodec_24khz", "al": 640, "nc": 2, "lm": False}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an .ecdc"),
        (b"ECDC\0", "not an .ecdc"),
        (b"RIFF" * 10, "not an .ecdc"),
        (file_with(GOOD, version=1), "version 1"),
        (b"ECDC\0\xff\xff\xff\xff" + bytes(100), "4294967295 bytes"),
        (file_with(GOOD)[:20], "ends in its header"),
        (file_with(b"{nonsense"), "damaged"),
        (file_with(b"[" * 4000), "damaged"),
        (file_with(b"\xff\xfe\xfd"), "damaged"),
        (file_with([]), "JSON object"),
        (file_with({**GOOD, "m": "mimi"}), "mimi"),
        (file_with({**GOOD, "m": ["encodec_24khz"]}), "model"),
        (file_with({**GOOD, "lm": True}), "--lm"),
        (file_with({**GOOD, "al": -1}), "samples"),
        (file_with({**GOOD, "al": 2**60}), "samples"),
        (file_with({**GOOD, "al": 1.5}), "samples"),
        (file_with({**GOOD, "nc": 0}), "codebooks"),
        (file_with({**GOOD, "nc": 33}), "codebooks"),
        (file_with({**GOOD, "nc": True}), "codebooks"),
        (file_with(GOOD, bytes(6)), "1 bytes more"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "a.ecdc").write_bytes(raw)
    with pytest.raises(MediaError, match=message):
        read(tmp_path / "a.ecdc")


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    frame = segments(3200)[0].with_(scale=float("nan"))
    write(tmp_path / "a.ecdc", info_of("encodec_48khz", 4), [frame])
    with pytest.raises(MediaError, match="scale nan"):
        read(tmp_path / "a.ecdc")


def test_a_missing_file_is_a_media_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="No such file"):
        read(tmp_path / "none.ecdc")


def test_a_full_disk_is_said_and_what_was_written_reads_back(tmp_path: Path) -> None:
    frames = clip(320 * 8000)
    with tiny_disk(tmp_path / "disk") as disk:
        path = disk / "a.ecdc"
        sink = EcdcSink(str(path))
        sink.open_blocking(info_of("encodec_24khz"))
        with pytest.raises(OutputError, match="disk is full"):
            for frame in frames:
                sink.write_blocking(frame)
        sink.close_blocking()
        _, got, truncated = read(path)
    assert truncated
    codes = joined(got)
    assert codes.shape[1] > 5000
    np.testing.assert_array_equal(codes, joined(frames)[:, : codes.shape[1]])


class StandIn:
    """Gives the encodec package's file functions codes instead of a network's work."""

    normalize = property(lambda self: self.name == "encodec_48khz")
    segment_length = property(lambda self: 48000 if self.normalize else None)
    segment_stride = property(lambda self: 47520 if self.normalize else None)
    sample_rate = property(lambda self: 48000 if self.normalize else 24000)
    frame_rate = property(lambda self: self.sample_rate // 320)
    bits_per_codebook = 10

    def __init__(self, name: str, frames: list[Frame]) -> None:
        self.name, self.frames = name, frames
        self.decoded: list[Any] = []

    def to(self, device: str) -> StandIn:
        return self

    def encode(self, wav: Any) -> list[Any]:
        import torch

        scales = [torch.tensor([[f.scale]]) if self.normalize else None for f in self.frames]
        codes = [torch.from_numpy(f.data.astype(np.int64))[None] for f in self.frames]
        return list(zip(codes, scales, strict=True))

    def decode(self, frames: list[Any]) -> Any:
        import torch

        self.decoded = frames
        return torch.zeros(1, 1, 10**6)


def encodec_compress() -> Any:
    """encodec.compress; the package wants torchaudio for files only."""
    with warnings.catch_warnings(), mock.patch.dict(sys.modules, torchaudio=mock.Mock()):
        warnings.simplefilter("ignore")
        return import_module("encodec.compress")


CASES = [
    ("encodec_24khz", samples) for samples in (1, 320, 321, 6720, 13440, 24000, 30001, 65280)
] + [
    ("encodec_48khz", samples)
    for samples in (1, 6720, 47519, 47520, 47521, 47680, 47681, 48000, 48001, 54240, 100_000)
]  # fmt: skip


@pytest.mark.reference
@pytest.mark.parametrize(("name", "samples"), CASES)
def test_interchange_with_the_encodec_package(tmp_path: Path, name: str, samples: int) -> None:
    import torch

    frames = segments(samples) if name == "encodec_48khz" else clip(samples, 4, (10**6,))
    compress, model = encodec_compress(), StandIn(name, frames)
    path = tmp_path / "a.ecdc"

    theirs = compress.compress(model, torch.zeros(1, samples), use_lm=False)
    path.write_bytes(theirs)
    _, got, truncated = read(path)
    assert not truncated
    assert sum(frame.duration for frame in got) == samples
    np.testing.assert_array_equal(joined(got), joined(frames))

    ours = write(path, info_of(name, 4), frames)
    assert ours[DATA_AT:] == theirs[-len(ours) + DATA_AT :]
    with mock.patch.dict(compress.MODELS, {name: lambda: model}):
        wav, _ = compress.decompress(ours)
    assert wav.shape[-1] in (samples, samples - 1)
    assert len(model.decoded) == len(frames)
    for (codes, scale), frame in zip(model.decoded, frames, strict=True):
        np.testing.assert_array_equal(codes[0].numpy(), frame.data)
        assert scale is None or scale.item() == frame.scale


@pytest.mark.reference
@pytest.mark.parametrize("name", list(RATES))
def test_a_real_network_of_the_encodec_package_decodes_our_file(tmp_path: Path, name: str) -> None:
    import torch

    compress = encodec_compress()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = compress.MODELS[name](pretrained=False).eval()
    model.name = name
    model.set_target_bandwidth(6)
    wav = 0.1 * torch.randn(model.channels, 52_321 if model.segment_length else 7_321)
    raw = compress.compress(model, wav, use_lm=False)
    (tmp_path / "theirs.ecdc").write_bytes(raw)
    info, frames, _ = read(tmp_path / "theirs.ecdc")
    assert sum(frame.duration for frame in frames) == wav.shape[-1]
    ours = write(tmp_path / "ours.ecdc", info, frames)
    with mock.patch.dict(compress.MODELS, {name: lambda: model}):
        ours_wav, _ = compress.decompress(ours)
        theirs_wav, _ = compress.decompress(raw)
    assert torch.equal(ours_wav, theirs_wav)
