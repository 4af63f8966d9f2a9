"""Lhotse Shar, as Lhotse reads it, and beside what Lhotse writes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs.sharshard import field_of
from streamenc.bulk.tokenizejob import ModelFacts
from tests.support import tokenrows
from tests.support.tokenrows import careless

lhotse = pytest.importorskip("lhotse")


def cuts(folder: Path) -> list[Any]:
    with careless():
        return list(lhotse.CutSet.from_shar(in_dir=folder))


def wanted(model: ModelFacts, tokens: Tokens) -> Any:
    frames_first = np.moveaxis(tokens.data, 1, 0)
    return frames_first[:, 0] if model.layout == "flat" else frames_first


@pytest.mark.parametrize("name", tokenrows.MODELS)
def test_lhotse_finds_all(name: str, tmp_path: Path) -> None:
    models = tokenrows.MODELS[name]
    rows = tokenrows.rows(models)
    tokenrows.write(tmp_path, "shar", models, rows)
    for cut, row in zip(cuts(tmp_path), rows, strict=True):
        assert cut.id == cut.custom["key"] == row.key and cut.duration == row.seconds
        assert cut.custom["flags"] == list(row.flags)
        for model, tokens in zip(models, row.tokens, strict=True):
            found = cut.load_custom(field_of(model))
            np.testing.assert_array_equal(found, wanted(model, tokens), strict=True)
        if models[0].scaled:
            np.testing.assert_allclose(cut.custom["scales"], row.tokens[0].scales)


def test_codes_are_loaded_by_their_name_and_cut_with_the_cut(tmp_path: Path) -> None:
    row = Row("a", (tokenrows.tokens(tokenrows.CODES, 50, 1),), 16_000, 16_000.0, (), {})
    tokenrows.write(tmp_path, "shar", [tokenrows.CODES], [row])
    (cut,) = cuts(tmp_path)
    np.testing.assert_array_equal(cut.load_codes().T, row.tokens[0].data)
    short = cut.truncate(offset=0.2, duration=0.5)
    np.testing.assert_array_equal(short.load_codes().T, row.tokens[0].data[:, 10:35])


@pytest.mark.parametrize("samples", [1, 15_999, 16_000, 16_001, 16_161])
def test_the_last_frame_is_loaded_however_little_of_it_is_filled(
    samples: int, tmp_path: Path
) -> None:
    frames = -(-samples // 320)
    row = Row("a", (tokenrows.tokens(tokenrows.CODES, frames, 1),), samples, 16_000.0, (), {})
    tokenrows.write(tmp_path, "shar", [tokenrows.CODES], [row])
    (cut,) = cuts(tmp_path)
    np.testing.assert_array_equal(cut.load_codes().T, row.tokens[0].data)


def test_what_is_said_is_a_supervision(tmp_path: Path) -> None:
    rows = tokenrows.rows([tokenrows.CODES], columns=True)
    rows[0].columns["text"] = None
    tokenrows.write(tmp_path, "shar", [tokenrows.CODES], rows, tokenrows.COLUMNS)
    first, second, *_ = cuts(tmp_path)
    assert not first.supervisions
    (said,) = second.supervisions
    assert said.text == "word 1, été" and said.duration == second.duration
    assert second.custom["speaker"] == 1 and second.custom["price"] == "12.50"


def test_a_column_that_looks_like_a_manifest_of_lhotse(tmp_path: Path) -> None:
    import pyarrow as pa

    size = pa.schema([("size", pa.struct([("width", pa.int8()), ("height", pa.int8())]))])
    row = tokenrows.rows([tokenrows.CODES])[1]
    row = Row("a", row.tokens, row.n_samples, row.rate, (), {"size": {"width": 4, "height": 3}})
    tokenrows.write(tmp_path, "shar", [tokenrows.CODES], [row], size)
    (cut,) = cuts(tmp_path)
    assert json.loads(cut.custom["size"]) == {"width": 4, "height": 3}


@pytest.mark.parametrize("key", ["a//b", "./a", "a/", "/a", "a.npy", "..", "été", "a.b/c"])
def test_any_key_is_found_again(key: str, tmp_path: Path) -> None:
    row = tokenrows.rows([tokenrows.CODES])[1]
    row = Row(key, row.tokens, row.n_samples, row.rate, (), {})
    tokenrows.write(tmp_path, "shar", [tokenrows.CODES], [row])
    (cut,) = cuts(tmp_path)
    assert cut.custom["key"] == key
    np.testing.assert_array_equal(cut.load_codes().T, row.tokens[0].data)


def test_a_part_without_rows(tmp_path: Path) -> None:
    tokenrows.write(tmp_path, "shar", [tokenrows.CODES], [])
    assert cuts(tmp_path) == []


def test_members_are_those_that_lhotse_writes(tmp_path: Path) -> None:
    from lhotse.array import Array, TemporalArray
    from lhotse.shar import ArrayTarWriter

    row = Row("a/b", (tokenrows.tokens(tokenrows.CODES, 50, 1),), 16_000, 16_000.0, (), {})
    codes = row.tokens[0].data.T
    with ArrayTarWriter(str(tmp_path / "theirs.tar"), shard_size=None) as writer:
        array = Array("shar", "", "", list(codes.shape))
        writer.write("a/b", np.ascontiguousarray(codes), TemporalArray(array, 0, 0.02, 0))
    ours = tokenrows.write(tmp_path / "ours", "shar", [tokenrows.CODES], [row])[0]
    assert members(ours) == members(tmp_path / "theirs.tar")


def members(path: Path) -> list[tuple[str, Any]]:
    with tarfile.open(path) as tar:
        read = [(member.name, tar.extractfile(member)) for member in tar]
        found = [(name, file.read()) for name, file in read if file is not None]
    return [(name, json.loads(data) if name.endswith(".json") else data) for name, data in found]
