"""Small data sets: the same few sounds in each form that a set may have; what is read of it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import wave
from pathlib import Path
from typing import Any

import numpy as np

from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.inputs.looks import look, open_input
from streamenc.bulk.items import Fault, Item

RATE = 16_000


def wav(number: int, seconds: float = 1.0) -> bytes:
    """A file of 16-bit sound, a little longer with each number, of a pitch of its own."""
    at = np.arange(round(RATE * seconds) + 37 * number) / RATE
    noise = np.random.default_rng(number).standard_normal(len(at))
    samples = 0.3 * np.sin(2 * np.pi * (180 + 40 * number) * at) + 0.02 * noise
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return made.getvalue()


def sounds(count: int = 10) -> dict[str, bytes]:
    """Keys, in order, and their files."""
    return {f"clip{number:02d}": wav(number) for number in range(count)}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w", format: int = 1) -> Path:
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shar(root: Path, shards: list[list[str]], **changes: Any) -> None:
    """Lhotse Shar, a list of keys for each shard; changes: of a cut, by its key."""
    root.mkdir(exist_ok=True)
    held = sounds()
    for number, keys in enumerate(shards):
        members: dict[str, bytes] = {}
        lines = []
        for key in keys:
            seconds = (len(held[key]) - 44) / 2 / RATE
            recording = {"id": f"r-{key}", "duration": seconds, "channel_ids": [0]}
            cut = {"id": key, "start": 0, "duration": seconds, "channel": 0, "type": "MonoCut"}
            lines.append(json.dumps({**cut, "recording": recording, **changes.get(key, {})}))
            members |= {f"{key}.wav": held[key], f"{key}.json": json.dumps(recording).encode()}
        with gzip.open(root / f"cuts.{number:06d}.jsonl.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
        write_tar(root / f"recording.{number:06d}.tar", members)


def opened(address: str | Path, kept: Path, takes: str = "audio", **options: object) -> Input:
    """As a run has it: by its look."""
    kept.mkdir(exist_ok=True)
    return open_input(look(str(address)), str(address), takes, kept, **options)


def spans_of(input: Input, items_per_shard: int = 1000) -> list[Span]:
    return list(input.spans(items_per_shard))


def all_of(input: Input, items_per_shard: int = 1000) -> list[Item | Fault]:
    """Part by part, each read by an input of its own, as other processes have it."""
    found: list[Item | Fault] = []
    for span in spans_of(input, items_per_shard):
        here = list(input.items(span))
        assert span.items in (0, len(here))
        found += here
    return found


def items_of(input: Input, items_per_shard: int = 1000) -> list[Item]:
    found = all_of(input, items_per_shard)
    assert not [each for each in found if isinstance(each, Fault)]
    return [each for each in found if isinstance(each, Item)]
