"""Recordings of rows, as streamenc itself and as anything that knows Arrow reads them."""

from __future__ import annotations

import io
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import streamenc
from streamenc.bulk.items import Tokens
from streamenc.bulk.outputs import recordingsshard
from streamenc.bulk.outputs.tarmembers import member_name
from streamenc.bulk.tokenizejob import ModelFacts
from tests.support import tokenrows


def unpacked(folder: Path, models: tuple[ModelFacts, ...]) -> Path:
    (path,) = tokenrows.write(folder / "set", "arrows", models, tokenrows.rows(models))
    with tarfile.open(path) as tar:
        tar.extractall(folder / "out", filter="data")
    return folder / "out"


@pytest.mark.parametrize("name", tokenrows.MODELS)
def test_streamenc_reads_each(name: str, tmp_path: Path) -> None:
    models = tokenrows.MODELS[name]
    folder = unpacked(tmp_path, models)
    for row in tokenrows.rows(models)[1:]:
        for model, tokens in zip(models, row.tokens, strict=True):
            read = streamenc.read(str(folder / f"{member_name(row.key)}.{model.column}.arrows"))
            np.testing.assert_array_equal(read.data, tokens.data, strict=True)
            assert tuple(read.gaps) == tokens.gaps and read.info.model == model.name
            if model.scaled:
                np.testing.assert_array_equal(read.scales, tokens.scales)
            if model.takes == "audio":
                rate = float(Fraction(model.frame_rate))
                np.testing.assert_allclose(read.times, np.arange(tokens.data.shape[1]) / rate)


def test_long_items_are_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordingsshard, "MAX_BATCH_BYTES", 24)
    model, row = tokenrows.CODES, tokenrows.rows([tokenrows.CODES])[3]
    made = recordingsshard.recording(model, row.tokens[0], row)
    batches = list(pa.ipc.open_stream(io.BytesIO(made)))
    assert len(batches) > 2
    codes = [
        list(frame)
        for batch in batches
        for frames in batch["codes"].to_pylist()
        for frame in frames
    ]
    assert codes == row.tokens[0].data.T.tolist()


def test_a_recording_decodes_to_the_sound_of_its_codes(tmp_path: Path) -> None:
    codec = streamenc.load("nano", backend="torch")
    codes = codec.encode(np.sin(np.arange(16_000, dtype=np.float32) / 9)[None, None])
    facts = tokenrows.facts(
        rows=codes.shape[1], codebooks=codes.shape[1], frame_rate=str(codec.spec.output.rate)
    )
    row = tokenrows.rows([tokenrows.CODES])[1]
    tokens = Tokens(codes[0].numpy().astype(np.uint16))
    path = tmp_path / "a.arrows"
    path.write_bytes(recordingsshard.recording(facts, tokens, row))
    streamenc.decode(str(path), str(tmp_path / "a.wav"))
    heard = streamenc.read(str(tmp_path / "a.wav")).data
    wanted = codec.decode(codes)[0].numpy()
    assert np.abs(heard - wanted[:, : heard.shape[1]]).max() < 1e-3
