"""SharShard: rows as Lhotse Shar, cuts in one file and the tokens of each model in another."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs.rowcolumns import RowColumns, json_line
from streamenc.bulk.outputs.shard import Shard
from streamenc.bulk.outputs.tarmembers import TarMembers, member_name, npy
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.io.files.output import open_output, output_error

# Columns of these names are what is said in a cut: its supervision.
SAID = ("text", "speaker", "language", "gender")
RECORDING = {"id", "sources", "sampling_rate"}


class SharShard(Shard):
    """For `lhotse.CutSet.from_shar(in_dir=OUTPUT/data)`: cuts.000000.jsonl.gz, codes.000000.tar.

    Frames come first, (frames, codebooks), as Lhotse cuts its arrays: `cut.load_codes()` is the
    transpose of what `codec.encode` gives, and `cut.truncate` keeps the codes of what it keeps.
    Tokens of the layouts flat and delay, and those of images, are given whole.

    The cut's recording says how long it is; its sound is not there. Who has it as another field of
    Shar, with the same cuts in the same order, gives both to `from_shar(fields=...)`.
    """

    suffix: ClassVar[str] = ".tar"

    def __init__(
        self, folder: Path, part: int, models: Sequence[ModelFacts], columns: pa.Schema
    ) -> None:
        super().__init__(folder, part, models, columns)
        self._columns = RowColumns(models, columns)
        *tars, self._path = self.paths
        self._tars = [TarMembers(path) for path in tars]
        self._file = open_output(str(self._path))
        self._cuts = gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._file, mtime=0)

    @classmethod
    def names(cls, part: int, models: Sequence[ModelFacts]) -> list[str]:
        tars = [f"{field_of(facts)}.{part:06d}.tar" for facts in models]
        return [*tars, f"cuts.{part:06d}.jsonl.gz"]

    def write(self, row: Row) -> None:
        name = row.key if _is_path(row.key) else member_name(row.key)
        record = self._columns.record(row)
        custom: dict[str, Any] = {each: _harmless(value) for each, value in record.items()}
        supervision = {said: custom.pop(said) for said in SAID if _is_text(record.get(said))}
        for facts, named, tokens, tar in zip(
            self.models, self._columns.names, row.tokens, self._tars, strict=True
        ):
            data = np.moveaxis(tokens.data, 1, 0)
            data = data[:, 0] if facts.layout == "flat" else data
            manifest = _manifest(facts, data, row)
            tar.add(f"{name}.npy", npy(data))
            tar.add(f"{name}.json", json_line(manifest))
            custom[field_of(facts)] = manifest
            if named.scales:
                custom[named.scales] = _numbers(tokens)
        span = {"start": 0, "duration": row.seconds, "channel": 0}
        said = {"id": name, "recording_id": name, **span, **supervision}
        cut = {
            "id": name,
            **span,
            "supervisions": [said] if supervision else [],
            "custom": custom,
            "type": "MonoCut",
        }
        if self.models[0].takes == "audio":
            cut["recording"] = _recording(name, row)
        try:
            self._cuts.write(json_line(cut))
        except OSError as error:
            raise output_error(str(self._path), error) from error

    def complete(self) -> None:
        for tar in self._tars:
            tar.complete()
        try:
            self._cuts.close()
            self._file.close()
        except OSError as error:
            raise output_error(str(self._path), error) from error

    def discard(self) -> None:
        for tar in self._tars:
            tar.discard()
        for file in (self._cuts, self._file):
            with suppress(OSError):
                file.close()
        self._path.unlink(missing_ok=True)


def field_of(facts: ModelFacts) -> str:
    """The field of a cut that a model's output is in; `features` is one of Lhotse's own."""
    return "model_features" if facts.column == "features" else facts.column


def _manifest(facts: ModelFacts, data: np.ndarray[Any, Any], row: Row) -> dict[str, Any]:
    """What Lhotse knows of an array whose bytes stand beside it."""
    array = {
        "storage_type": "shar",
        "storage_path": "",
        "storage_key": "",
        "shape": list(data.shape),
    }
    rate = Fraction(facts.frame_rate)
    if facts.layout != "books" or facts.axes or not rate:
        return array
    shift, frames = float(1 / rate), len(data)
    # Lhotse takes as many frames as the cut's duration has, rounded: of the last one that is not
    # filled, half or more.
    if frames and math.floor(round(row.seconds / shift, 8) + 0.5) < frames:
        shift = row.seconds / frames
    return {"array": array, "temporal_dim": 0, "frame_shift": shift, "start": 0}


def _recording(name: str, row: Row) -> dict[str, Any]:
    """What Lhotse knows of sound that stands elsewhere."""
    return {
        "id": name,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": round(row.rate),
        "num_samples": row.n_samples,
        "duration": row.seconds,
        "channel_ids": [0],
    }


def _numbers(tokens: Tokens) -> list[float]:
    return [] if tokens.scales is None else [float(scale) for scale in tokens.scales]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(key: str) -> bool:
    """Whether Lhotse finds a key again by the name of a member."""
    path = PurePosixPath(f"{key}.npy")
    return str(path.parent / path.stem) == key and path.suffix == ".npy"


def _harmless(value: Any) -> Any:
    """Without what Lhotse would take for manifests of its own: as text."""
    if isinstance(value, dict):
        names = set(value)
        if names & {"width", "shape", "array"} or names >= RECORDING:
            return json_line(value).decode().strip()
    return value
