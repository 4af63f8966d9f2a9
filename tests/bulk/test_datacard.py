"""The card of a set: what it says, that `datasets` follows it, and whose a README is."""

from __future__ import annotations

import json
import warnings
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamenc.bulk.datacard import OURS, without_secrets, write_card
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of half a second, and one that is none."""
    folder = tmp_path_factory.mktemp("speech")
    for number in range(3):
        samples = np.random.default_rng(number).integers(-9000, 9000, 8000, np.int16)
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    (folder / "broken.wav").write_bytes(b"no sound")
    return folder


def job(speech: Path, **differing: Any) -> TokenizeJob:
    asked: dict[str, Any] = {"models": (ModelAsk(name="mel:whisper"),), "items_per_shard": 2}
    return TokenizeJob(input=str(speech), **(asked | differing))


def card_in(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "streamenc.json").read_bytes())
    return found


def test_figures_of_a_set(speech: Path, tmp_path: Path) -> None:
    tokenize(job(speech), tmp_path, workers=0)
    card = card_in(tmp_path)
    assert card["complete"] and (card["shards"], card["shards_planned"]) == (2, 2)
    assert (card["items"], card["seconds"], card["errors"]) == (3, 1.5, {"MediaError": 1})
    sizes = [path.stat().st_size for path in (tmp_path / "data").iterdir()]
    assert card["bytes"] == sum(sizes)
    (model,) = card["models"]
    assert (model["kind"], model["column"], model["frames"]) == ("features", "features", 150)
    assert [each["name"] for each in card["columns"]][:3] == ["key", "features", "gaps"]
    assert card["versions"]["streamenc"] and card["license"] is None


def test_datasets_loads_the_folder_as_it_is(speech: Path, tmp_path: Path) -> None:
    output = tmp_path / "set"
    tokenize(job(speech), output, workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        rows = list(
            datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
        )
    assert [row["key"] for row in rows] == ["0.wav", "1.wav", "2.wav"]
    assert np.array(rows[0]["features"]).shape[1] == 50


def test_an_unfinished_set_says_so(speech: Path, tmp_path: Path) -> None:
    tokenize(job(speech), tmp_path, workers=0, share=(1, 2))
    card = card_in(tmp_path)
    assert not card["complete"] and (card["shards"], card["shards_planned"]) == (1, 2)
    assert "1 of 2" in (tmp_path / "README.md").read_text()
    tokenize(job(speech), tmp_path, workers=0, share=(0, 2))
    assert card_in(tmp_path)["complete"]


def test_the_same_set_has_the_same_card(speech: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tokenize(job(speech), tmp_path / name, workers=0)
    for file in ("streamenc.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not list((tmp_path / "a").glob(".card-*"))


def test_a_readme_of_ones_own_stays(speech: Path, tmp_path: Path) -> None:
    tokenize(job(speech), tmp_path, workers=0)
    readme = tmp_path / "README.md"
    made = readme.read_text()
    readme.write_text(made + "more")
    write_card(tmp_path)
    assert readme.read_text() == made
    own = made.replace(OURS + "\n", "") + "What I have to say of it."
    readme.write_text(own)
    write_card(tmp_path)
    assert readme.read_text() == own


@pytest.mark.parametrize("format", ["webdataset", "shar", "arrows", "npz"])
def test_each_format_says_how_it_is_read(format: str, speech: Path, tmp_path: Path) -> None:
    tokenize(job(speech, format=format), tmp_path, workers=0)
    assert card_in(tmp_path)["format"] == format and card_in(tmp_path)["items"] == 3
    assert "```\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host:8/a/b.tar?token=abc#x", "https://host:8/a/b.tar"),
        ("s3://bucket/speech/{000..999}.tar", "s3://bucket/speech/{000..999}.tar"),
        ("talks/what?.wav", "talks/what?.wav"),
    ],
)
def test_an_address_without_secrets(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
