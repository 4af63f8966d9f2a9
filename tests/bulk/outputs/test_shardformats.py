"""What all formats of shards have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from streamenc.bulk.outputs.shardformats import FORMATS as KNOWN
from streamenc.bulk.outputs.shardformats import shard_class
from streamenc.bulk.tokenizejob import FORMATS
from streamenc.errors import OutputError
from tests.support import tokenrows
from tests.support.disk import fill, tiny_disk


def test_each_format_that_is_offered_is_there() -> None:
    assert tuple(KNOWN) == FORMATS


@pytest.mark.parametrize("name", tokenrows.MODELS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_same_rows_are_the_same_bytes(
    format: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tokenrows.MODELS[name]
    rows = tokenrows.rows(models, columns=True)
    first = tokenrows.write(tmp_path / "first", format, models, rows, tokenrows.COLUMNS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("os.getpid", lambda: 1)
    # Elsewhere, another part, at another time, and arrays that lie otherwise in memory.
    turned = [
        dataclasses.replace(
            row,
            tokens=tuple(
                dataclasses.replace(each, data=np.asfortranarray(each.data)) for each in row.tokens
            ),
        )
        for row in rows
    ]
    again = tokenrows.write(tmp_path / "b" / "c", format, models, turned, tokenrows.COLUMNS, 7)
    assert tokenrows.hashes(first) == tokenrows.hashes(again)
    other = tokenrows.write(tmp_path / "other", format, models, rows[::-1], tokenrows.COLUMNS)
    assert tokenrows.hashes(first) != tokenrows.hashes(other)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_discarded_leaves_nothing(format: str, tmp_path: Path) -> None:
    shard = shard_class(format)(tmp_path, 0, [tokenrows.CODES], tokenrows.NO_COLUMNS)
    for row in tokenrows.rows([tokenrows.CODES]):
        shard.write(row)
    shard.discard()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_said_and_leaves_nothing(format: str, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        shard = shard_class(format)(disk, 0, [tokenrows.CODES], tokenrows.NO_COLUMNS)
        fill(disk)
        with pytest.raises(OutputError, match="the disk is full"):
            for row in tokenrows.rows([tokenrows.CODES], count=60):
                shard.write(row)
            shard.complete()
        shard.discard()
        assert [path.name for path in disk.iterdir()] == ["filler"]
