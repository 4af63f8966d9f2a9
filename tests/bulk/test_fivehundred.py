"""A folder of files in four formats and six rates, some broken: each whole one is tokenised as
`codec.encode` has it, each broken one is an error with its reason; the same from a manifest."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import streamenc
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize

RATES = (8000, 16000, 22050, 24000, 44100, 48000)
FORMATS = (".wav", ".flac", ".mp3", ".ogg")
CLIP = next((Path(streamenc.__file__).parent / "verify").rglob("*.flac"))
# Real speech, a folder of it, in place of the clip.
SPEECH = os.environ.get("STREAMENC_SPEECH", "")


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_channels(data: bytes) -> bytes:
    return wave(1, 0, 16, bytes(100))


def not_finite(data: bytes) -> bytes:
    return wave(3, 1, 32, np.full(4000, np.nan, "<f4").tobytes())


def wave(tag: int, channels: int, bits: int, data: bytes) -> bytes:
    block = channels * bits // 8
    form = struct.pack("<IHHIIHH", 16, tag, channels, 8000, 8000 * block, block, bits)
    chunks = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


# How a file is broken, and what is said of it.
HARMS: list[tuple[Callable[[bytes], bytes], str]] = [
    (cut_short, "cut short|damaged|cannot be decoded|it begins as Ogg"),
    (lambda data: b"", "empty"),
    (lambda data: b"This is a text, and no sound at all.\n" * 9, "it holds text"),
    (without_channels, "cannot|no audio"),
    (not_finite, "finite"),
    (lambda data: bytes(len(data)), "cannot read|can be decoded"),
]


def speech() -> list[Path]:
    found = sorted(Path(SPEECH).rglob("*.flac")) if SPEECH else []
    return found or [CLIP]


def make(root: Path, count: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Writes files; the samples of those that hold just them, and what is said of broken ones."""
    chance, sources = random.Random(19), cycle(speech())
    plain: dict[str, np.ndarray] = {}
    broken: dict[str, str] = {}
    harms = cycle(HARMS)
    for number in range(count):
        samples, _ = soundfile.read(next(sources), dtype="int16", always_2d=True)
        rate = RATES[number % len(RATES)]
        first = chance.randrange(max(1, len(samples) - 2 * rate))
        samples = samples[first : first + int(chance.uniform(1, 2) * rate), :1]
        suffix = FORMATS[number // len(RATES) % len(FORMATS)]
        name = f"{rate}/{number:04d}{suffix}"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate)
        if number % 7 == 3:
            harm, broken[name] = next(harms)
            path.write_bytes(harm(path.read_bytes()))
        elif number % 7 == 5:  # whole, with a wrong ending
            path.rename(path.with_suffix(".mp3" if suffix != ".mp3" else ".wav"))
        elif suffix in (".wav", ".flac"):
            plain[name] = samples
    return plain, broken


def rows_of(output: Path) -> dict[str, dict]:
    files = sorted((output / "data").glob("*.parquet"))
    return {row["key"]: row for file in files for row in pq.read_table(file).to_pylist()}


@pytest.mark.parametrize(
    "count", [60, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_whole_files_and_broken_ones(count: int, tmp_path: Path):
    clips = tmp_path / "clips"
    plain, broken = make(clips, count)
    nano = (ModelAsk(name="nano"),)
    tokenize(TokenizeJob(input=str(clips), models=nano), tmp_path / "out", workers=0)
    rows = rows_of(tmp_path / "out")
    said = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    errors = [json.loads(line) for line in said]
    names = {str(path.relative_to(clips)) for path in clips.rglob("*.*")}
    assert rows.keys() == names - broken.keys() and len(names) == count
    assert {error["key"] for error in errors} == broken.keys() and len(errors) == len(broken)
    for error in errors:
        assert any(word in error["reason"] for word in broken[error["key"]].split("|")), error
        assert "/item-" not in error["reason"]
    codec = streamenc.load("nano", backend="torch")
    for name, row in rows.items():
        sound = streamenc.read(clips / name, sample_rate=codec.sample_rate, channels=1).data
        np.testing.assert_array_equal(np.array(row["codes"]), codec.encode(sound)[0].numpy(), name)

    # The same as segments of a few long files.
    manifest = tmp_path / "manifest.jsonl"
    expected = {}
    with manifest.open("w") as lines:
        for rate, suffix in zip(RATES, cycle((".wav", ".flac")), strict=False):
            names_here = [name for name in plain if name.startswith(f"{rate}/")]
            soundfile.write(
                tmp_path / f"{rate}{suffix}", np.concatenate([plain[n] for n in names_here]), rate
            )
            at = 0
            for name in names_here:
                begins, lasts = at / rate, len(plain[name]) / rate
                at += len(plain[name])
                record = {
                    "audio_filepath": f"{rate}{suffix}", "offset": begins, "duration": lasts,
                    "name": name,
                }  # fmt: skip
                lines.write(json.dumps(record) + "\n")
                expected[name] = rows[name]["codes"]
    job = TokenizeJob(input=str(manifest), models=nano, items_per_shard=7)
    tokenize(job, tmp_path / "again", workers=0)
    found = {row["name"]: row["codes"] for row in rows_of(tmp_path / "again").values()}
    assert found == expected and len(found) > count / 4
