"""TokenizeJob: what is asked of a run, checked; two runs on one output have to ask the same."""

from __future__ import annotations

from typing import Any

import msgspec

from streamenc.errors import UsageError
from streamenc.nodes.codes.interleaving import Layout

FORMATS = ("parquet", "webdataset", "shar", "arrows", "npz")
DTYPES = ("", "float32", "float16")
ITEMS_PER_SHARD = 1000


class ModelAsk(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a job.

    Attributes:
        name: As `streamenc.load` takes it.
        options: Of `load`, for its family.
        codebooks: How many come out; None for all.
        dtype: What features are rounded to: "float32" or "float16"; "" for the model's own.
    """

    name: str
    options: dict[str, Any] = {}
    codebooks: int | None = None
    dtype: str = ""


class TokenizeJob(msgspec.Struct, frozen=True, kw_only=True):
    """What makes the bytes of a set: all that changes them, and nothing else.

    Attributes:
        input: A folder, glob, manifest, archive or table, as the user named it.
        input_kind: Which of the classes of `inputs` reads it: "folder", "wav.scp", ...
        input_options: Of that class.
        models: Of which each item is passed through all.
        layout: "books", "flat", "delay" or "delay:0,1,1,1"; see nodes.codes.interleaving.
        format: One of FORMATS.
        items_per_shard: At most; where an input has shards of its own, each is one.
        damaged: Whether items that are known not to be whole are kept, and flagged.
        channel: Which channels of sound are taken; "" for all, mixed.
        size, fit: Of images, as `streamenc encode` has them.
        verify: The share of the items that are encoded once more, alone and as a whole.
    """

    input: str
    models: tuple[ModelAsk, ...]
    input_kind: str = ""
    input_options: dict[str, Any] = {}
    layout: str = "books"
    format: str = "parquet"
    items_per_shard: int = ITEMS_PER_SHARD
    damaged: bool = False
    channel: str = ""
    size: str = ""
    fit: str = ""
    verify: float = 0.0

    def __post_init__(self) -> None:
        """Raises UsageError for what no job can have."""
        if self.format not in FORMATS:
            raise UsageError(f"format is one of {', '.join(FORMATS)}; got {self.format!r}")
        Layout.of(self.layout)
        if not self.models:
            raise UsageError("a job has a model; name one (-m nano)")
        for ask in self.models:
            if ask.dtype not in DTYPES:
                raise UsageError(f"dtype is float32 or float16, of features; got {ask.dtype!r}")
        if self.items_per_shard < 1 or not 0 <= self.verify <= 1:
            raise UsageError(
                "a shard has at least 1 item, and verify is a share from 0 to 1; got "
                f"{self.items_per_shard} and {self.verify:g}"
            )


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a set says of a model that made it.

    Attributes:
        name: Its public name, as `streamenc.load` takes it again.
        column: The column, or field, of its output: "codes", "features", "mimi_codes".
        kind: "codes" or "features".
        fingerprint: Of its weights and configuration.
        takes: "audio" or "video".
        rate, channels: Of what it takes, a fraction as text: "24000".
        frame_rate: Of what it makes, a fraction as text: "25/2"; of images as they come, "0".
        frames_per_image: Of those: how many frames it makes of each, "1/8"; "0" of sound.
        codebooks, codebook_size: Of codes; 0 of features.
        rows: Of an array of its output, (rows, frames): codebooks or bins; 1 where flat.
        dtype: numpy's name of its type.
        axes: Behind frames: 0 for sound, 2 for grids.
        entries: What all tokens are below; 0 of features.
        scaled: Whether each frame has a scale as well.
        layout: Of codes, as in TokenizeJob; "books" of features.
    """

    name: str
    column: str
    kind: str
    fingerprint: str
    takes: str
    rate: str
    channels: int
    frame_rate: str
    frames_per_image: str = "0"
    codebooks: int
    codebook_size: int
    rows: int
    dtype: str
    axes: int = 0
    entries: int = 0
    scaled: bool = False
    layout: str = "books"
