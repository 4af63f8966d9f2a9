"""The JSON beside weights: where it is found, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from streamenc.checkpoints.configs import (
    MAX_CONFIG_BYTES,
    configs,
    read_config,
    whole_number,
    whole_numbers,
)
from streamenc.errors import CheckpointError

NEW, OLD = {"do_normalize": False}, {"do_normalize": True}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, {}),
        ({"preprocessor_config.json": OLD}, OLD),
        ({"processor_config.json": {"feature_extractor": NEW}}, NEW),
        ({"processor_config.json": {"audio_processor": NEW}}, NEW),
        ({"processor_config.json": {"image_processor": NEW}}, NEW),
        (
            {
                "processor_config.json": {"feature_extractor": NEW},
                "preprocessor_config.json": OLD,
            },
            NEW,
        ),
        (
            {"processor_config.json": {"processor_class": "X"}, "preprocessor_config.json": OLD},
            OLD,
        ),
    ],
)
def test_a_preparation_is_found_where_transformers_finds_it(
    tmp_path: Path, files: dict[str, Any], wanted: Any
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert configs(tmp_path) == ({}, wanted)


@pytest.mark.parametrize("text", ["{", "[1]", "9", "[" * 200_000, '{"a":' * 200_000, ""])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "zeros"):
        with pytest.raises(CheckpointError, match="is no file"):
            read_config(tmp_path / name)


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(CheckpointError, match="too large"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a":[' + "{}," * 100_000 + "{}]}", "100000 values in 100003 objects and lists"),
        ('{"a":[' + "1," * 500_001 + "1]}", "500001 values in 2 objects and lists"),
        ('{"a":' * 33 + "1" + "}" * 33, "nested more than 32 deep"),
        ('{"a":' * 32 + "[1]" + "}" * 32, "nested more than 32 deep"),
        ('{"a": ' + "9" * 5000 + "}", "no readable JSON"),
        ("NaN", "wanted a JSON object, got a float"),
    ],
    ids=["objects", "values", "objects deep", "lists deep", "digits", "number"],
)
def test_what_no_config_holds_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_config(path)


def test_a_large_index_of_shards_is_read(tmp_path: Path) -> None:
    """Of as many tensors as the largest published models have."""
    index = {"weight_map": {f"layers.{n}.weight": "model-00001.safetensors" for n in range(92_000)}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert read_config(tmp_path / "index.json") == index
    deep: Any = 1
    for _ in range(32):
        deep = {"a": deep}
    (tmp_path / "deep.json").write_text(json.dumps(deep))
    assert read_config(tmp_path / "deep.json") == deep


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/" + "x" * 3000)
    with pytest.raises(CheckpointError, match="is no name of a file"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("value", [0, 9, -1, 10**30, True, 1.0, "3", None, [3], float("nan")])
def test_what_is_no_whole_number_of_the_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"size is .*; wanted a whole number from 1 to 8"):
        whole_number("size", value, 8)
    with pytest.raises(ValueError, match="size"):
        whole_numbers("size", [3, value], 8)


def test_whole_numbers_of_a_config() -> None:
    assert whole_number("size", 0, 8, 0) == 0 and whole_number("size", 1 << 16) == 65_536
    assert whole_numbers("sizes", (3, 8), 8) == [3, 8]
    for value in ([], [1] * 17, 3, "33", None, {"1": 2}):
        with pytest.raises(ValueError, match="wanted a list of 1 to 16 numbers"):
            whole_numbers("sizes", value)
