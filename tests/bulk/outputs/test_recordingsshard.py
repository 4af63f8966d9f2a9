"""Recordings of rows, as streamenc itself and as anything that knows Arrow reads them."""

from __future__ import annotations

import io
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import streamenc
from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs import recordingsshard
from streamenc.bulk.outputs.tarmembers import member_name
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.coding.decode import Decode
from streamenc.engine.engine import Engine
from streamenc.io.reading import read_file
from streamenc.models.signal import Scaled
from tests.support import tokenrows, zoo
from tests.support.drive import joined, noise, through


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
                # As many as fit into the item's few samples have times of their own.
                assert read.times[0] == 0 and read.info.rate == Fraction(model.frame_rate)


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


@pytest.mark.parametrize("name", ["nano", "encodec-48k"])
def test_a_recording_decodes_to_as_much_as_was_encoded(name: str, tmp_path: Path) -> None:
    codec = zoo.codec(name, torch.float32)
    rate, channels = int(codec.spec.input.rate), codec.spec.input.channels
    data = noise(4444, channels) * 0.3
    made = codec.encode(data)
    scales = made.scale[0, 0].numpy() if isinstance(made, Scaled) else None
    codes = (made.codes if isinstance(made, Scaled) else made)[0].numpy().astype(np.uint16)
    facts = tokenrows.facts(
        rows=len(codes),
        codebooks=len(codes),
        codebook_size=codec.spec.codebook_size,
        entries=codec.spec.codebook_size,
        frame_rate=str(codec.spec.output.rate),
    )
    tokens = Tokens(codes, scales)
    row = Row("a", (tokens,), 4444, float(rate), (), {})
    path = tmp_path / "a.arrows"
    path.write_bytes(recordingsshard.recording(facts, tokens, row))
    info, frames = read_file(str(path))
    with Engine() as engine:
        _, heard = through(info, frames, Decode(codec, engine))
    wanted = codec.decode(made)[0].numpy()[:, :4444]
    np.testing.assert_allclose(joined(heard), wanted, rtol=1e-4, atol=1e-5)
