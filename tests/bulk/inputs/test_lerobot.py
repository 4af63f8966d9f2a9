"""Episodes of LeRobot: cameras of episodes as pieces of the videos that they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamenc.bulk.decoding.mediareader import MediaReader
from streamenc.bulk.inputs.looks import look
from streamenc.bulk.items import Fault, Item
from streamenc.errors import UsageError
from tests.support.bulksets import all_of, items_of, opened, spans_of
from tests.support.clips import numbers, write_clip

FPS, LENGTHS = 25, (5, 8, 6)
CAMERAS = ("observation.images.front", "observation.images.wrist")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root, rows, at = tmp_path / "robot", [], 0
    for number, length in enumerate(LENGTHS):
        row: dict[str, Any] = {"episode_index": number, "tasks": ["pick"], "length": length}
        for camera in CAMERAS:
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
            row |= {
                f"videos/{camera}/from_timestamp": at / FPS,
                f"videos/{camera}/to_timestamp": (at + length) / FPS,
            }
        rows.append(row)
        at += length
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    features: dict[str, Any] = {camera: {"dtype": "video"} for camera in CAMERAS}
    features["action"] = {"dtype": "float32"}
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    for camera in CAMERAS:
        path = root / "videos" / camera / "chunk-000" / "file-000.mp4"
        path.parent.mkdir(parents=True)
        write_clip(path, count=sum(LENGTHS))
    return root


def test_episodes_camera_by_camera(folder: Path, tmp_path: Path):
    assert look(str(folder)) == "lerobot"
    input = opened(folder, tmp_path / "kept", "video")
    found = items_of(input)
    names = [f"episode_{n:06d}/{camera}" for camera in CAMERAS for n in range(3)]
    assert [item.key for item in found] == names
    assert found[4].columns == {
        "episode_index": 1, "camera": CAMERAS[1], "tasks": ["pick"], "length": 8,
    }  # fmt: skip
    assert len(spans_of(input, 2)) == 2
    reader = MediaReader("video", tmp_path)
    first = 0
    for item, length in zip(found, LENGTHS * 2, strict=True):
        first = first % sum(LENGTHS)
        with reader.open(item) as reading:
            found_numbers = numbers(reading.frames())
        assert found_numbers == list(range(first, first + length))
        first += length


def test_one_camera_and_what_is_refused(folder: Path, tmp_path: Path):
    wrist = items_of(opened(folder, tmp_path / "1", "video", camera=CAMERAS[1]))
    assert [item.columns["camera"] for item in wrist] == [CAMERAS[1]] * 3
    with pytest.raises(UsageError, match="no camera 'top' .* there are observation.images.front"):
        opened(folder, tmp_path / "2", "video", camera="top").columns()
    with pytest.raises(UsageError, match="are images"):
        opened(folder, tmp_path / "3").columns()
    info = folder / "meta/info.json"
    said = json.loads(info.read_text())
    info.write_text(json.dumps({**said, "video_path": "../{video_key}.mp4"}))
    found = all_of(opened(folder, tmp_path / "4", "video"))
    assert len(found) == 6
    assert all(isinstance(each, Fault) and "not within" in each.reason for each in found)
    info.write_text(json.dumps({**said, "codebase_version": "v2.1"}))
    with pytest.raises(UsageError, match="is LeRobot v2.1"):
        opened(folder, tmp_path / "5", "video").columns()


def test_rows_without_a_video(folder: Path, tmp_path: Path):
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0][f"videos/{CAMERAS[0]}/file_index"] = None
    rows[1][f"videos/{CAMERAS[0]}/to_timestamp"] = 0.0
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = all_of(opened(folder, tmp_path / "kept", "video"))
    assert [isinstance(each, Item) for each in found] == [False, False, True, True, True, True]
