"""Episodes of LeRobot, version 3: pieces of videos that many of them share, by a table of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.datainput import Span
from streamenc.bulk.inputs.filelist import FileList
from streamenc.bulk.inputs.tables.tablefile import DamagedTable, TableFile
from streamenc.bulk.inputs.tables.tables import TableInput
from streamenc.bulk.items import Fault, Item, Local, Remote
from streamenc.errors import UsageError

INFO = "meta/info.json"
EPISODES = "meta/episodes/"
MAX_INFO_BYTES = 16 * 2**20
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
COLUMNS = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("camera", pa.string()),
        ("tasks", pa.list_(pa.string())),
        ("length", pa.int64()),
    ]
)


class LeRobotInput(TableInput):
    """Each camera of each episode is an item: "episode_000012/observation.images.front".

    Parts are episodes in their order, camera by camera within the rows that are read at a time, so
    that the episodes of one video follow each other.

    Args:
        camera: Which one; all if not given.
    """

    kind = "lerobot"

    def __init__(
        self, address: str, takes: str, kept: Path, *, camera: str = "", **options: Any
    ) -> None:
        super().__init__(address, takes, kept, **options)
        self._camera = camera
        self._files = _Episodes(address, kept)

    def columns(self) -> pa.Schema:
        if self.takes != "video":
            raise UsageError("the models take sound, and LeRobot's episodes are images")
        assert self._cameras
        return COLUMNS

    def spans(self, items_per_shard: int) -> Iterator[Span]:
        for span in super().spans(items_per_shard):
            yield msgspec.structs.replace(span, items=0)

    @cached_property
    def _info(self) -> dict[str, Any]:
        address = self._files.root + INFO
        with filesystem.opened(address) as file, filesystem.reading(address):
            content = file.read(MAX_INFO_BYTES)
        try:
            info = msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise UsageError(f"{shown_address(address)!r} is damaged: {error}") from error
        version = str(info.get("codebase_version", ""))
        if not version.startswith("v3"):
            raise UsageError(
                f"{shown_address(self.address)!r} is LeRobot {version or 'of no version'}; read is "
                "v3.0, to which lerobot converts older ones"
            )
        return info

    @cached_property
    def _cameras(self) -> list[str]:
        features = self._info.get("features")
        there = [
            name
            for name, each in (features if isinstance(features, dict) else {}).items()
            if isinstance(each, dict) and each.get("dtype") == "video"
        ]
        chosen = [name for name in there if self._camera in ("", name)]
        if not chosen:
            what = f"no camera {self._camera!r}" if self._camera else "no video"
            raise UsageError(
                f"there is {what} in {shown_address(self.address)!r}; there are "
                f"{', '.join(there) or 'none'}"
            )
        return sorted(chosen)

    def _batches(self, table: TableFile, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        wanted = ["episode_index", "tasks", "length"]
        wanted += [column for camera in self._cameras for column in _columns(camera)]
        there = [name for name in wanted if name in table.schema.names]
        if "episode_index" not in there:
            raise DamagedTable("it has no column 'episode_index'")
        return table.batches(start, stop, there)

    def _rows(self, batch: pa.RecordBatch, name: str, first: int) -> Iterator[Item | Fault]:
        episodes = batch.to_pylist()
        for camera in self._cameras:
            for episode in episodes:
                yield self._item(episode, camera, name)

    def _item(self, episode: dict[str, Any], camera: str, source: str) -> Item | Fault:
        number = episode["episode_index"]
        key = f"episode_{number:06d}/{camera}" if isinstance(number, int) else f"?/{camera}"
        chunk, file, begins, ends = (episode.get(column) for column in _columns(camera))
        if not isinstance(chunk, int) or not isinstance(file, int):
            return Fault(key, source, "the table does not say in which file its video is")
        times = [each for each in (begins, ends) if isinstance(each, int | float)]
        if len(times) < 2 or not all(map(math.isfinite, times)) or not 0 <= times[0] < times[1]:
            return Fault(key, source, f"its video lies from {begins} to {ends} s")
        try:
            path = str(self._info.get("video_path") or VIDEO_PATH).format(
                video_key=camera, chunk_index=chunk, file_index=file
            )
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            return Fault(key, source, f"video_path of {INFO} is no pattern: {error}")
        if ".." in path.split("/") or path.startswith("/") or "://" in path:
            return Fault(key, source, f"its video is not within the data set: {path}")
        address = self._files.root + path
        media = Remote(address) if filesystem.is_remote(address) else Local(address)
        columns = {
            "episode_index": number,
            "camera": camera,
            "tasks": episode.get("tasks"),
            "length": episode.get("length"),
        }
        return Item(key, media, times[0], times[1] - times[0], columns=columns)


class _Episodes(FileList):
    """The tables of episodes."""

    def __init__(self, address: str, kept: Path) -> None:
        super().__init__(address, kept, (".parquet",))

    def _found(self) -> Iterator[str]:
        for name in filesystem.matching(f"{self.root}{EPISODES}**"):
            if name.endswith(".parquet"):
                yield EPISODES + name


def _columns(camera: str) -> tuple[str, str, str, str]:
    """Of a camera's video: the chunk and file, and from when to when."""
    before = f"videos/{camera}/"
    return (
        f"{before}chunk_index",
        f"{before}file_index",
        f"{before}from_timestamp",
        f"{before}to_timestamp",
    )
