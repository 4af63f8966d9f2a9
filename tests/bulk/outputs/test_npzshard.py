"""Shards as `.npz`, as numpy reads them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamenc.bulk.tokenizejob import ModelFacts
from tests.support import tokenrows


@pytest.mark.parametrize("name", tokenrows.MODELS)
def test_numpy_finds_all(name: str, tmp_path: Path) -> None:
    models = tokenrows.MODELS[name]
    rows = tokenrows.rows(models, columns=True)
    (path,) = tokenrows.write(tmp_path, "npz", models, rows, tokenrows.COLUMNS)
    with np.load(path, allow_pickle=False) as found:
        records = [json.loads(line) for line in found["rows.jsonl"].splitlines()]
        assert [record["key"] for record in records] == [row.key for row in rows]
        assert [record["text"] for record in records] == [row.columns["text"] for row in rows]
        for row in rows:
            for model, tokens in zip(models, row.tokens, strict=True):
                array = found[f"{row.key}/{model.column}"]
                np.testing.assert_array_equal(array, tokens.data, strict=True)
            if models[0].scaled:
                scales = found[f"{row.key}/scales"]
                np.testing.assert_array_equal(scales, row.tokens[0].scales, strict=True)
        told = json.loads(found["models.json"])
    assert tuple(msgspec.convert(told["models"], list[ModelFacts])) == models


def test_a_part_without_rows(tmp_path: Path) -> None:
    (path,) = tokenrows.write(tmp_path, "npz", [tokenrows.CODES], [])
    with np.load(path, allow_pickle=False) as found:
        assert found.files == ["rows.jsonl", "models.json"] and found["rows.jsonl"] == b""
