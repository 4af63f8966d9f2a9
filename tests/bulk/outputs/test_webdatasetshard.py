"""WebDataset's tars, as its own library reads them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.bulk.items import Row
from streamenc.bulk.outputs.tarmembers import member_name
from tests.support import tokenrows
from tests.support.tokenrows import careless


def samples(path: Path) -> list[dict[str, Any]]:
    webdataset = pytest.importorskip("webdataset")
    with careless():
        data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        return list(data.decode())


@pytest.mark.parametrize("name", tokenrows.MODELS)
def test_webdataset_finds_all(name: str, tmp_path: Path) -> None:
    models = tokenrows.MODELS[name]
    rows = tokenrows.rows(models)
    (path,) = tokenrows.write(tmp_path, "webdataset", models, rows)
    for sample, row in zip(samples(path), rows, strict=True):
        assert unquote(sample["__key__"]) == sample["json"]["key"] == row.key
        for model, tokens in zip(models, row.tokens, strict=True):
            found = sample[f"{model.column}.npy"]
            np.testing.assert_array_equal(found, tokens.data, strict=True)
        if models[0].scaled:
            np.testing.assert_array_equal(sample["scales.npy"], row.tokens[0].scales, strict=True)


def test_what_stands_beside_the_tokens(tmp_path: Path) -> None:
    rows = tokenrows.rows([tokenrows.CODES], columns=True)
    rows[2].columns["speaker"] = "nobody"
    (path,) = tokenrows.write(tmp_path, "webdataset", [tokenrows.CODES], rows, tokenrows.COLUMNS)
    sample = samples(path)[2]
    assert sample["txt"] == sample["json"]["text"] == "word 2, été"
    assert sample["json"] == {
        "key": "speech/2.x/take.2.wav",
        "n_samples": 3207,
        "rate": 16000.0,
        "seconds": 3207 / 16000,
        "gaps": [2],
        "frame_rate": 50.0,
        "model": "nano",
        "fingerprint": "0123456789abcdef",
        "flags": ["gaps", "column:speaker"],
        "text": "word 2, été",
        "speaker": None,
        "rate_in": "slow",
        "said": "2024-05-03T12:00:00+00:00",
        "price": "12.50",
        "raw": "Av8=",
        "words": [{"word": "one", "at": 0.5}, {"word": "two", "at": 1.25}],
        "box": [0.5, 2.0],
    }


def test_a_part_without_rows_is_a_tar_without_members(tmp_path: Path) -> None:
    (path,) = tokenrows.write(tmp_path, "webdataset", [tokenrows.CODES], [])
    assert samples(path) == []


def test_headers_say_nothing_of_when_and_who(tmp_path: Path) -> None:
    key = "été/" + "long" * 60
    row = tokenrows.rows([tokenrows.CODES])[1]
    row = Row(key, row.tokens, row.n_samples, row.rate, (), {})
    (path,) = tokenrows.write(tmp_path, "webdataset", [tokenrows.CODES], [row])
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        file = tar.extractfile(members[1])
        assert file is not None and json.loads(file.read())["key"] == key
    assert [member.name for member in members] == [f"{key}.codes.npy", f"{key}.json"]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (
            0,
            0,
            0,
            "",
            "",
        )


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_names_of_members_can_be_taken_back(key: str) -> None:
    name = member_name(key)
    assert unquote(name) == key
    assert "." not in name and not name.startswith(("/", "_")) and "//" not in name
    assert not name.endswith("/")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b.tar/c.wav", "a/b%2Etar/c%2Ewav"),
        ("/etc/passwd", "%2Fetc/passwd"),
        ("../up", "%2E%2E/up"),
        ("100%", "100%25"),
        ("__a__/b", "%5F_a__/b"),
        ("a//b/", "a%2F%2Fb%2F"),
    ],
)
def test_names_of_members(key: str, name: str) -> None:
    assert member_name(key) == name
