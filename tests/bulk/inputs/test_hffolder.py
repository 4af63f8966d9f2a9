"""Folders of Hugging Face: by their cards, by the names of their files, and as `datasets` saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamenc.bulk.inputs.looks import look
from streamenc.bulk.items import Blob, Item
from streamenc.errors import UsageError
from tests.support.bulksets import items_of, opened, sounds, spans_of, wav

SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

CARD = """---
license: cc0-1.0
configs:
- config_name: de
  data_files:
  - split: test
    path: de/test-*
  - split: train
    path: [de/first.parquet, "de/more/*.parquet"]
- config_name: en
  default: true
  data_files: en/*.parquet
- config_name: all
  data_dir: de
---
# Sounds
"""


def write(path: Path, *keys: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": wav(number), "path": f"{key}.wav"} for number, key in enumerate(keys)]
    pq.write_table(pa.table({"id": keys, "audio": pa.array(rows, SOUND)}), path)


def keys(root: Path, kept: Path, **options: Any) -> list[str]:
    return [item.key for item in items_of(opened(root, kept, **options))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    write(root / "de/first.parquet", "a", "b")
    write(root / "de/more/0.parquet", "c")
    write(root / "de/test-00000-of-00001.parquet", "d")
    write(root / "en/0.parquet", "e", "f")
    (root / "README.md").write_text(CARD)
    return root


def test_configurations_and_splits(folder: Path, tmp_path: Path):
    assert look(str(folder)) == "huggingface"
    assert keys(folder, tmp_path / "1") == ["e", "f"]
    german = items_of(opened(folder, tmp_path / "2", config="de"))
    assert [(item.key, item.columns["split"]) for item in german] == [
        ("d", "test"),
        ("a", "train"),
        ("b", "train"),
        ("c", "train"),
    ]
    assert keys(folder, tmp_path / "3", config="de", split="test") == ["d"]
    assert sorted(keys(folder, tmp_path / "4", config="all")) == ["a", "b", "c", "d"]
    with pytest.raises(UsageError, match="no configuration 'fr' .* there are de, en, all"):
        spans_of(opened(folder, tmp_path / "5", config="fr"))
    with pytest.raises(UsageError, match="no split 'dev' .* there are test, train"):
        spans_of(opened(folder, tmp_path / "6", config="de", split="dev"))


@pytest.mark.parametrize("path", ["../*", "/etc/*", "https://example.org/a.parquet"])
def test_a_card_leads_nowhere_else(folder: Path, tmp_path: Path, path: str):
    (folder / "README.md").write_text(CARD.replace("en/*.parquet", path))
    with pytest.raises(UsageError, match="not within it"):
        spans_of(opened(folder, tmp_path / "kept"))


@pytest.mark.parametrize("card", ["", "# words", "---\na: [\n---\n", "---\nconfigs: 3\n---\n"])
def test_splits_by_names(tmp_path: Path, card: str):
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text(card)
    write(root / "data/test-00000-of-00001.parquet", "t")
    write(root / "data/train-00000-of-00002.parquet", "a")
    write(root / "data/train-00001-of-00002.parquet", "b")
    write(root / "data/validation-00000-of-00001.parquet", "v")
    found = items_of(opened(root, tmp_path / "kept"))
    split = [(item.key, item.columns["split"]) for item in found]
    assert split == [("a", "train"), ("b", "train"), ("v", "validation"), ("t", "test")]
    assert keys(root, tmp_path / "again", split="train") == ["a", "b"]


def test_what_datasets_saves(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    held = sounds(5)
    rows = {
        "audio": pa.array([{"bytes": d, "path": f"{k}.wav"} for k, d in held.items()], SOUND),
        "text": [f"text of {key}" for key in held],
    }
    features = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")})
    info = datasets.DatasetInfo(features=features)
    made = datasets.Dataset(
        datasets.table.InMemoryTable(pa.table(rows, features.arrow_schema)), info
    )
    made.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": made, "test": made.select([4])}).save_to_disk(
        str(tmp_path / "two")
    )
    made.to_parquet(str(tmp_path / "three" / "data" / "train-00000-of-00001.parquet"))
    for name in ("one", "two", "three"):
        assert look(str(tmp_path / name)) == "huggingface"
        found = items_of(opened(tmp_path / name, tmp_path / f"kept-{name}"), 2)
        data = [item.media.data for item in found if isinstance(item.media, Blob)]
        assert data == [*held.values()] + ([held["clip04"]] if name == "two" else [])
        assert found[1].columns["text"] == "text of clip01"
        assert ("split" in found[0].columns) == (name == "two")
    state = tmp_path / "one" / "state.json"
    said = json.loads(state.read_text())
    said["_data_files"] = [{"filename": "../../x.arrow"}]
    state.write_text(json.dumps(said))
    with pytest.raises(UsageError, match="not within it"):
        spans_of(opened(tmp_path / "one", tmp_path / "kept"))


def test_a_folder_in_a_store(folder: Path, tmp_path: Path):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    try:
        for path in folder.rglob("*.*"):
            store.pipe(f"/set/{path.relative_to(folder)}", path.read_bytes())
        found = items_of(opened("memory://set", tmp_path / "kept", config="de"))
        assert [item.key for item in found] == ["d", "a", "b", "c"]
        assert all(isinstance(item, Item) for item in found)
    finally:
        store.rm("/set", recursive=True)
