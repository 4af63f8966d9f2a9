"""Parquet shards, as pyarrow, `datasets`, DuckDB and polars read them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamenc.bulk.items import Row
from streamenc.bulk.outputs import parquetshard
from streamenc.bulk.outputs.rowcolumns import METADATA_KEY, RowColumns
from streamenc.bulk.tokenizejob import ModelFacts
from tests.support import tokenrows


def lists(model: ModelFacts, row: Row, at: int = 0) -> Any:
    """The tokens of a row as the set has them."""
    data = row.tokens[at].data
    return data.reshape(-1).tolist() if model.axes or model.layout == "flat" else data.tolist()


def with_datasets(path: Path, tmp_path: Path) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        return list(
            datasets.load_dataset(
                "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
            )
        )


@pytest.mark.parametrize("name", tokenrows.MODELS)
def test_each_reader_finds_the_same(name: str, tmp_path: Path) -> None:
    models = tokenrows.MODELS[name]
    rows = tokenrows.rows(models)
    (path,) = tokenrows.write(tmp_path / "set", "parquet", models, rows)
    read = {
        "pyarrow": pq.read_table(path).to_pylist(),
        "datasets": with_datasets(path, tmp_path),
        "polars": polars.read_parquet(path).to_dicts(),
        "duckdb": duckdb.sql(f"select * from '{path}'").to_arrow_table().to_pylist(),
    }
    for reader, found in read.items():
        assert [each["key"] for each in found] == [row.key for row in rows], reader
        for each, row in zip(found, rows, strict=True):
            for at, model in enumerate(models):
                assert each[model.column] == lists(model, row, at), (reader, row.key)
            assert each["n_samples"] == row.n_samples and each["seconds"] == row.seconds
            assert each["flags"] == list(row.flags)


def test_columns_of_one_model(tmp_path: Path) -> None:
    rows = tokenrows.rows([tokenrows.SCALED])
    (path,) = tokenrows.write(tmp_path, "parquet", [tokenrows.SCALED], rows)
    table = pq.read_table(path)
    assert table.schema.field("codes").type == pa.list_(pa.list_(pa.uint16()))
    last = table.to_pylist()[-1]
    np.testing.assert_array_equal(last["scales"], rows[-1].tokens[0].scales)
    assert last["gaps"] == [2] and last["frame_rate"] == 75 and last["rate"] == 16_000
    assert (last["model"], last["fingerprint"]) == ("encodec-48khz", "0123456789abcdef")


def test_of_several_models_each_has_columns_of_its_own(tmp_path: Path) -> None:
    models = tokenrows.MODELS["several"]
    (path,) = tokenrows.write(tmp_path, "parquet", models, tokenrows.rows(models))
    row = pq.read_table(path).to_pylist()[1]
    assert (row["nano_model"], row["nano_frame_rate"]) == ("nano", 50)
    assert (row["mel_model"], row["mel_frame_rate"]) == ("mel", 100)
    assert row["nano_gaps"] == row["mel_gaps"] == [2]


def test_a_grid_is_a_list_and_its_shape(tmp_path: Path) -> None:
    rows = tokenrows.rows([tokenrows.GRIDS])
    (path,) = tokenrows.write(tmp_path, "parquet", [tokenrows.GRIDS], rows)
    for found, row in zip(pq.read_table(path).to_pylist(), rows, strict=True):
        grid = np.array(found["codes"], np.uint32).reshape(found["codes_shape"])
        np.testing.assert_array_equal(grid, row.tokens[0].data)
        assert found["frame_rate"] == 4000  # a frame of four images, of which there are 16,000


def test_numbers_keep_their_types(tmp_path: Path) -> None:
    for model, wanted in (
        (tokenrows.FLAT, pa.list_(pa.uint32())),
        (tokenrows.FEATURES, pa.list_(pa.list_(pa.float16()))),
    ):
        (path,) = tokenrows.write(
            tmp_path / model.name, "parquet", [model], tokenrows.rows([model])
        )
        assert pq.read_schema(path).field(model.column).type == wanted


def test_columns_pass_through_as_they_are(tmp_path: Path) -> None:
    rows = tokenrows.rows([tokenrows.CODES], columns=True)
    (path,) = tokenrows.write(tmp_path, "parquet", [tokenrows.CODES], rows, tokenrows.COLUMNS)
    schema = pq.read_schema(path)
    for field in tokenrows.COLUMNS:
        name = "rate_in" if field.name == "rate" else field.name
        assert schema.field(name).type == field.type
    for number, found in enumerate(pq.read_table(path).to_pylist()):
        wanted = tokenrows.passed(number)
        assert found["rate"] == 16_000 and found["rate_in"] == "slow"
        assert {name: found[name] for name in wanted if name != "rate"} == {
            name: value for name, value in wanted.items() if name != "rate"
        }


@pytest.mark.parametrize("value", ["ten", 1.5, 2**40, [1], {"a": 1}])
def test_a_value_of_another_type_is_null_and_flagged(value: Any, tmp_path: Path) -> None:
    rows = tokenrows.rows([tokenrows.CODES], columns=True)
    rows[1].columns["speaker"] = value
    (path,) = tokenrows.write(tmp_path, "parquet", [tokenrows.CODES], rows, tokenrows.COLUMNS)
    found = pq.read_table(path).to_pylist()
    assert [row["speaker"] for row in found] == [0, None, 2, 3]
    assert [row["flags"] for row in found] == [["empty"], ["column:speaker"], ["gaps"], ["gaps"]]


def test_a_name_that_is_taken_twice_over() -> None:
    columns = pa.schema([("key", pa.string()), ("key_in", pa.int8()), ("model", pa.string())])
    names = [
        (each.source, each.field.name) for each in RowColumns([tokenrows.CODES], columns).passed
    ]
    assert names == [("key", "key_in_in"), ("key_in", "key_in"), ("model", "model_in")]


def test_a_shard_alone_says_what_it_is(tmp_path: Path) -> None:
    models = tokenrows.MODELS["several"]
    (path,) = tokenrows.write(tmp_path, "parquet", models, [])
    told = msgspec.json.decode(pq.read_schema(path).metadata[METADATA_KEY])
    assert tuple(msgspec.convert(told["models"], list[ModelFacts])) == models


def test_row_groups_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tokenrows.rows([tokenrows.CODES], count=40)
    monkeypatch.setattr(parquetshard, "GROUP_BYTES", 8_000)
    (path,) = tokenrows.write(tmp_path, "parquet", [tokenrows.CODES], rows)
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups > 2 and metadata.num_rows == 40
    assert pq.read_table(path)["codes"].to_pylist() == [row.tokens[0].data.tolist() for row in rows]


def test_long_columns_end_a_row_group_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tokenrows.rows([tokenrows.CODES], columns=True)
    rows[1].columns["text"] = "word " * 10_000
    monkeypatch.setattr(parquetshard, "GROUP_BYTES", 20_000)
    (path,) = tokenrows.write(tmp_path, "parquet", [tokenrows.CODES], rows, tokenrows.COLUMNS)
    assert pq.read_metadata(path).num_row_groups == 2
