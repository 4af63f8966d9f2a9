"""WAV and its relatives with headers that decoders misread: the samples are the file's own."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from streamenc.errors import MediaError
from streamenc.io import source as source_of
from streamenc.io.files.pcm import PcmSource
from streamenc.io.files.standard.standardinput import StandardInput
from streamenc.io.media.audiosource import MediaSource
from tests.support.piped import chunk, integers, read_all, standard_input, wave_bytes
from tests.support.program import streamenc
from tests.support.web import folder, web

TIMES = np.arange(3000) / 8000
TONE = 0.5 * np.sin(2 * np.pi * 440 * TIMES)
# (bytes of a sample, bits that count)
SIZES = [(2, 8), (2, 12), (2, 16), (3, 16), (3, 20), (3, 24), (4, 8), (4, 16), (4, 20), (4, 24)]
ORDERS = ["<", ">"]


def whole(valid: int) -> np.ndarray[Any, Any]:
    return np.round(TONE * 2 ** (valid - 1)).astype(np.int64)


def expected(valid: int) -> np.ndarray[Any, Any]:
    return (whole(valid) / 2 ** (valid - 1)).astype(np.float32)[None]


def read(path: Path, data: bytes) -> tuple[np.ndarray[Any, Any], list[str]]:
    path.write_bytes(data)
    source = MediaSource(str(path))
    return read_all(source), source.remarks


@pytest.mark.parametrize(("size", "valid"), SIZES)
@pytest.mark.parametrize("low", [False, True])
def test_valid_bits_of_an_extensible_header(
    tmp_path: Path, size: int, valid: int, low: bool
) -> None:
    shift = 0 if low else 8 * size - valid
    data = wave_bytes(integers(whole(valid) << shift, size), size=size, valid=valid, rate=8000)
    path = tmp_path / "a.wav"
    got, remarks = read(path, data)
    np.testing.assert_array_equal(got, expected(valid))
    source = MediaSource(str(path))
    source.open_blocking()
    source.close_blocking()
    assert (source.duration_seconds, source.broken) == (0.375, "")
    assert any("lower ones" in remark for remark in remarks) == (low and valid < 8 * size)
    if not low:  # which is what the format says; libsndfile reads it so, too
        oracle = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
        np.testing.assert_allclose(got[0], oracle, atol=1e-7)
    with standard_input(data):
        np.testing.assert_array_equal(read_all(StandardInput()), got)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_big_endian_samples(tmp_path: Path, size: int, channels: int) -> None:
    samples = integers(whole(8 * size), size, ">")
    data = wave_bytes(samples, bits=8 * size, size=size, order=">", rate=8000, channels=channels)
    got, _ = read(tmp_path / "a.wav", data)
    np.testing.assert_array_equal(got, expected(8 * size).reshape(-1, channels).T)
    oracle = soundfile.read(tmp_path / "a.wav", always_2d=True, dtype="float32")[0].T
    np.testing.assert_allclose(got, oracle, atol=1e-7)


def test_big_endian_samples_of_full_scale(tmp_path: Path) -> None:
    values = np.array([-(2**23), -(2**22), 0, 2**22, 2**23 - 1])
    data = wave_bytes(integers(values, 3, ">"), bits=24, size=3, order=">", rate=8000)
    got, _ = read(tmp_path / "a.wav", data)
    np.testing.assert_allclose(got[0], [-1, -0.5, 0, 0.5, 1], atol=2e-7)


@pytest.mark.parametrize(("size", "valid", "order"), [(2, 8, "<"), (4, 24, "<"), (3, 24, ">")])
def test_headers_on_a_server_are_read_as_those_of_files(
    tmp_path: Path, size: int, valid: int, order: str
) -> None:
    samples = integers(whole(valid) << 8 * size - valid, size, order)
    said: dict[str, Any] = {"valid": valid} if order == "<" else {"bits": valid}
    data = wave_bytes(samples, size=size, rate=8000, order=order, **said)
    (tmp_path / "a.wav").write_bytes(data)
    with web(folder(tmp_path)) as server:
        got = read_all(MediaSource(f"{server.address}/a.wav"))
    np.testing.assert_array_equal(got, expected(valid))


def w64(fmt: bytes, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        rest = "2e91cf11a5d628db04c10000" if name == b"riff" else "f3acd3118cd100c04f8edb8a"
        size = struct.pack("<Q", 24 + len(body))
        return name + bytes.fromhex(rest) + size + body + bytes(-len(body) % 8)

    kind = b"wave" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
    return chunk(b"riff", kind + chunk(b"fmt ", fmt) + chunk(b"data", data))


def caf(flags: int, size: int, bits: int, data: bytes) -> bytes:
    desc = struct.pack(">d4sIIIII", 8000.0, b"lpcm", flags, size, 1, 1, bits)
    head = b"caff" + struct.pack(">HH4sq", 1, 0, b"desc", len(desc)) + desc
    return head + b"data" + struct.pack(">qI", 4 + len(data), 0) + data


@pytest.mark.parametrize(("size", "valid"), [(2, 12), (3, 20), (4, 20), (4, 24)])
def test_padded_samples_of_w64_and_caf(tmp_path: Path, size: int, valid: int) -> None:
    samples = whole(valid) << 8 * size - valid
    fmt = struct.pack("<HHIIHH", 1, 1, 8000, 8000 * size, size, valid)
    got, _ = read(tmp_path / "a.w64", w64(fmt, integers(samples, size)))
    np.testing.assert_array_equal(got, expected(valid))
    for flags, order in ((0, ">"), (2, "<")):
        data = caf(flags, size, valid, integers(samples, size, order))
        got, _ = read(tmp_path / "a.caf", data)
        np.testing.assert_array_equal(got, expected(valid))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [4, 8])
def test_floats(tmp_path: Path, order: str, size: int) -> None:
    samples = TONE.astype(np.float32)
    raw = samples.astype(f"{order}f{size}").tobytes()
    data = wave_bytes(raw, bits=8 * size, size=size, tag=3, order=order, rate=8000)
    got, _ = read(tmp_path / "a.wav", data)
    np.testing.assert_array_equal(got[0], samples)


def test_24_bits_in_32_without_an_extensible_header(tmp_path: Path) -> None:
    data = wave_bytes(integers(whole(24) << 8, 4), bits=24, size=4, rate=8000)
    np.testing.assert_array_equal(read(tmp_path / "a.wav", data)[0], expected(24))
    # Where they are the floats of an old editor, whose header is the same, they stay floats.
    floats = (TONE * 2**23).astype("<f4")
    data = wave_bytes(floats.tobytes(), bits=24, size=4, rate=8000)
    np.testing.assert_allclose(read(tmp_path / "a.wav", data)[0][0], TONE, atol=1e-6)


def test_silence_before_samples_that_lie_low(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(5000, np.int64), whole(24)])
    data = wave_bytes(integers(samples, 4), size=4, valid=24, rate=8000)
    got, _ = read(tmp_path / "a.wav", data)
    np.testing.assert_array_equal(got[0, 5000:], expected(24)[0])
    assert not got[0, :5000].any()


def test_all_bits_of_a_sample_where_the_header_says_fewer(tmp_path: Path) -> None:
    data = wave_bytes(integers(whole(32), 4), size=4, valid=24, rate=8000)
    np.testing.assert_array_equal(read(tmp_path / "a.wav", data)[0], expected(32))


def test_chunks_before_the_format(tmp_path: Path) -> None:
    before = [chunk("<", b"JUNK", bytes(29)), chunk("<", b"bext", bytes(5000))]
    data = wave_bytes(integers(whole(24) << 8, 4), size=4, valid=24, rate=8000, before=before)
    np.testing.assert_array_equal(read(tmp_path / "a.wav", data)[0], expected(24))


@pytest.mark.parametrize("size", [100, 20_000])
def test_an_id3_tag_before_a_wav(tmp_path: Path, size: int) -> None:
    tag = b"ID3\x03\0\0" + bytes([0, size >> 14 & 127, size >> 7 & 127, size & 127]) + bytes(size)
    data = tag + wave_bytes(integers(whole(16), 2), rate=8000)
    np.testing.assert_array_equal(read(tmp_path / "a.wav", data)[0], expected(16))
    with standard_input(data):
        np.testing.assert_array_equal(read_all(StandardInput()), expected(16))


def test_a_wav_without_samples_says_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    path.write_bytes(wave_bytes(b""))
    done = streamenc("encode", path, "null:")
    assert done.code == 1
    assert "no audio in it can be decoded: it has a header, and holds no samples" in done.error


@pytest.mark.parametrize("law", ["mulaw", "alaw"])
@pytest.mark.parametrize("name", ["call.ul", "call.al", "call.bin"])
def test_samples_without_a_header_say_how_they_are_read(
    tmp_path: Path, law: str, name: str
) -> None:
    codec = {"mulaw": "ULAW", "alaw": "ALAW"}[law]
    path = tmp_path / name
    soundfile.write(path, TONE, 8000, codec, format="RAW")
    with pytest.raises(MediaError, match=r"pcm:.*rate=8000&channels=1&format=(mu|a)law"):
        MediaSource(str(path)).open_blocking()
    got = read_all(source_of(f"pcm:{path}?rate=8000&format={law}"))
    wanted, _ = soundfile.read(
        path, samplerate=8000, channels=1, subtype=codec, format="RAW", dtype="float32"
    )
    np.testing.assert_array_equal(got[0], wanted)
    assert isinstance(source_of(f"pcm:{path}?format={law}"), PcmSource)


def test_what_ffmpeg_takes_for_another_codec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, TONE, 8000, "NMS_ADPCM_32")
    with pytest.raises(MediaError, match="holds NMS ADPCM, which FFmpeg takes for AMR"):
        MediaSource(str(path)).open_blocking()


@pytest.mark.parametrize("samples", [100, 3000, 4096 + 5])
def test_the_end_of_apple_lossless_in_caf_is_whole(tmp_path: Path, samples: int) -> None:
    tone = np.resize(TONE, samples)
    path = tmp_path / "a.caf"
    soundfile.write(path, tone, 8000, "ALAC_16")
    wanted, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(read_all(MediaSource(str(path)))[0], wanted)


# Lossy codecs whose decoders differ a little, or of which FFmpeg's is the better known one.
LOSSY = ("ADPCM", "G721", "G723", "GSM610", "VORBIS", "OPUS", "MPEG", "NMS")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["FILE", "LITTLE", "BIG"])
@pytest.mark.parametrize("format", sorted(soundfile.available_formats()))
def test_every_format_of_libsndfile_is_read_as_by_it_or_refused(
    tmp_path: Path, format: str, order: str
) -> None:
    both = np.stack([TONE, -0.5 * TONE], axis=1)
    path = tmp_path / f"a.{format.lower()}"
    for codec in soundfile.available_subtypes(format):
        for channels in (1, 2):
            # Of MIDI sample dumps, FFmpeg reads more bits than libsndfile does.
            skipped = format in ("RAW", "SDS") or any(name in codec for name in LOSSY)
            if skipped or not soundfile.check_format(format, codec, order):
                continue
            try:
                soundfile.write(path, both[:, :channels], 8000, codec, order, format)
                wanted = soundfile.read(path, always_2d=True, dtype="float32")[0].T
            except (soundfile.LibsndfileError, TypeError):
                continue
            try:
                got = read_all(MediaSource(str(path)))
            except MediaError:
                continue
            np.testing.assert_allclose(got, wanted, atol=1e-6, err_msg=f"{codec}")
