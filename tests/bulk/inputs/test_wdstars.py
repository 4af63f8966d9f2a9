"""Tars of WebDataset: samples as the library groups them, and what is left of damaged ones."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from streamenc.bulk.decoding.localpath import local_path
from streamenc.bulk.inputs.archives import tarreading, wdstars
from streamenc.bulk.inputs.looks import look
from streamenc.bulk.items import Blob, Fault, Item, Region
from streamenc.errors import UsageError
from tests.support.bulksets import all_of, items_of, opened, sounds, spans_of, wav, write_tar

LONG = "a/" * 60 + "clip"  # longer than a plain header holds


def content(item: Item, scratch: Path) -> bytes:
    with local_path(item.media, scratch) as path:
        return Path(path).read_bytes()


def members(count: int = 3) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for key, data in sounds(count).items():
        found |= {f"{key}.wav": data, f"{key}.txt": f"text of {key}".encode()}
    return found


def test_samples_are_those_of_the_library(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    shard = tmp_path / "000.tar"
    with webdataset.TarWriter(str(shard)) as writer:
        for key, data in sounds(4).items():
            writer.write({"__key__": f"part/{key}", "wav": data, "json": {"k": key}, "cls": 3})
    write_tar(tmp_path / "001.tar", {"x.y/b.MIC1.wav": wav(1), "x.y/b.txt": b"b", ".c.wav": b"c"})
    found = items_of(opened(tmp_path, tmp_path / "kept"))
    expected = []
    for path in (shard, tmp_path / "001.tar"):
        with open(path, "rb") as file:
            members = webdataset.tariterators.tar_file_iterator(file)
            named = (member | {"__url__": ""} for member in members)
            for each in webdataset.tariterators.group_by_keys(named):
                sound = each.get("wav") or each["mic1.wav"]
                expected.append((each["__key__"], sound, each.get("cls")))
    assert len(expected) == 5
    got = [(item.key, content(item, tmp_path), item.columns["cls"]) for item in found]
    assert got == [(key, data, cls and cls.decode()) for key, data, cls in expected]
    assert found[1].columns == {"json": '{"k": "clip01"}', "cls": "3"}
    assert found[4].flags == ("left_out",)  # txt is in none of the first samples of the first tar


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_formats(tmp_path: Path, format: int, name: str):
    held = {f"{LONG}.wav": wav(1), "b.wav": wav(2), "b.txt": b"b"}
    if format != tarfile.USTAR_FORMAT:
        held |= {LONG * 3 + "ü.wav": wav(3)}
    path = write_tar(tmp_path / name, held, "w:gz" if name.endswith("gz") else "w", format)
    found = items_of(opened(path, tmp_path / "kept"))
    assert [item.key for item in found] == [n[:-4] for n in held if n.endswith("wav")]
    assert [content(item, tmp_path) for item in found] == [
        data for n, data in held.items() if n.endswith("wav")
    ]
    kind = Blob if name.endswith("gz") else Region
    assert {type(item.media) for item in found} == {kind}


def test_large_members_of_a_zipped_tar_stay_where_they_are(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tarreading, "MAX_BLOB_BYTES", 40_000)
    held = {"a.wav": wav(0), "b.wav": wav(1, 2.0), "c.wav": wav(2), "d.wav": wav(3, 3.0)}
    path = write_tar(tmp_path / "a.tgz", held, "w:gz")
    found = items_of(opened(path, tmp_path / "kept"))
    assert [type(item.media) for item in found] == [Blob, Region, Blob, Region]
    assert [content(item, tmp_path) for item in found] == list(held.values())


def test_addresses(tmp_path: Path):
    for number in range(8, 12):
        write_tar(tmp_path / f"s-{number:03d}.tar", {f"{number}.wav": wav(0)})
    for at, (address, numbers) in enumerate(
        (
            ("", [8, 9, 10, 11]),
            ("s-{008..011}.tar", [8, 9, 10, 11]),
            ("s-01?.tar", [10, 11]),
            ("{s-{010,008},s-009}.tar", [10, 8, 9]),
            ("s-0{08,1*}.tar", [8, 10, 11]),
            ("s-009.tar", [9]),
        )
    ):
        whole = f"{tmp_path}/{address}"
        assert look(whole) == "webdataset"
        input = opened(whole, tmp_path / f"kept{at}")
        assert [span.source for span in spans_of(input)] == [f"s-{n:03d}.tar" for n in numbers]
        assert [item.key for item in items_of(input)] == [str(n) for n in numbers]
    with pytest.raises(UsageError, match=r"there is no .*s-012.tar'"):
        spans_of(opened(f"{tmp_path}/s-{{008..012}}.tar", tmp_path / "kept"))


def test_which_member(tmp_path: Path):
    held = {"a.wav": wav(0), "a.mp4": b"film", "a.jpg": b"image", "b.near.wav": wav(1)}
    held |= {"b.far.wav": wav(2), "c.txt": b"c", "c.png": b"image"}
    path = write_tar(tmp_path / "a.tar", held)
    first, second, third = all_of(opened(path, tmp_path / "kept"))
    assert isinstance(first, Item) and content(first, tmp_path) == held["a.wav"]
    assert first.columns == {"txt": None}  # other media are no columns
    assert isinstance(second, Fault) and "far.wav" in second.reason and "member" in second.reason
    assert isinstance(third, Fault) and "without sound: it has png, txt" in third.reason
    _, chosen, _ = all_of(opened(path, tmp_path / "kept", member="far.wav"))
    assert isinstance(chosen, Item) and content(chosen, tmp_path) == held["b.far.wav"]
    film, _, image = all_of(opened(path, tmp_path / "kept", "video"))
    assert isinstance(film, Item) and content(film, tmp_path) == b"film"
    assert isinstance(image, Item) and content(image, tmp_path) == b"image"


def test_what_is_too_large_for_a_column(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(wdstars, "MAX_COLUMN_BYTES", 100)
    held = {"a.wav": wav(0), "a.npy": b"n" * 100, "b.wav": wav(1), "b.npy": b"n" * 101}
    held |= {"c.wav": wav(2), "c.txt": b"\xff", "c.pth": b"n" * 101, "d.wav": wav(3), "d.txt": b""}
    found = items_of(opened(write_tar(tmp_path / "a.tar", held), tmp_path / "kept"))
    assert [item.columns for item in found] == [
        {"npy": b"n" * 100, "txt": None},
        {"npy": None, "txt": None},
        {"npy": None, "txt": None},
        {"npy": None, "txt": ""},
    ]
    assert [item.flags for item in found] == [(), ("left_out",), ("left_out",), ()]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_cut_off_anywhere(tmp_path: Path, name: str):
    """Whole members are items; nothing is lost in silence."""
    held = members()
    path = write_tar(tmp_path / name, held, "w:gz" if name.endswith("gz") else "w")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        ends = [i.offset_data + i.size for i in archive if i.name.endswith("wav")]
        last = max(i.offset_data + i.size for i in archive)
    steps = range(0, len(whole), 2999 if name.endswith("gz") else 512 * 3 + 7)
    for cut in [*steps, *([*ends, 512, 1024] if name == "a.tar" else [])]:
        path.write_bytes(whole[:cut])
        input = wdstars.WebDatasetInput(str(path), "audio", tmp_path)
        input._columns = pa.schema([("txt", pa.string())])
        found = all_of(input)
        items = [each for each in found if isinstance(each, Item)]
        assert [content(i, tmp_path) for i in items] == [held[f"{i.key}.wav"] for i in items]
        if name == "a.tar":
            assert len(items) == sum(end <= cut for end in ends)
            assert isinstance(found[-1], Fault) or cut > -(-last // 512) * 512, cut
        else:
            assert isinstance(found[-1], Fault) or len(items) == 3, cut


def test_words_for_damage(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", members())
    whole = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        third = archive.getmembers()[4]

    def reasons(content: bytes) -> list[str]:
        path.write_bytes(content)
        (tmp_path / "files.json").unlink(missing_ok=True)
        found = all_of(wdstars.WebDatasetInput(str(path), "audio", tmp_path))
        return [each.reason if isinstance(each, Fault) else each.key for each in found]

    assert reasons(whole) == ["clip00", "clip01", "clip02"]
    shown = f"{str(path)!r}"
    assert reasons(whole[: third.offset_data + 100])[2:] == [
        f"{shown} ends within 'clip02.wav': it was cut off"
    ]
    assert "lacks the zeros" in reasons(whole[: third.offset])[2]
    assert "ends within a header" in reasons(whole[: third.offset + 100])[2]
    whole[third.offset + 20] ^= 1
    assert f"the header at byte {third.offset:,} is damaged" in reasons(whole)[2]
    assert "is no tar" in reasons(b"RIFF" * 500)[0]
    assert "is empty" in reasons(b"")[0]
    with pytest.raises(UsageError, match=r"no sample of WebDataset in .*a.tar' is empty"):
        wdstars.WebDatasetInput(str(path), "audio", tmp_path).columns()
    write_tar(tmp_path / "b.tar", {"a.wav": wav(0), "a.txt": b"a"})
    input = opened(tmp_path, tmp_path / "kept")
    assert input.columns().names == ["txt"]
    assert [type(each) for each in all_of(input)] == [Fault, Item]


def test_what_is_no_file_stays_a_word(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (
            ("a.wav", tarfile.SYMTYPE, "/etc/passwd"),
            ("b.wav", tarfile.LNKTYPE, "../b.wav"),
            ("c.wav", tarfile.CHRTYPE, ""),
            ("folder.wav", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name in ("/etc/d.wav", "../../e.wav"):
            info = tarfile.TarInfo(name)
            info.size = len(wav(0))
            archive.addfile(info, io.BytesIO(wav(0)))
    before = sorted(os.listdir(tmp_path))
    found = all_of(wdstars.WebDatasetInput(str(path), "audio", tmp_path))
    assert [each.key for each in found] == ["a", "b", "/etc/d", "../../e"]
    assert [isinstance(each, Fault) and "is a link" in each.reason for each in found[:2]] == [1, 1]
    assert sorted({*os.listdir(tmp_path)} - {"files.json"}) == before


def test_two_members_of_one_name(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a.wav", "a.WAV", "b.wav"):
            info = tarfile.TarInfo(name)
            info.size = len(wav(0))
            archive.addfile(info, io.BytesIO(wav(0)))
    first, second = all_of(opened(path, tmp_path / "kept"))
    assert isinstance(first, Fault) and "two members are called a.wav" in first.reason
    assert isinstance(second, Item)


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "hostile",
    [
        header("x", 1 << 40, tarfile.XHDTYPE),
        header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        header("x", 0, tarfile.XHDTYPE) * 2000,
        header("x", 512, tarfile.XHDTYPE) + b"24 GNU.sparse.major=1\n".ljust(512, b"\0"),
        header("x.wav", -(1 << 20), tarfile.REGTYPE),
        header("x.wav", 1 << 60, tarfile.REGTYPE) + b"RIFF",
    ],
    ids=["pax", "long name", "deep", "sparse", "negative", "huge"],
)
def test_a_hostile_header_is_a_fault(tmp_path: Path, hostile: bytes):
    path = write_tar(tmp_path / "a.tar", {"a.wav": wav(0)})
    whole = path.read_bytes()[: 512 + -(-len(wav(0)) // 512) * 512]
    path.write_bytes(whole + hostile)
    first, second = all_of(opened(path, tmp_path / "kept"))
    assert isinstance(first, Item) and first.key == "a"
    assert isinstance(second, Fault) and second.error == "MediaError"


def test_names_that_are_no_text(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name in ("\udcff.wav", "\udcfe.wav"):
            info = tarfile.TarInfo(name)
            info.size = len(wav(0))
            archive.addfile(info, io.BytesIO(wav(0)))
    keys = [item.key for item in items_of(opened(path, tmp_path / "kept"))]
    assert keys == [r"\xff", r"\xfe"]


def test_a_tar_in_a_store(tmp_path: Path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    held = {"a.wav": wav(0), "a.txt": b"a", "b.wav": wav(1, 2.0)}
    for number in range(2):
        local = write_tar(tmp_path / f"{number}.tar", held)
        store.pipe(f"/set/{number}.tar", local.read_bytes())
    monkeypatch.setattr(tarreading, "MAX_BLOB_BYTES", 40_000)
    try:
        for number, address in enumerate(
            ("memory://set", "memory://set/{0..1}.tar", "memory://set/*.tar")
        ):
            found = items_of(opened(address, tmp_path / f"kept{number}"))
            assert [item.key for item in found] == ["a", "b"] * 2
            assert [type(item.media) for item in found] == [Blob, Region] * 2
            assert [content(item, tmp_path) for item in found] == [held["a.wav"], held["b.wav"]] * 2
    finally:
        store.rm("/set", recursive=True)


def test_headers_are_bounded_and_braces_too(tmp_path: Path):
    assert tarreading.MAX_HEADER_BYTES <= 1 << 20
    with pytest.raises(UsageError, match="more than 1,000,000 names"):
        spans_of(opened(f"{tmp_path}/{{0..9}}{{000000..999999}}.tar", tmp_path / "kept"))
