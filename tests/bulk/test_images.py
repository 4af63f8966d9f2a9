"""Sets of images and videos, from files to what is read back: each as the model gives it alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import datasets
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

import streamenc
from streamenc import bulk
from streamenc.bulk.tokendataset import TokenSet
from streamenc.bulk.tokenizejob import TokenizeJob
from streamenc.bulk.tokenizing import tokenize
from streamenc.codec import Codec
from streamenc.errors import UsageError
from tests.support.bulkoutputs import errors

FPS = 25
SIZES = {"a": (48, 64), "b": (37, 51), "c": (24, 32), "d": (96, 40)}
LEROBOT = "observation.images.front"
PICTURES = ("vqgan", "vae", "vit", "cosmos-codes")
VIDEO = ("cosmos", "cosmos-codes", "vqgan")


def pixels(height: int, width: int, number: int = 0) -> np.ndarray[Any, Any]:
    """uint8 (height, width, 3): waves of another phase with each number."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([x / 5 + y / 9, x / 7 - y / 11, y / 6], -1) + number / 3
    return (128 + 100 * np.sin(waves)).astype(np.uint8)


def saved(path: Path, picture: Image.Image | np.ndarray[Any, Any], **how: Any) -> Path:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(path, **how)
    return path


def write_pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    return [
        saved(folder / f"{name}{ending}", pixels(*size, number))
        for number, (name, size) in enumerate(SIZES.items())
        for ending in (".png", ".jpg")
    ]


def write_video(path: Path, count: int, first: int = 0, **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=FPS, width=64, height=48)
        stream.pix_fmt, stream.gop_size = "yuv420p", 5
        for number in range(first, first + count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels(48, 64, number))))
        container.mux(stream.encode(None))
    return path


def made(job: TokenizeJob, input: Path, output: Path, size: str = "", **more: Any) -> TokenSet:
    """The set that a job makes of an input, read back."""
    tokenize(msgspec.structs.replace(job, input=str(input), size=size, **more), output, workers=0)
    return bulk.open(output)


def model_of(job: TokenizeJob) -> Codec:
    (ask,) = job.models
    return streamenc.load(ask.name, backend="torch", **ask.options)


def by_key(tokens: TokenSet) -> dict[str, tuple[np.ndarray[Any, Any], Any]]:
    (model,) = tokens.models
    return {row["key"]: (row[model.column], row) for row in tokens}


def of_file(codec: Codec, path: Path, size: str = "") -> np.ndarray[Any, Any]:
    return codec.encode_file(path, **({"size": size} if size else {})).data


def of_pixels(codec: Codec, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of uint8 (3, images, height, width)."""
    encoded = codec.encode(images[None])
    assert isinstance(encoded, torch.Tensor)
    return encoded[0].numpy()


def smaller(codec: Codec, images: np.ndarray[Any, Any], height: int, width: int) -> Any:
    image = codec.spec.input.image
    assert image is not None
    filter = Image.Resampling[image.filter.upper()]
    scaled = [
        np.asarray(Image.fromarray(each).resize((width, height), filter))
        for each in images.transpose(1, 2, 3, 0)
    ]
    return np.stack(scaled).transpose(3, 0, 1, 2)


def check_decoded(tokens: TokenSet, codec: Codec, row: Any, data: np.ndarray[Any, Any]) -> None:
    """What a row is decoded to has the images that were encoded, as the codec decodes them."""
    kind = np.int64 if codec.spec.output.kind == "codes" else np.float32
    wanted = codec.decode(torch.from_numpy(data.astype(kind))[None])
    assert isinstance(wanted, torch.Tensor)
    found = tokens.decode(row)
    assert found.shape[:2] == (3, row["n_samples"])
    torch.testing.assert_close(found, wanted[0, :, : row["n_samples"]], rtol=0, atol=0)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("size", ["", "32x32"])
def test_a_folder_of_pictures(name: str, size: str, job_of: Any, tmp_path: Path) -> None:
    if name == "vit" and size:
        size = "12x12"  # the one that it takes
    job, paths = job_of(name), write_pictures(tmp_path / "in")
    tokens, codec = made(job, tmp_path / "in", tmp_path / "out", size), model_of(job)
    rows = by_key(tokens)
    assert list(rows) == sorted(path.name for path in paths) and not errors(tmp_path / "out")
    for path in paths:
        data, row = rows[path.name]
        wanted = of_file(codec, path, size)
        assert data.dtype == wanted.dtype
        np.testing.assert_array_equal(data, wanted)
        assert (row["n_samples"], row["flags"]) == (1, [])
        if codec.has_decoder:
            check_decoded(tokens, codec, row, wanted)
    if not size and name != "vit":
        shown = np.asarray(Image.open(tmp_path / "in/a.png")).transpose(2, 0, 1)
        np.testing.assert_array_equal(rows["a.png"][0], of_pixels(codec, shown[:, None]))
    if codec.spec.output.axes:
        table = pq.read_table(next((tmp_path / "out/data").iterdir())).to_pylist()
        column = tokens.models[0].column
        for row in table:
            assert row[f"{column}_shape"] == list(rows[row["key"]][0].shape)
            assert row[column] == rows[row["key"]][0].ravel().tolist()


@pytest.mark.parametrize("form", ["pyarrow", "datasets"])
def test_a_table_of_pictures(form: str, job_of: Any, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "files")
    table = tmp_path / "in.parquet"
    if form == "pyarrow":
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        images[1] = {"bytes": None, "path": str(paths[1])}
        columns = {"image": images, "label": list(range(len(paths)))}
        pq.write_table(pa.table(columns), table)
    else:
        held = {"image": [str(path) for path in paths], "label": list(range(len(paths)))}
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        datasets.Dataset.from_dict(held, features=features).to_parquet(table)
    job = job_of("vqgan")
    tokens, codec = made(job, table, tmp_path / "out", "32x32"), model_of(job)
    assert not errors(tmp_path / "out")
    rows = list(tokens)
    assert [row["label"] for row in rows] == list(range(len(paths)))
    for path, row in zip(paths, rows, strict=True):
        np.testing.assert_array_equal(row["codes"], of_file(codec, path, "32x32"))
        check_decoded(tokens, codec, row, row["codes"])


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("size", ["", "32x24"])
def test_a_folder_of_videos(name: str, size: str, job_of: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    paths = [write_video(tmp_path / f"in/{count}.mp4", count) for count in (1, 4, 10)]
    job = job_of(name)
    tokens, codec = made(job, tmp_path / "in", tmp_path / "out", size), model_of(job)
    rows = by_key(tokens)
    assert not errors(tmp_path / "out")
    for path in paths:
        data, row = rows[path.name]
        images = streamenc.read(path, kind="video").data
        assert row["n_samples"] == int(path.stem) == images.shape[1] and row["rate"] == FPS
        wanted = of_pixels(codec, smaller(codec, images, 24, 32) if size else images)
        np.testing.assert_array_equal(data, wanted)
        # A file's steps are others: features differ in what floats round.
        np.testing.assert_allclose(data, of_file(codec, path, size), rtol=0, atol=1e-5)
        check_decoded(tokens, codec, row, wanted)


@pytest.mark.parametrize(("name", "size"), [("cosmos", ""), ("cosmos-codes", "32x24")])
def test_segments_of_a_shared_video(name: str, size: str, job_of: Any, tmp_path: Path) -> None:
    images = streamenc.read(write_video(tmp_path / "all.mp4", 30), kind="video").data
    assert images.shape == (3, 30, 48, 64)
    spans = [(0, 5), (5, 14), (14, 15), (12, 22), (22, 30), (3, 9)]
    lines = [
        {"video_filepath": "all.mp4", "offset": start / FPS, "duration": (stop - start) / FPS}
        for start, stop in spans
    ]
    manifest = tmp_path / "in.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = job_of(name)
    tokens, codec = made(job, manifest, tmp_path / "out", size), model_of(job)
    assert not errors(tmp_path / "out")
    column = tokens.models[0].column
    for (start, stop), row in zip(spans, tokens, strict=True):
        piece = images[:, start:stop]
        wanted = of_pixels(codec, smaller(codec, piece, 24, 32) if size else piece)
        assert row["n_samples"] == stop - start
        np.testing.assert_array_equal(row[column], wanted)
        check_decoded(tokens, codec, row, wanted)


def test_episodes_of_a_robot(job_of: Any, tmp_path: Path) -> None:
    lengths, root = (5, 9, 4), tmp_path / "robot"
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    clip = root / f"videos/{LEROBOT}/chunk-000/file-000.mp4"
    clip.parent.mkdir(parents=True)
    images = streamenc.read(write_video(clip, sum(lengths)), kind="video").data
    ends = np.cumsum(lengths)
    table = {
        "episode_index": [0, 1, 2],
        "length": lengths,
        f"videos/{LEROBOT}/chunk_index": [0] * 3,
        f"videos/{LEROBOT}/file_index": [0] * 3,
        f"videos/{LEROBOT}/from_timestamp": (ends - lengths) / FPS,
        f"videos/{LEROBOT}/to_timestamp": ends / FPS,
    }
    pq.write_table(pa.table(table), root / "meta/episodes/chunk-000/file-000.parquet")
    info = {"codebase_version": "v3.0", "fps": FPS, "features": {LEROBOT: {"dtype": "video"}}}
    (root / "meta/info.json").write_text(json.dumps(info))
    job = job_of("cosmos-codes")
    tokens, codec = made(job, root, tmp_path / "out"), model_of(job)
    assert not errors(tmp_path / "out")
    for stop, length, row in zip(ends, lengths, tokens, strict=True):
        assert row["length"] == length == row["n_samples"]
        np.testing.assert_array_equal(
            row["codes"], of_pixels(codec, images[:, stop - length : stop])
        )
        check_decoded(tokens, codec, row, row["codes"])


# By name: what Pillow makes of pixels, and how it is saved.
MODES = {
    "palette.png": "P", "grey.png": "L", "bits.png": "1", "greyalpha.png": "LA", "cmyk.jpg": "CMYK",
    "grey.jpg": "L",
}  # fmt: skip


def test_pictures_of_other_modes(job_of: Any, tmp_path: Path) -> None:
    """As this project's own readers have them; those of which Pillow says the same, as Pillow."""
    folder = tmp_path / "in"
    folder.mkdir()
    whole = pixels(48, 64)
    for name, mode in MODES.items():
        saved(folder / name, Image.fromarray(whole).convert(mode))
    deep = saved(folder / "deep.png", whole[..., 0].astype(np.uint16) * 257)
    alpha = np.dstack([whole, np.arange(64, dtype=np.uint8) * 4 * np.ones((48, 1), np.uint8)])
    saved(folder / "alpha.png", alpha)
    exif = Image.Exif()
    exif[0x112] = 6
    turned = saved(folder / "turned.jpg", whole, exif=exif)
    job = job_of("vqgan")
    tokens, codec = made(job, folder, tmp_path / "out"), model_of(job)
    rows = by_key(tokens)
    assert len(rows) == len(MODES) + 3 and not errors(tmp_path / "out")
    for key, (data, row) in rows.items():
        np.testing.assert_array_equal(data, of_file(codec, folder / key), err_msg=key)
        assert row["n_samples"] == 1
    assert rows[turned.name][0].shape == (1, 1, 16, 12)  # upright
    upright = ImageOps.exif_transpose(Image.open(turned))
    assert upright.size == (48, 64)
    for name in ("palette.png", "grey.png"):
        shown = np.asarray(Image.open(folder / name).convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(rows[name][0], of_pixels(codec, shown[:, None]))
    assert deep.name in rows


def test_what_is_broken_is_told(job_of: Any, tmp_path: Path) -> None:
    """With the error that its own reader has, and what is whole beside it is as it was."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = saved(folder / "good.png", pixels(48, 64))
    whole = io.BytesIO()
    Image.fromarray(pixels(48, 64)).save(whole, "JPEG")
    for name, content in {
        "cut.png": good.read_bytes()[: good.stat().st_size // 2],
        "cut.jpg": whole.getvalue()[: len(whole.getvalue()) // 2],
        "empty.jpg": b"",
        "noise.png": bytes(range(256)) * 4,
        "text.png": b"no picture\n" * 20,
    }.items():
        (folder / name).write_bytes(content)
    for name, options in {"cut.mp4": {}, "fast.mp4": {"movflags": "+faststart"}}.items():
        path = write_video(folder / name, 40, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    job = job_of("vqgan")
    tokens, codec = made(job, folder, tmp_path / "out"), model_of(job)
    rows, told = by_key(tokens), errors(tmp_path / "out")
    assert list(rows) == ["good.png"]
    np.testing.assert_array_equal(rows["good.png"][0], of_file(codec, good))
    assert sorted(told) == sorted({path.name for path in folder.iterdir()} - {"good.png"})
    for name, each in told.items():
        assert each["error"] == "MediaError", name
        assert "FLAC" not in each["reason"] and len(each["reason"]) > 20
    assert "cut short" in told["cut.png"]["reason"] and "moov" in told["cut.mp4"]["reason"]
    # Asked for what is damaged as well, there is what can be decoded, with a flag.
    kept = by_key(made(job, folder, tmp_path / "kept", damaged=True))
    assert list(kept) == ["fast.mp4", "good.png"]
    data, row = kept["fast.mp4"]
    assert row["flags"] == ["damaged"] and 0 < data.shape[1] == row["n_samples"] < 40


def test_more_images_than_a_model_takes(job_of: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    job = job_of("cosmos")
    (ask,) = job.models
    job = msgspec.structs.replace(job, models=(msgspec.structs.replace(ask, options={"limit": 2}),))
    for count in (9, 10):
        write_video(tmp_path / f"in/{count:02}.mp4", count)
    tokens = made(job, tmp_path / "in", tmp_path / "out")
    assert list(by_key(tokens)) == ["09.mp4"]
    ((key, told),) = errors(tmp_path / "out").items()
    assert key == "10.mp4" and "limit" in told["reason"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "16x16"}, "loaded for images of 12x12"),
        ({"size": "12"}, "must be WIDTHxHEIGHT"),
        ({"fit": "round"}, "one of crop, pad, stretch"),
        ({"channel": "1"}, "channel is of sound"),
    ],
)
def test_options_that_no_image_can_have(
    options: dict[str, str], words: str, job_of: Any, tmp_path: Path
) -> None:
    """They refuse the run, and are no error of each item."""
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in/a.png", pixels(24, 24))
    job = msgspec.structs.replace(job_of("vit"), input=str(tmp_path / "in"), **options)
    with pytest.raises(UsageError, match=words):
        tokenize(job, tmp_path / "out", workers=0)
    assert not errors(tmp_path / "out")
