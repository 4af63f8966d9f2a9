"""Sets read back: rows, facts, layouts, and sound."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamenc
from streamenc import bulk
from streamenc.bulk.items import Tokens
from streamenc.bulk.manifest import Manifest
from streamenc.bulk.readback import shardrows
from streamenc.bulk.readback.shardrows import ParquetReader
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize
from streamenc.errors import InputError, MediaError, OutputError, UsageError
from streamenc.nodes.codes.interleaving import delay, flatten
from tests.support.media import write_wav
from tests.support.tokensets import BOOKS, ENTRIES, codes_of, facts, finish_part, make_set, row_of

COUNTS = (3, 0, 4)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return make_set(tmp_path / "set", COUNTS)


def test_rows_and_facts(output: Path) -> None:
    tokens = bulk.open(output)
    rows = list(tokens)
    assert len(tokens) == len(rows) == 7
    for number, row in enumerate(rows):
        assert row["key"] == f"row {number}"
        assert row["codes"].dtype == np.uint16 and (row["codes"] == codes_of(number)).all()
        assert row["n_samples"] == 100 * codes_of(number).shape[1] and row["rate"] == 1000
        assert (row["speaker"], row["rank"]) == (f"s{number % 3}", number)
    assert tokens.models == (facts(),) and tokens.layout == "books"
    assert (tokens.parts, tokens.finished) == (3, 3)
    assert tokens.seconds == sum(row["seconds"] for row in rows) == 3600 * tokens.hours
    assert "7 rows" in repr(tokens) and "3 of 3 parts" in repr(tokens)


def test_readers_and_columns(output: Path) -> None:
    halves = [bulk.open(output, rank=rank, world=2, columns=["rank"]) for rank in (0, 1)]
    assert [len(half) for half in halves] == [3, 4]
    assert [row for half in halves for row in half] == [{"rank": n} for n in range(7)]
    mixed = [row["rank"] for row in bulk.open(output, shuffle=True, seed=1, columns=["rank"])]
    assert sorted(mixed) == list(range(7)) != mixed
    with pytest.raises(UsageError, match="no column 'text' in .* key, codes"):
        bulk.open(output, columns=["text"])


@pytest.mark.parametrize("stored", ["books", "flat", "delay", "delay:0,2,2"])
def test_layouts(tmp_path: Path, stored: str) -> None:
    output = make_set(tmp_path / "set", (6,), layout=stored)
    for number, row in enumerate(bulk.open(output)):
        data = row_of(number, stored).tokens[0].data
        data = data[0] if stored == "flat" else data
        assert row["codes"].shape == data.shape and (row["codes"] == data).all()
    for number, row in enumerate(bulk.open(output, layout="books")):
        assert row["codes"].dtype == np.uint16 and (row["codes"] == codes_of(number)).all()
    for number, row in enumerate(bulk.open(output, layout="flat", columns=["codes"])):
        assert row.keys() == {"codes"}
        assert (row["codes"] == flatten(codes_of(number), ENTRIES)[0]).all()
    for number, row in enumerate(bulk.open(output, layout="delay")):
        assert (row["codes"] == delay(codes_of(number), ENTRIES)).all()


def test_a_layout_that_is_none(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="layout"):
        bulk.open(output, layout="heap")
    with pytest.raises(UsageError, match=f"{BOOKS} codebooks"):
        bulk.open(output, layout="delay:0,1")
    # Tokens that are not of the layout that the set is said to have.
    said = make_set(tmp_path / "said", (2,), models=(facts("delay"),))
    job = said / "plan" / "job.json"
    job.write_bytes(job.read_bytes().replace(b'"layout":"books"', b'"layout":"delay"'))
    with pytest.raises(MediaError, match="row 1, codes: "):
        list(bulk.open(said, layout="books"))


def test_a_set_that_is_not_finished(tmp_path: Path) -> None:
    output = make_set(tmp_path / "set", (2,), parts=3)
    with pytest.warns(UserWarning, match="1 of 3 parts so far"):
        tokens = bulk.open(output)
    assert len(list(tokens)) == 2
    assert len(bulk.open(output, finished_only=True)) == 2
    with pytest.raises(OutputError, match="holds no plan"):
        bulk.open(tmp_path / "nothing")


def test_a_shard_that_is_broken(output: Path) -> None:
    (output / "data" / "000002.parquet").write_bytes(b"nothing")
    with pytest.raises(MediaError, match="000002.parquet cannot be read .*streamenc verify"):
        list(bulk.open(output))
    (output / "data" / "000002.parquet").write_bytes(
        (output / "data" / "000000.parquet").read_bytes()
    )
    with pytest.raises(MediaError, match="other rows than the manifest says"):
        list(bulk.open(output))


def test_few_rows_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def batches(self: ParquetReader, *where: Any) -> Iterator[Any]:
        for batch in cut(self, *where):
            sizes.append(batch.num_rows)
            yield batch

    cut = ParquetReader._batches
    monkeypatch.setattr(ParquetReader, "_batches", batches)
    monkeypatch.setattr(shardrows, "READ_BYTES", 600)
    assert len(list(bulk.open(make_set(tmp_path / "set", (40,))))) == sum(sizes) == 40
    assert max(sizes) <= 10


def test_grids_and_scales(tmp_path: Path) -> None:
    model = facts(kind="codes", axes=2, scaled=True)
    grids = [codes_of(number)[:, :, None, None].repeat(2, 2).repeat(5, 3) for number in range(4)]
    scales = [np.arange(grid.shape[1], dtype=np.float32) for grid in grids]
    output = make_set(tmp_path / "set", (0,), models=(model,), parts=2)
    rows = [
        replace(row_of(number), tokens=(Tokens(grid, scale, (1,)),))
        for number, (grid, scale) in enumerate(zip(grids, scales, strict=True))
    ]
    manifest = Manifest(output)
    manifest.add(finish_part(output, 1, rows, (model,)), [])
    manifest.close()
    for row, grid, scale in zip(bulk.open(output), grids, scales, strict=True):
        assert row["codes"].shape == grid.shape and (row["codes"] == grid).all()
        assert row["scales"] == scale.tolist() and row["gaps"] == [1]
    (row, *_) = bulk.open(output, columns=["codes"])
    assert row.keys() == {"codes"} and row["codes"].shape == grids[0].shape


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", [None, "flat"])
def test_data_sets_of_hugging_face(
    output: Path, tmp_path: Path, streaming: bool, layout: str | None, monkeypatch: Any
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    tokens = bulk.open(output, layout=layout)
    made = tokens.datasets(streaming=streaming)
    assert isinstance(made, datasets.IterableDataset if streaming else datasets.Dataset)
    for row, mine in zip(made, tokens, strict=True):
        assert np.array_equal(np.array(row["codes"]).reshape(mine["codes"].shape), mine["codes"])
        assert row["speaker"] == mine["speaker"]


SECONDS = (0.5, 1.31)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound at another rate than the model's."""
    folder = tmp_path_factory.mktemp("speech")
    for number, seconds in enumerate(SECONDS):
        times = np.arange(round(seconds * 22_050)) / 22_050
        write_wav(folder / f"{number}.wav", 0.3 * np.sin(3000 * times**2)[None], 22_050)
    return folder


@pytest.fixture(scope="module")
def nano() -> streamenc.Codec:
    return streamenc.load("nano", backend="torch")


@pytest.mark.parametrize("layout", ["books", "delay"])
def test_rows_are_decoded(speech: Path, tmp_path: Path, nano: streamenc.Codec, layout: str) -> None:
    ask = ModelAsk(name="nano", codebooks=3)
    tokenize(TokenizeJob(input=str(speech), models=(ask,), layout=layout), tmp_path / "set")
    tokens = bulk.open(tmp_path / "set")
    for row, tensors in zip(tokens, tokens.torch(), strict=True):
        sound = streamenc.read(speech / row["key"], sample_rate=nano.sample_rate).data
        wanted = nano.decode(nano.encode(sound, codebooks=3))[0]
        made = tokens.decode(row, codec=nano)
        assert made.shape == sound.shape
        assert torch.equal(made, wanted[:, : sound.shape[1]])
        assert torch.equal(tokens.decode(tensors, "codes"), made)
    del row["n_samples"]
    assert tokens.decode(row).shape == wanted.shape
    row["codes"] = row["codes"][:, :0]
    assert tokens.decode(row).shape == (1, 0)


def test_what_is_not_decoded(speech: Path, tmp_path: Path, nano: streamenc.Codec) -> None:
    asks = (ModelAsk(name="nano", codebooks=3), ModelAsk(name="mel"))
    tokenize(TokenizeJob(input=str(speech), models=asks), tmp_path / "set")
    tokens = bulk.open(tmp_path / "set")
    row = next(iter(tokens))
    with pytest.raises(UsageError, match="column=None .* nano_codes, mel_features"):
        tokens.decode(row)
    with pytest.raises(UsageError, match="no decoder"):
        tokens.decode(row, "mel_features")
    with pytest.raises(UsageError, match="fingerprint"):
        tokens.decode(row, "nano_codes", codec=streamenc.load("mel"))
    assert tokens.decode(row, "nano_codes", codec=nano).shape[0] == 1
    with pytest.raises(InputError):
        tokens.decode(row | {"nano_codes": row["nano_codes"] + 2000}, "nano_codes")


def test_importing_it_imports_neither_torch_nor_arrow() -> None:
    program = "import sys, streamenc.bulk; print({'torch', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "set()", done.stderr
    assert set(bulk.__all__) <= set(dir(bulk))
    for name in bulk.__all__:
        assert getattr(bulk, name)
    with pytest.raises(AttributeError, match="streamenc.bulk"):
        getattr(bulk, "no" + "thing")
