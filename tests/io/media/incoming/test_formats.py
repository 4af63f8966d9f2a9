"""Formats by their first bytes: none is missed, and no samples are taken for one."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.io.media.incoming.formats import id3_bytes, index_is_last, recognise, undecided

RATE = 16_000


def frames(codec: str, container: str, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.float32), "fltp", "mono")
        sound.sample_rate = rate
        for packet in [*stream.encode(sound), *stream.encode(None)]:
            out.mux(packet)
    return file.getvalue()


CHAINS = {
    "MP3": ("libmp3lame", "mp3", RATE),
    "MPEG audio": ("mp2", "mp2", RATE),
    "AAC": ("aac", "adts", RATE),
    "LATM": ("aac", "latm", RATE),
    "AC-3": ("ac3", "ac3", 48_000),
    "transport stream": ("aac", "mpegts", RATE),
}


@pytest.mark.parametrize("name", CHAINS)
def test_frames_that_follow_each_other(name: str) -> None:
    codec, container, rate = CHAINS[name]
    data = frames(codec, container, rate)
    data = data[id3_bytes(data) :]
    found = recognise(data[:8192])
    assert found is not None and name in found.name and found.holds == "media"
    assert not undecided(data[:8192])
    # One head alone could be a sample; more bytes are waited for.
    assert recognise(data[:20]) is None and undecided(data[:20])
    # Where the second frame is not what it should be, there is no chain.
    broken = bytearray(data[:8192])
    broken[5:8192] = bytes(8187)
    assert recognise(bytes(broken)) is None and not undecided(bytes(broken))


def test_a_tag_before_sound() -> None:
    data = b"ID3\x04\0\0\0\0\x02\x01" + bytes(300)
    assert id3_bytes(data) == 10 + 257
    found = recognise(data)
    assert found is not None and found.name.startswith("MP3")
    for other in (b"ID3", b"ID3\x09\0\0\0\0\x02\x01", b"ID3\x04\0\0\x80\0\x02\x01"):
        assert id3_bytes(other) == 0


def test_a_file_that_ends_early_counts_what_it_has() -> None:
    data = frames("libmp3lame", "mp3")
    data = data[id3_bytes(data) :]
    end = next(at for at in range(1, 4000) if data[at : at + 2] == data[:2])
    assert recognise(data[:end]) is None
    assert recognise(data[:end], ended=True) is not None


SIGNALS = st.sampled_from(["noise", "tone", "square", "dither", "steps"])


@given(signal=SIGNALS, seed=st.integers(0, 10_000), form=st.sampled_from(["<i2", "u1", "<f4"]))
def test_samples_are_no_format(signal: str, seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    times = np.arange(4000)
    period = int(rng.integers(2, 600))
    samples = {
        "noise": lambda: rng.normal(0, rng.uniform(0.0001, 0.3), 4000),
        "tone": lambda: rng.uniform(0.001, 1) * np.sin(2 * np.pi * times / period + seed),
        "square": lambda: rng.uniform(0.001, 1) * np.sign(np.sin(2 * np.pi * times / period)),
        "dither": lambda: rng.integers(-1, 2, 4000) / 2**15,
        "steps": lambda: np.repeat(rng.uniform(-1, 1, 40), 100),
    }[signal]()
    if form == "<f4":
        data = samples.astype("<f4").tobytes()
    elif form == "u1":
        data = np.round(samples.clip(-1, 1) * 127 + 128).astype("u1").tobytes()
    else:
        data = np.round(samples.clip(-1, 1) * 32767).astype("<i2").tobytes()
    found = recognise(data)
    assert found is None or found.name == "text"  # of 8 bits, loud and lucky
    assert not undecided(data)


@pytest.mark.parametrize("value", [0, -1, 1, -257, 255, 0x7FFF, -0x8000])
def test_constant_samples_are_no_format(value: int) -> None:
    data = np.full(4000, value, "<i2").tobytes()
    assert recognise(data) is None
    assert not undecided(data)


def test_what_is_short_is_undecided() -> None:
    assert undecided(b"") and undecided(b"RIFF") and recognise(b"RIFF") is None
    assert recognise(b"") is None and recognise(b"\0" * 10, ended=True) is None


def box(name: bytes, size: int) -> bytes:
    return (8 + size).to_bytes(4, "big") + name + bytes(size)


@pytest.mark.parametrize(
    ("boxes", "last"),
    [
        ([box(b"ftyp", 20), box(b"free", 8), box(b"mdat", 99), box(b"moov", 9)], True),
        ([box(b"ftyp", 20), box(b"moov", 8), box(b"mdat", 99)], False),
        ([b"\0\0\0\1wide" + (24).to_bytes(8, "big") + bytes(8), box(b"mdat", 99)], True),
        ([b"RIFF" + bytes(30)], False),
        ([b""], False),
    ],
)
def test_where_the_index_of_an_mp4_stands(boxes: list[bytes], last: bool) -> None:
    data = b"".join(boxes)
    assert index_is_last(lambda offset, size: data[offset : offset + size]) is last
