"""Recordings in the hands of pandas, polars, DuckDB, datasets and numpy, as their page shows it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import Dataset

import streamenc
from streamenc import io
from streamenc.errors import DeviceError, NodeError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import BlockingSink, Source

PAGE = Path(__file__).parents[2] / "docs" / "io" / "recordings.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
CODES = StreamInfo(
    "codes", Fraction(1, 16_000), Fraction(50), (16, None), "uint16", "nano", codebook_size=1024
)
MEL = StreamInfo("features", Fraction(1, 16_000), Fraction(100), (80, None), "float32", "mel")
GRID = StreamInfo(
    "codes", Fraction(1, 90_000), Fraction(5), (1, None, 2, 3), "uint16", "dv", 64_000
)
FILM = StreamInfo("mux", Fraction(1, 720_000), Fraction(0), (), "", tracks=(CODES, GRID))
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 1024, (16, 90)).astype(np.uint16)
CUTS = [0, 12, 13, 50, 90]  # frames of the codec, as they were encoded


def record(path: Path, info: StreamInfo, frames: list[Frame]) -> Path:
    sink = io.sink(str(path))
    assert isinstance(sink, BlockingSink)
    sink.open_blocking(info)
    for frame in frames:
        sink.write_blocking(frame)
    sink.close_blocking()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tables")
    frames = [
        Frame(TOKENS[:, a:b], 320 * a + 8000 * (a >= 50), 320 * (b - a), i, discontinuity=a == 50)
        for i, (a, b) in enumerate(zip(CUTS[:-1], CUTS[1:], strict=True))
    ]
    for ending in ("arrows", "parquet", "npz"):
        record(made / f"tokens.{ending}", CODES, frames)
    return made


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_each_snippet_of_the_page_runs(
    snippet: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(snippet, str(PAGE), "exec"), names)
    if "codes" in names:
        codes = names["codes"]
        assert codes.dtype == np.uint16 and np.array_equal(codes, TOKENS)
    elif "first" in names:
        assert np.array_equal(np.stack(names["frames"]).T, TOKENS)
        assert names["first"] == [(0.02 * at, TOKENS[0, at]) for at in CUTS[:3]]
    else:
        assert (names["rows"], names["end"]) == (4, 1.5)
    for name, wanted in {"gaps": [50], "starts": [50], "rate": 50.0, "model": "nano"}.items():
        if name in names:
            assert np.array_equal(names[name], wanted)


def test_the_page_shows_them_all() -> None:
    text = "\n".join(SNIPPETS)
    for reader in ("streamenc", "pandas", "polars", "duckdb", "datasets", "numpy"):
        assert f"import {reader}" in text or f"from {reader}" in text
    assert len(SNIPPETS) == 8


def readers(folder: Path, name: str) -> dict[str, list[Any]]:
    """The column as each of them has it, with plain lists."""
    arrows, parquet = str(folder / f"{name}.arrows"), str(folder / f"{name}.parquet")
    tokens = pa.ipc.open_stream(arrows).read_all()
    column = tokens.schema.names[-1]
    rows = {
        "pandas": tokens.to_pandas()[column],
        "pandas, Parquet": pd.read_parquet(parquet)[column],
        "polars": pl.read_ipc_stream(arrows)[column],
        "polars, Parquet": pl.read_parquet(parquet)[column],
        "DuckDB": [row for (row,) in duckdb.sql(f"select {column} from tokens").fetchall()],
        "DuckDB, Parquet": [
            row for (row,) in duckdb.sql(f"select {column} from '{parquet}'").fetchall()
        ],
        "datasets": Dataset.from_file(arrows)[column],
    }
    return {reader: [plain(row) for row in found] for reader, found in rows.items()}


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | pl.Series):
        value = value.tolist() if isinstance(value, np.ndarray) else value.to_list()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def test_features_are_lists_everywhere(tmp_path: Path) -> None:
    data = RNG.standard_normal((80, 30)).astype(np.float32)
    frames = [Frame(data[:, a : a + 10], 160 * a, 1600, a // 10) for a in (0, 10, 20)]
    for ending in ("arrows", "parquet"):
        record(tmp_path / f"mel.{ending}", MEL, frames)
    wanted = [frame.data.T.tolist() for frame in frames]
    for reader, found in readers(tmp_path, "mel").items():
        assert found == wanted, reader


def test_the_tracks_of_a_film_have_a_column_each_everywhere(tmp_path: Path) -> None:
    grid = RNG.integers(0, 64_000, (1, 1, 2, 3)).astype(np.uint16)
    frames = [Frame(TOKENS[:, :4], 0, 1280, 0), Frame(grid, 0, 18_000, 0, track=1)]
    for ending in ("arrows", "parquet"):
        record(tmp_path / f"film.{ending}", FILM, frames)
    for reader, found in readers(tmp_path, "film").items():
        assert found[1] == np.moveaxis(grid, 1, 0).tolist(), reader
        assert found[0] is None or found[0] != found[0], reader


def test_lists_cost_little(tmp_path: Path) -> None:
    frames = [Frame(TOKENS[:, :8], 2560 * i, 2560, i) for i in range(4000)]
    path = record(tmp_path / "long.arrows", CODES, frames)
    assert path.stat().st_size < 4000 * (TOKENS[:, :8].nbytes + 110)


@pytest.mark.parametrize("ending", ["arrows", "parquet", "npz", "jsonl"])
def test_a_recording_of_what_failed_says_why_it_is_not_whole(tmp_path: Path, ending: str) -> None:
    class Unplugged(Source):
        async def open(self) -> StreamInfo:
            return CODES

        async def frames(self) -> AsyncIterator[Frame]:
            yield Frame(TOKENS[:, :4], 0, 1280, 0)
            raise DeviceError("the microphone was unplugged")

        def stop(self) -> None:
            return None

    path = tmp_path / f"tokens.{ending}"
    graph = Graph()
    graph.sink("record", io.sink(str(path)), graph.source("mic", Unplugged()))
    with pytest.raises(NodeError, match="unplugged"):
        graph.run_blocking()
    if ending == "jsonl":
        last = json.loads(path.read_text().splitlines()[-1])
        assert last["end"] == "broken" and "was unplugged" in last["reason"]
    recording = streamenc.read(path)
    assert np.array_equal(recording.data, TOKENS[:, :4])
    assert "the microphone was unplugged" in recording.broken


@pytest.mark.parametrize("ending", [".parquet", ".npz"])
def test_a_graph_that_cannot_begin_leaves_the_file_that_was_there(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"tokens{ending}"
    path.write_bytes(b"of the day before")
    source = io.source(str(record(tmp_path / "a.arrows", CODES, [])))
    graph = Graph()
    graph.sink("record", io.sink(str(path)), graph.source("tokens", source))
    graph.sink("other", io.sink(str(tmp_path / "nowhere" / "b.arrows")), "tokens")
    with pytest.raises(NodeError, match="no folder"):
        graph.run_blocking()
    assert path.read_bytes() == b"of the day before"
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "a.arrows"}
