"""wav.scp, and JSON lines of NeMo and of Lhotse, as data sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streamenc.bulk.inputs.looks import look, open_input
from streamenc.bulk.items import Fault, Item, Local, Remote
from streamenc.errors import MediaError


def parts(path: Path | str, kept: Path, each: int = 2) -> tuple[pa.Schema, list[Item | Fault]]:
    """The columns, and all items, of each part as another process reads it."""
    kept.mkdir(exist_ok=True)
    kind = look(str(path))
    made = open_input(kind, str(path), "audio", kept)
    columns, spans = made.columns(), list(made.spans(each))
    assert all(span.items == each for span in spans[:-1])
    found: list[Item | Fault] = []
    for span in reversed(spans):
        anew = open_input(kind, str(path), "audio", kept)
        assert anew.columns() == columns
        found[:0] = list(anew.items(span))
    assert len(found) == sum(span.items for span in spans)
    return columns, found


def items(path: Path | str, kept: Path) -> list[Item]:
    return [item for item in parts(path, kept)[1] if isinstance(item, Item)]


def faults(path: Path | str, kept: Path) -> list[Fault]:
    return [item for item in parts(path, kept)[1] if isinstance(item, Fault)]


def lines(path: Path, records: list[Any]) -> Path:
    text = "".join(
        (record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records
    )
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["train.json", "train.jsonl.gz"])
def test_nemo(name: str, tmp_path: Path):
    path = lines(
        tmp_path / name,
        [
            {"audio_filepath": "a.wav", "duration": 1.5, "text": "one", "n": 1, "x": 1, "m": 1},
            {"audio_filepath": "/far/b c.flac", "offset": 2, "duration": 0.25, "text": None},
            "",
            {"audio_filepath": "s3://bucket/d.wav", "words": ["a", {"b": 1}], "x": 0.5, "m": "t"},
            "{broken",
            {"audio_filepath": 7, "good": True},
            {"audio_filepath": "e.wav", "offset": "x"},
            "[1]",
            {"audio_filepath": "f.wav", "n": 2},
        ],
    )
    columns, found = parts(path, tmp_path / "kept")
    assert dict(zip(columns.names, columns.types, strict=True)) == {
        "text": pa.string(), "n": pa.int64(), "x": pa.float64(), "m": pa.string(),
        "words": pa.string(), "good": pa.bool_(),
    }  # fmt: skip
    a, b, d, broken, seven, times, array, f = found
    none = dict.fromkeys(columns.names)
    assert a == Item(
        "a.wav", Local(f"{tmp_path}/a.wav"), 0.0, 1.5,
        columns=none | {"text": "one", "n": 1, "x": 1.0, "m": "1"},
    )  # fmt: skip
    assert b == Item("/far/b c.flac#2+0.25", Local("/far/b c.flac"), 2.0, 0.25, columns=none)
    assert isinstance(d, Item) and d.media == Remote("s3://bucket/d.wav")
    assert d.columns == none | {"words": '["a", {"b": 1}]', "x": 0.5, "m": '"t"'}
    assert isinstance(f, Item) and f.columns["n"] == 2
    for fault, number, says in (
        (broken, 5, "no JSON"),
        (seven, 6, "wanted is the name of a file"),
        (times, 7, "wanted is a number of seconds"),
        (array, 8, "no object"),
    ):
        assert isinstance(fault, Fault) and says in fault.reason
        assert fault.key == f"{path}, line {number}" == fault.source


@pytest.mark.parametrize("each", [1, 3, 100])
def test_faults_name_their_lines_in_any_part(each: int, tmp_path: Path):
    records = [["", "{", {"audio_filepath": "a.wav"}][number * 7 % 5 % 3] for number in range(40)]
    path = lines(tmp_path / "m.jsonl", [{"audio_filepath": "first.wav"}, *records])
    bad = [number for number, record in enumerate(records, 2) if record == "{"]
    found = parts(path, tmp_path / "kept", each)[1]
    told = [item.key for item in found if isinstance(item, Fault)]
    assert told == [f"{path}, line {number}" for number in bad]
    assert len(bad) > 10


def test_nemo_in_a_store(tmp_path: Path):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe("/set/m.json", b'{"audio_filepath": "clips/a.wav"}\n')
    try:
        (item,) = items("memory://set/m.json", tmp_path / "kept")
    finally:
        store.rm("/set", recursive=True)
    assert item.media == Remote("memory://set/clips/a.wav")


def test_a_damaged_zip_is_told(tmp_path: Path):
    path = lines(tmp_path / "m.jsonl.gz", [{"audio_filepath": f"{n}.wav"} for n in range(9000)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MediaError, match="cannot be unzipped"):
        items(path, tmp_path / "kept")


def test_wav_scp(tmp_path: Path):
    path = tmp_path / "wav.scp"
    path.write_text(
        "utt1 a.wav\nutt2\t/far/b c.flac\nutt3 sox in.wav -t wav - |\nutt4\nutt5 feats.ark:12\n"
    )
    touched = tmp_path / "touched"
    with path.open("a") as file:
        file.write(f"utt6 touch {touched} |\n")
    found = items(path, tmp_path / "kept")
    assert found == [
        Item("utt1", Local(f"{tmp_path}/a.wav")),
        Item("utt2", Local("/far/b c.flac")),
    ]
    reasons = [fault.reason for fault in faults(tmp_path, tmp_path / "again")]
    assert "commands are never run" in reasons[0] and "wanted are a key" in reasons[1]
    assert "archive" in reasons[2] and "never run" in reasons[3]
    assert not touched.exists()


def test_segments_of_kaldi(tmp_path: Path):
    (tmp_path / "wav.scp").write_text("rec2 b.wav\nrec1\ta.wav\nrec3 cat x |\n")
    (tmp_path / "segments").write_text(
        "u1 rec1 0.5 1.75\nu2 rec1 2 -1\nu3 rec9 0 1\nu4 rec3 0 1\nu5 rec2 0 x\nu6 rec2 3 4\n"
    )
    assert items(tmp_path, tmp_path / "kept") == [
        Item("u1", Local(f"{tmp_path}/a.wav"), 0.5, 1.25),
        Item("u2", Local(f"{tmp_path}/a.wav"), 2.0, None),
        Item("u6", Local(f"{tmp_path}/b.wav"), 3.0, 1.0),
    ]
    reasons = [fault.reason for fault in faults(tmp_path / "wav.scp", tmp_path / "again")]
    assert "which wav.scp does not have" in reasons[0] and "never run" in reasons[1]
    assert "wanted are seconds" in reasons[2]
    kept = tmp_path / "whole"
    kept.mkdir()
    whole = open_input("wav.scp", str(tmp_path), "audio", kept, segments="")
    (span,) = whole.spans(5)
    assert [item.key for item in whole.items(span)][:2] == ["rec2", "rec1"]


def test_lhotse(tmp_path: Path):
    lhotse = pytest.importorskip("lhotse")
    dummies = pytest.importorskip("lhotse.testing.dummies")
    soundfile = pytest.importorskip("soundfile")
    import numpy as np

    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, np.zeros((16000, 2)), 8000)
    one = lhotse.Recording.from_file(tmp_path / "a.wav", recording_id="one")
    other = lhotse.Recording.from_file(tmp_path / "b.flac", recording_id="other")
    whole = one.to_cut()
    words = lhotse.SupervisionSegment(
        "s", "other", 0.0, 0.5, channel=1, text="hello", speaker="anna"
    )
    cut = lhotse.MonoCut(
        "cut", 0.25, 0.5, 1, recording=other, supervisions=[words], custom={"tags": [1, "x"]}
    )
    mixed = cut.mix(cut, snr=10)
    cuts = [whole, cut, mixed, cut.pad(3.0), dummies.dummy_cut(0), whole.resample(4000)]
    cuts.append(lhotse.MonoCut("features", 0, 1, 0, features=dummies.dummy_features(0)))
    path = tmp_path / "cuts.jsonl.gz"
    lhotse.CutSet.from_cuts(each.with_id(str(n)) for n, each in enumerate(cuts)).to_file(path)
    assert look(str(path)) == "lhotse"
    first, second = items(path, tmp_path / "kept")
    assert (first.key, first.media, first.channels) == ("0", Local(f"{tmp_path}/a.wav"), ())
    assert first.duration_seconds is None
    assert (second.offset_seconds, second.duration_seconds) == (0.25, 0.5)
    assert second.channels == (1,) and second.media == Local(f"{tmp_path}/b.flac")
    assert second.columns["text"] == "hello" and second.columns["speaker"] == "anna"
    assert json.loads(second.columns["custom"]) == {"tags": [1, "x"]}
    assert json.loads(second.columns["supervisions"])[0]["id"] == "s"
    reasons = [fault.reason for fault in faults(path, tmp_path / "again")]
    for reason, says in zip(
        reasons,
        ("MixedCut", "MixedCut", "'command'", "transformed", "no recording"),
        strict=True,
    ):
        assert says in reason
    recordings = tmp_path / "recordings.jsonl"
    lhotse.RecordingSet.from_recordings([one, other]).to_file(recordings)
    assert [item.key for item in items(recordings, tmp_path / "recordings")] == ["one", "other"]
