"""Sound files of many lengths, and small models that a job names by their folders."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

import streamenc
from streamenc.bulk.items import Item, Local
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from tests.support import zoo

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


@pytest.fixture(scope="package")
def job_of(tmp_path_factory):
    """A job of some models, by their names or by those of small ones of the zoo."""
    saved: dict[str, str] = {}

    def asked(name: str) -> ModelAsk:
        if name in ("nano", "mel"):
            return ModelAsk(name=name)
        row = zoo.row(name)
        if name not in saved:
            folder = tmp_path_factory.mktemp(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row.save(folder)
            saved[name] = str(folder)
        return ModelAsk(name=saved[name], options=row.options)

    def job(*names: str, **more) -> TokenizeJob:
        return TokenizeJob(input="", models=tuple(map(asked, names)), **more)

    return job
