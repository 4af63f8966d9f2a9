"""Sound files of many lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import streamenc
from streamenc.bulk.items import Item, Local

RATE = 24000
SPEECH = Path(streamenc.__file__).parent / "verify" / "speech.flac"


def write_sound(path: Path, seconds: float, start: int = 0) -> Item:
    """A file of speech, repeated as often as it takes."""
    speech = soundfile.read(SPEECH, dtype="float32", always_2d=True)[0][:, 0]
    repeated = np.resize(np.roll(speech, -start), round(seconds * RATE))
    soundfile.write(path, repeated, RATE)
    return Item(path.stem, Local(str(path)))


@pytest.fixture(scope="package")
def sounds(tmp_path_factory) -> list[Item]:
    """Of nothing, of less than a hop, of about a second, and of some seconds."""
    folder = tmp_path_factory.mktemp("sounds")
    lengths = (0.3, 1.0, 2.6, 0.0, 0.01, 3.1, 1.7, 0.9)
    return [
        write_sound(folder / f"{number}.wav", seconds, 9000 * number)
        for number, seconds in enumerate(lengths)
    ]
