"""The same sounds in each form of data set: equal tokens, those of `codec.encode`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamenc
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.items import Row
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from tests.support.bulksets import items_of, opened, sounds, write_shar, write_tar

Tokens = dict[str, Any]


def as_folder(root: Path) -> dict[str, str]:
    for key, data in sounds().items():
        (root / f"{key}.wav").write_bytes(data)
    return {f"{key}.wav": key for key in sounds()}


def as_tars(root: Path) -> dict[str, str]:
    named = list(sounds().items())
    for number, some in enumerate((named[:6], named[6:])):
        write_tar(root / f"{number}.tar", {f"{key}.wav": data for key, data in some})
    return {key: key for key in sounds()}


def as_zipped_tars(root: Path) -> dict[str, str]:
    write_tar(root / "0.tar.gz", {f"{key}.wav": data for key, data in sounds().items()}, "w:gz")
    return {key: key for key in sounds()}


def as_parquet(root: Path) -> dict[str, str]:
    rows = [{"bytes": data, "path": f"{key}.wav"} for key, data in sounds().items()]
    type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"key": list(sounds()), "audio": pa.array(rows, type)})
    pq.write_table(table, root / "train-00000-of-00001.parquet", row_group_size=3)
    return {key: key for key in sounds()}


def as_samples(root: Path) -> dict[str, str]:
    samples = [np.frombuffer(data[44:], np.int16) for data in sounds().values()]
    table = pa.table({"audio": samples, "sampling_rate": [16_000] * len(samples)})
    pq.write_table(table, root / "a.parquet")
    return {f"a.parquet:{row}": key for row, key in enumerate(sounds())}


def as_shar(root: Path) -> dict[str, str]:
    write_shar(root, [list(sounds())[:7], list(sounds())[7:]])
    return {key: key for key in sounds()}


FORMS: list[Callable[[Path], dict[str, str]]] = [
    as_folder,
    as_tars,
    as_zipped_tars,
    as_parquet,
    as_samples,
    as_shar,
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    codec = streamenc.load("nano", backend="torch")
    folder = tmp_path_factory.mktemp("alone")
    found = {}
    for key, data in sounds().items():
        path = folder / f"{key}.wav"
        path.write_bytes(data)
        samples = streamenc.read(str(path), sample_rate=codec.sample_rate, channels=1).data
        found[key] = codec.encode(samples)[0].numpy()
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    job = TokenizeJob(input="", models=(ModelAsk(name="nano"),))
    return Tokenizer(job, tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_the_same(
    form: Callable[[Path], dict[str, str]], tmp_path: Path, tokenizer: Tokenizer, expected: Tokens
):
    root = tmp_path / "input"
    root.mkdir()
    keys = form(root)
    input = opened(root, tmp_path / "kept")
    rows = list(tokenizer.rows(items_of(input, 4)))
    assert [row.key for row in rows] == list(keys)
    for row in rows:
        assert isinstance(row, Row)
        np.testing.assert_array_equal(row.tokens[0].data, expected[keys[row.key]])
        assert not row.flags
