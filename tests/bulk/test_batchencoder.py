"""Batches of tables, as Ray Data and `datasets` give them, each item equal to `codec.encode`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import streamenc
from streamenc.bulk.batchencoder import BatchEncoder, ray_encoder
from streamenc.bulk.tokenizejob import ModelAsk
from streamenc.errors import CheckpointError, UsageError
from tests.support.media import write_wav

RATE = 22_050


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noise = np.random.default_rng(5).uniform(-0.3, 0.3, (1, RATE))
    return write_wav(tmp_path_factory.mktemp("clips") / "clip.wav", noise, RATE)


@pytest.fixture(scope="module")
def encoder() -> BatchEncoder:
    return ray_encoder("nano", device="cpu")()


@pytest.fixture(scope="module")
def samples(clip: Path) -> np.ndarray:
    """(1, samples), float32."""
    return np.asarray(streamenc.read(clip).data)


@pytest.fixture(scope="module")
def codes(clip: Path) -> np.ndarray:
    """(codebooks, frames)"""
    codec = streamenc.load("nano", part="encoder", backend="torch")
    sound = streamenc.read(clip, sample_rate=codec.sample_rate, channels=1)
    return np.asarray(codec.encode(sound.data)[0])


def test_items_of_any_look_are_encoded_and_bad_ones_have_a_reason(
    encoder: BatchEncoder, clip: Path, samples: np.ndarray, codes: np.ndarray
) -> None:
    good: list[Any] = [
        str(clip),
        clip,
        f"file://{clip}",
        clip.read_bytes(),
        {"bytes": clip.read_bytes(), "path": "clip.wav"},
        {"bytes": None, "path": str(clip)},
        {"array": samples, "sampling_rate": RATE},
        {"array": samples[0].astype(np.float64), "sampling_rate": RATE},
        {"array": (samples[0] * 32768).astype(np.int16), "sampling_rate": RATE},
    ]
    bad = {
        "there is nothing": None,
        "there is no file": "/nowhere.wav",
        "knows no such format": b"no sound",
        "got int": 3,
        "rate None": {"array": samples},
        "wanted (samples,)": {"array": samples[None], "sampling_rate": RATE},
        "is in no store": "rtsp://camera",
        "finite": {"array": np.full(RATE, np.nan, "f4"), "sampling_rate": RATE},
    }
    made = encoder({"audio": [*good, *bad.values()], "text": ["a"] * (len(good) + len(bad))})
    assert list(made) == ["codes", "n_samples", "frame_rate", "error"]
    for number in range(len(good)):
        assert made["error"][number] is None, good[number]
        assert np.array_equal(made["codes"][number], codes)
        assert made["n_samples"][number] == RATE
    assert made["frame_rate"] == [50.0] * (len(good) + len(bad))
    for number, reason in enumerate(bad, len(good)):
        assert reason in made["error"][number]
        assert made["codes"][number] is None and made["n_samples"][number] is None


def test_stereo_samples_are_those_of_the_file(tmp_path: Path, encoder: BatchEncoder) -> None:
    noise = np.random.default_rng(6).uniform(-0.3, 0.3, (2, 8000))
    path = write_wav(tmp_path / "two.wav", noise, 8000)
    array = np.asarray(streamenc.read(path).data)
    made = encoder({"audio": [path, {"array": array, "sampling_rate": 8000}]})
    assert np.array_equal(*made["codes"])


def test_a_table_gets_typed_columns(encoder: BatchEncoder, clip: Path, codes: np.ndarray) -> None:
    table = pa.table({"audio": [clip.read_bytes(), b""], "text": ["a", "b"]})
    made = encoder(table)
    assert made.column_names == ["audio", "text", "codes", "n_samples", "frame_rate", "error"]
    assert made.schema.field("codes").type == pa.list_(pa.list_(pa.uint16()))
    assert np.array_equal(made["codes"][0].as_py(), codes)
    assert made["codes"][1].as_py() is None and made["error"][1].as_py()
    nothing = encoder(table.slice(1))
    assert nothing.schema == made.schema


def test_arrays_of_rays_read_audio(
    encoder: BatchEncoder, samples: np.ndarray, codes: np.ndarray
) -> None:
    batch = {"amplitude": np.stack([samples, samples]), "sample_rate": np.array([RATE, RATE])}
    made = encoder(batch)
    assert list(made) == [*batch, "codes", "n_samples", "frame_rate", "error"]
    assert np.array_equal(np.array(made["codes"][1]), codes)
    assert made["codes"][1][0].dtype == np.uint16


def test_columns_layouts_and_other_outputs(clip: Path, codes: np.ndarray) -> None:
    flat = BatchEncoder("nano", column="sound", codebooks=2, layout="flat", into="tokens")
    made = flat({"sound": [clip]})
    entries = streamenc.load("nano", part="encoder", backend="torch").spec.codebook_size
    wanted = (codes[:2] + entries * np.arange(2)[:, None]).T.reshape(1, -1)
    assert np.array_equal(made["tokens"][0], wanted)
    assert made["frame_rate"] == [100.0]
    features = BatchEncoder(ModelAsk(name="mel", dtype="float32"))({"audio": [clip]})
    assert features["features"][0].dtype == np.float32


def test_what_does_not_fit_is_said(clip: Path, encoder: BatchEncoder) -> None:
    with pytest.raises(UsageError, match="no column 'audio' but sound, text"):
        encoder({"sound": [clip], "text": [""]})
    with pytest.raises(UsageError, match="columns codes, error already"):
        encoder({"audio": [clip], "codes": [1], "error": [2]})
    with pytest.raises(CheckpointError, match="no-such-model"):
        BatchEncoder("no-such-model")({"audio": [clip]})
    with pytest.raises(UsageError, match="put them into it"):
        BatchEncoder(ModelAsk(name="nano"), codebooks=2)


def test_an_encoder_goes_to_another_process_without_its_model(
    encoder: BatchEncoder, clip: Path, codes: np.ndarray
) -> None:
    encoder({"audio": [clip]})
    sent = pickle.dumps(encoder)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)({"audio": [clip]})["codes"][0], codes)
