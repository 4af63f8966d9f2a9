"""Lhotse Shar as lhotse writes it: cuts in step with their recordings, and what is out of step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamenc
from streamenc.bulk.decoding.localpath import local_path
from streamenc.bulk.inputs.archives.sharcuts import read_cut
from streamenc.bulk.inputs.looks import look
from streamenc.bulk.inputs.manifests.lhotsecuts import COLUMNS
from streamenc.bulk.items import Fault, Item
from streamenc.errors import InputError, UsageError
from tests.support.bulksets import (
    all_of,
    items_of,
    opened,
    sounds,
    spans_of,
    wav,
    write_shar,
    write_tar,
)


def content(item: Item, scratch: Path) -> bytes:
    with local_path(item.media, scratch) as path:
        return Path(path).read_bytes()


@pytest.mark.parametrize("format", ["flac", "wav"])
def test_as_lhotse_writes_it(tmp_path: Path, format: str):
    lhotse = pytest.importorskip("lhotse")
    cuts = []
    for number, (key, data) in enumerate(sounds(5).items()):
        path = tmp_path / f"{key}.wav"
        path.write_bytes(data)
        recording = lhotse.Recording.from_file(path, recording_id=f"r.{key}")
        said = [
            lhotse.SupervisionSegment(
                f"{key}-{at}", recording.id, at, 0.25, text=text, speaker="A", language=language
            )
            for at, text, language in ((0.5, "world", "en"), (0.1, "hello", "de"))
        ]
        start = 0.125 * (number % 2)
        cuts.append(
            lhotse.MonoCut(
                f"{key}.x",
                start,
                recording.duration - 2 * start,
                0,
                said,
                recording=recording,
                custom={"snr": 3.5},
            )  # fmt: skip
        )
    root = tmp_path / "shar"
    root.mkdir()
    made = lhotse.CutSet.from_cuts(cuts)
    made.to_shar(str(root), fields={"recording": format}, shard_size=2)
    assert look(str(root)) == "lhotse-shar"
    input = opened(root, tmp_path / "kept")
    assert [span.source for span in spans_of(input)] == [f"cuts.{n:06d}.jsonl.gz" for n in range(3)]
    found = items_of(input)
    assert [item.key for item in found] == [cut.id for cut in cuts]
    for item, cut in zip(found, cuts, strict=True):
        with local_path(item.media, tmp_path) as path:
            np.testing.assert_array_equal(streamenc.read(path).data, cut.load_audio())
        assert (item.offset_seconds, item.duration_seconds) == (0, None)  # lhotse cuts them out
    columns = found[1].columns
    assert (columns["text"], columns["speaker"]) == ("world", "A")
    assert [each["text"] for each in json.loads(columns["supervisions"])] == ["world", "hello"]
    assert json.loads(columns["custom"]) == {"snr": 3.5}
    assert list(found[1].columns) == COLUMNS.names == input.columns().names


def test_segments_channels_and_faults(tmp_path: Path):
    keys = list(sounds())
    write_shar(
        tmp_path / "set",
        [keys[:4], keys[4:6]],
        clip01={"start": 0.25, "duration": 0.5},
        clip02={"type": "MixedCut"},
        clip03={"channel": [1], "recording": {"channel_ids": [0, 1]}, "duration": 1.0},
        clip04={"duration": -1},
    )
    found = all_of(opened(tmp_path / "set", tmp_path / "kept"))
    assert [each.key for each in found] == keys[:6]
    assert isinstance(found[1], Item) and isinstance(found[3], Item)
    assert (found[1].offset_seconds, found[1].duration_seconds) == (0.25, 0.5)
    assert found[3].channels == (1,)
    reasons = [each.reason for each in found if isinstance(each, Fault)]
    assert len(reasons) == 2 and "MixedCut" in reasons[0] and "for -1 s" in reasons[1]
    assert isinstance(found[5], Item) and content(found[5], tmp_path) == sounds()["clip05"]


def test_what_is_out_of_step(tmp_path: Path):
    root, keys = tmp_path / "set", list(sounds())
    write_shar(root, [keys[:5]])
    path = root / "cuts.000000.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    lines[1] = b'{"id": '
    lines[3] = lines[3].replace(b"clip03", b"other")
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    found = all_of(opened(root, tmp_path / "kept"))
    assert [each.key for each in found] == [
        "clip00", "cuts.000000.jsonl.gz:2", "clip02", "other", "clip04",
    ]  # fmt: skip
    assert [isinstance(each, Item) for each in found] == [True, False, True, False, False]
    assert isinstance(found[4], Fault) and "where that of 'clip03' comes next" in found[4].reason


def test_shards_cut_off(tmp_path: Path):
    root, keys = tmp_path / "set", list(sounds())
    write_shar(root, [keys[:3], keys[3:6]])
    tar, cuts = root / "recording.000000.tar", root / "cuts.000001.jsonl.gz"
    tar.write_bytes(tar.read_bytes()[:50_000])
    cuts.write_bytes(cuts.read_bytes()[:-12])
    found = all_of(opened(root, tmp_path / "kept"))
    assert [isinstance(each, Item) for each in found[:3]] == [True, False, False]
    assert all("ends within 'clip01.wav'" in each.reason for each in found[1:3])
    assert isinstance(found[-1], Fault) and "unzipped" in found[-1].reason


def test_a_cut_without_a_recording(tmp_path: Path):
    root = tmp_path / "set"
    write_shar(root, [["clip00", "clip01"]])
    members = {
        "clip00.nodata": b"",
        "clip00.nometa": b"",
        "clip01.wav": wav(1),
        "clip01.json": b"{}",
    }
    write_tar(root / "recording.000000.tar", members)
    first, second = all_of(opened(root, tmp_path / "kept"))
    assert isinstance(first, Fault) and "no recording of it" in first.reason
    assert isinstance(second, Item)
    (root / "recording.000000.tar").unlink()
    with pytest.raises(UsageError, match="1 shards of cuts and 0 of 'recording'"):
        spans_of(opened(root, tmp_path / "again"))
    with pytest.raises(UsageError, match="holds sound"):
        opened(root, tmp_path / "again", "video")


@pytest.mark.parametrize(
    "said",
    [[], {}, {"id": 3}, {"id": "a"}, {"id": "a", "start": "0", "duration": 1},
     {"id": "a", "start": float("nan"), "duration": 1},
     {"id": "a", "start": 0, "duration": 1, "recording": []},
     {"id": "a", "start": 0, "duration": 1, "recording": [1]},
     {"id": "a", "start": 0, "duration": 1, "channel": 3, "recording": {"channel_ids": [0, 1]}}],
)  # fmt: skip
def test_what_is_no_cut(said: Any):
    if said == {"id": "a", "start": 0, "duration": 1, "recording": []}:
        assert read_cut(said).channels == ()
        return
    with pytest.raises(InputError):
        read_cut(said)


def test_in_a_store(tmp_path: Path):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    root, keys = tmp_path / "set", list(sounds())
    write_shar(root, [keys[:3], keys[3:6]])
    try:
        for path in root.iterdir():
            store.pipe(f"/set/{path.name}", path.read_bytes())
        found = items_of(opened("memory://set", tmp_path / "kept"))
        assert [content(item, tmp_path) for item in found] == [*sounds().values()][:6]
        assert np.all([item.duration_seconds is None for item in found])
    finally:
        store.rm("/set", recursive=True)
