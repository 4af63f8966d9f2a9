"""Which column of a table holds the sound or images, and what a value of it is."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as types

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.items import Blob, Local, Media, Remote
from streamenc.errors import InputError, UsageError

# By what models take: what columns are called, those of `datasets` in its types, those of paths.
NAMES = {
    "audio": ("audio", "sound", "speech", "wav", "flac", "mp3", "opus", "ogg", "audio_bytes"),
    "video": ("video", "image", "img", "mp4", "webm", "jpg", "jpeg", "png", "webp", "image_bytes"),
}
FEATURES = {"audio": ("Audio", "Video"), "video": ("Video", "Image")}
PATHS = {
    "audio": (
        "audio_filepath", "audio_path", "audio_file", "path", "file_path", "filepath", "file",
        "file_name", "filename",
    ),
    "video": (
        "video_path", "video_file", "image_path", "image_file", "path", "file_path", "filepath",
        "file", "file_name", "filename",
    ),
}  # fmt: skip
RATES = ("sampling_rate", "sample_rate", "samplerate", "rate", "sr")
WHAT = {"audio": "sound", "video": "images or film"}
MAX_SOUND_BYTES = 2**31  # of an array of samples, as a file


class MediaColumn:
    """The column that is encoded.

    A value is a struct of bytes and path, either of which may be null, as `datasets` stores sound,
    video and images; or bytes; or the path of a file, from the table's folder on, or a URL; or
    samples: a struct of `array` and `sampling_rate`, or a list of numbers beside a column
    `sampling_rate`.

    Args:
        schema: Of the table.
        takes: "audio" or "video".
        column: Its name; "" for the one that fits.

    Attributes:
        name: Its name.
        rate: The column of sample rates; "" where samples do not need one.
        others: Columns of other media, or of this one in another form.

    Raises UsageError where none fits, or several.
    """

    def __init__(self, schema: pa.Schema, takes: str, column: str = "") -> None:
        self._takes = takes
        features = _features(schema)
        forms = {field.name: _form(field.type) for field in schema}
        self.name = column or self._found(forms, features)
        if self.name not in forms:
            raise UsageError(f"there is no column {column!r}; there are {_described(schema)}")
        self._form = forms[self.name]
        if not self._form:
            raise UsageError(
                f"the column {self.name!r} holds {schema.field(self.name).type}; sound and images "
                "are bytes, paths, structs of both, or samples beside a sampling_rate"
            )
        self.rate = ""
        if self._form == "samples":
            self.rate = next((name for name in RATES if name in schema.names), "")
            if not self.rate:
                raise UsageError(f"{self.name!r} holds samples, and there is no sampling_rate")
        media = {*NAMES["audio"], *NAMES["video"]}
        self.others = frozenset(
            name
            for name, form in forms.items()
            if name != self.name
            and (
                features.get(name, "") in ("Audio", "Video", "Image")
                or form in ("struct", "arrays")
                or (form in ("bytes", "samples") and name.lower() in media)
            )
        )
        self._schema = schema

    def _found(self, forms: Mapping[str, str], features: Mapping[str, str]) -> str:
        takes, names = self._takes, NAMES[self._takes]
        usable = {name: form for name, form in forms.items() if form}
        tiers = (
            [
                name
                for name, form in usable.items()
                if features.get(name) == feature and form != "samples"
            ]
            for feature in FEATURES[takes]
        )
        by_type = [
            *tiers,
            [n for n, form in usable.items() if form in ("struct", "arrays", "bytes")],
            [n for n, form in usable.items() if form == "samples" and n.lower() in names],
        ]
        foreign = {n for n, kind in features.items() if kind in ("Audio", "Video", "Image")}
        foreign -= {n for n, kind in features.items() if kind in FEATURES[takes]}
        for tier in by_type:
            fitting = [name for name in tier if name not in foreign]
            named = [name for name in fitting if name.lower() in names]
            if len(fitting) == 1:
                return fitting[0]
            if named:
                return min(named, key=lambda name: names.index(name.lower()))
            if fitting:
                raise UsageError(
                    f"several columns hold {WHAT[takes]}: {', '.join(fitting)}; say which one by "
                    "the input's option column"
                )
        paths = [n for n, form in usable.items() if form == "path"]
        for name in (*names, *PATHS[takes]):
            if name in paths:
                return name
        raise UsageError(
            f"there is no column of {WHAT[takes]} among {', '.join(forms)}; say which one it is by "
            "the input's option column"
        )

    def media(self, value: pa.Scalar, rate: Any, folder: str, where: str) -> Media:
        """What a value is.

        folder  That paths are from.
        where   The row, for people.

        Raises InputError for nothing, and for what is no media.
        """
        if not value.is_valid:
            raise InputError("there is nothing in this row")
        if self._form == "bytes":
            return _blob(value.as_py(), where)
        if self._form == "path":
            return _file(value.as_py(), folder)
        if self._form == "samples":
            return _samples(value, rate, where)
        if self._form == "arrays":
            return _samples(value["array"], value["sampling_rate"].as_py(), where)
        content = value["bytes"].as_py()
        path = value["path"].as_py() if "path" in value else None
        if content is not None:
            return _blob(content, f"{where} ({os.path.basename(path)})" if path else where)
        if not path:
            raise InputError("it has neither bytes nor a path")
        return _file(path, folder)


def _blob(content: bytes, where: str) -> Blob:
    if not content:
        raise InputError("it has no bytes")
    return Blob(content, where)


def _file(path: str, folder: str) -> Media:
    if not path:
        raise InputError("its path is empty")
    whole = filesystem.joined(folder, path)
    try:
        remote = filesystem.is_remote(whole)
    except UsageError as error:
        raise InputError(str(error)) from error
    return Remote(whole) if remote else Local(os.path.abspath(filesystem.local_name(whole)))


def _samples(values: pa.Scalar, rate: Any, where: str) -> Blob:
    """Samples as a WAV of floats, or of 16-bit numbers."""
    if not values.is_valid or not len(values):
        raise InputError("it has no samples")
    if not isinstance(rate, int | float) or not 0 < rate < 2**31 or rate != int(rate):
        raise InputError(f"its sampling rate is {rate}")
    samples = values.values.to_numpy(zero_copy_only=False)
    if samples.dtype == np.int16:
        code, made = 1, samples.astype("<i2", copy=False)
    else:
        code, made = 3, samples.astype("<f4", copy=False)
    if made.nbytes >= MAX_SOUND_BYTES:
        raise InputError(f"it has {len(made):,} samples, more than one file holds")
    width = made.itemsize
    form = struct.pack("<HHIIHH", code, 1, int(rate), int(rate) * width, width, 8 * width)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    if code == 3:
        chunks += b"fact" + struct.pack("<II", 4, len(made))
    chunks += b"data" + struct.pack("<I", made.nbytes)
    head = b"RIFF" + struct.pack("<I", len(chunks) + made.nbytes) + chunks
    return Blob(head + made.tobytes(), where)


def _form(type: pa.DataType) -> str:
    """What media a column of this type may hold: "struct", "arrays", "bytes", "path", "samples"."""
    if types.is_dictionary(type):
        return _form(type.value_type)
    if types.is_struct(type):
        names = {field.name: _form(field.type) for field in type}
        if names.get("bytes") == "bytes":
            return "struct"
        return "arrays" if "sampling_rate" in names and names.get("array") == "samples" else ""
    if types.is_binary(type) or types.is_large_binary(type) or types.is_binary_view(type):
        return "bytes"
    if types.is_string(type) or types.is_large_string(type) or types.is_string_view(type):
        return "path"
    if types.is_list(type) or types.is_large_list(type):
        inner = type.value_type
        return "samples" if types.is_floating(inner) or types.is_int16(inner) else ""
    return ""


def _features(schema: pa.Schema) -> dict[str, str]:
    """What `datasets` says of columns: "Audio", "Image", ..."""
    noted = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        features = json.loads(noted)["info"]["features"]
        return {name: str(each.get("_type", "")) for name, each in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{shown_address(field.name)} ({field.type})" for field in schema)
