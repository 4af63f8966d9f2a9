"""The files that the manual's commands read: a short clip of the one that comes with streamenc, in
all forms, and a film of a second."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

from streamenc.cli.main import main
from tests.support.clips import write_clip
from tests.support.manual.pages import ROOT

SECONDS = 0.6
LINES = ("a man is eating food", "somebody has a meal", "it rains")


@functools.cache
def talk(rate: int) -> np.ndarray:
    """(samples,), float32: where somebody speaks already."""
    sound, at = soundfile.read(ROOT / "examples" / "data" / "speech.flac", dtype="float32")
    begin = int(0.5 * at)
    piece = sound[begin : begin + int(SECONDS * at)]
    return np.asarray(soxr.resample(piece, at, rate), np.float32)


def wave(rate: int = 16_000) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, talk(rate), rate, format="WAV", subtype="PCM_16")
    return held.getvalue()


def samples(rate: int) -> bytes:
    return (talk(rate) * 32767).astype("<i2").tobytes()


def transcript() -> str:
    said = [{"text": text, "start": i, "end": i + 1, "id": i} for i, text in enumerate(LINES)]
    return "".join(json.dumps(line) + "\n" for line in said)


def make_files(place: Path) -> None:
    """All that the manual names as an input; what its commands write has to be made by them."""
    mono = talk(16_000)
    for name in ("talk.wav", "talk.flac", "talk.mp3", "call.mp3", "speech.wav"):
        soundfile.write(place / name, mono, 16_000)
    stereo = np.stack([talk(48_000), talk(48_000)[::-1]], axis=1)
    for name in ("call.wav", "music.wav", "music.flac"):
        soundfile.write(place / name, stereo, 48_000)
    sounding = talk(48_000)[None]
    for name in ("film.mp4", "film.mkv", "any.mkv"):
        write_clip(place / name, count=9, fps=15, size="128x96", sound=sounding)
    write_clip(place / "clip.mp4", count=9, fps=15, size="128x96")
    (place / "lines.txt").write_text("".join(f"{line}\n" for line in LINES))
    (place / "talk.jsonl").write_text(transcript())
    subtitles = [
        f"{i + 1}\n00:00:0{i},000 --> 00:00:0{i + 1},000\n{text}\n" for i, text in enumerate(LINES)
    ]
    (place / "film.srt").write_text("\n".join(subtitles))
    for folder in ("talks", "shards", "clips"):
        (place / folder).mkdir()
    for number in range(2):
        soundfile.write(place / "talks" / f"{number}.flac", mono, 16_000)
        shutil.copy(place / "clip.mp4", place / "clips" / f"{number}.mp4")
        with tarfile.open(place / "shards" / f"{number:03}.tar", "w") as archive:
            archive.add(place / "talk.flac", f"{number}.flac")
    items = [{"audio_filepath": f"talks/{n}.flac", "duration": SECONDS / 2} for n in range(2)]
    (place / "manifest.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    shutil.copy(ROOT / "examples" / "pipeline.toml", place / "live.toml")
    (place / "examples" / "data").mkdir(parents=True)
    shutil.copy(place / "talk.flac", place / "examples" / "data" / "speech.flac")


def record(place: Path, *arguments: str) -> None:
    """`streamenc ARGUMENTS`, for what a page takes as given."""
    try:
        main([*arguments, "--quiet"])
    except SystemExit as ended:
        assert not ended.code, arguments
