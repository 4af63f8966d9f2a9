"""RowColumns: the columns of a set, in any format: its own, and those that are passed through."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from streamenc.bulk.items import Row
from streamenc.bulk.tokenizejob import ModelFacts

METADATA_KEY, VERSION = b"streamenc.tokens", 1
# What pyarrow raises for a value that is not of a type.
_MISFITS = (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError)


class Named(NamedTuple):
    """The columns of one model.

    Attributes:
        tokens: Its output.
        shape: The shape of that, where it is a grid and the list therefore flat; else "".
        scales: A number for each frame; "" where it has none.
        gaps: Which frames do not follow on from the one before.
        frame_rate, model, fingerprint: Of the model.
    """

    tokens: str
    shape: str
    scales: str
    gaps: str
    frame_rate: str
    model: str
    fingerprint: str


class Passed(NamedTuple):
    """A column that is passed through.

    Attributes:
        source: Its name in the input, and in Row.columns.
        field: As it is in the set.
    """

    source: str
    field: pa.Field


def names_of(facts: ModelFacts) -> Named:
    """What the columns of a model are called: with one model "codes", "gaps", "model"; with several
    "mimi_codes", "mimi_gaps", "mimi_model"."""
    prefix = facts.column.removesuffix(facts.kind)
    return Named(
        tokens=facts.column,
        shape=f"{facts.column}_shape" if facts.axes else "",
        scales=f"{prefix}scales" if facts.scaled else "",
        gaps=f"{prefix}gaps",
        frame_rate=f"{prefix}frame_rate",
        model=f"{prefix}model",
        fingerprint=f"{prefix}fingerprint",
    )


class RowColumns:
    """The columns of a set.

    What they are called follows from the plan alone: of a column of the input that has the name of
    one of the set's own, the name ends in `_in`.

    Args:
        models: Whose tokens each row has.
        columns: What is passed through.

    Attributes:
        names: Of each model.
        passed: What is passed through.
        schema: All of them, and in its metadata what the models are.
    """

    def __init__(self, models: Sequence[ModelFacts], columns: pa.Schema) -> None:
        self.models, self.names = tuple(models), [names_of(facts) for facts in models]
        own = [pa.field("key", pa.string(), nullable=False)]
        for facts, names in zip(models, self.names, strict=True):
            own.append(pa.field(names.tokens, tokens_type(facts)))
            if names.shape:
                own.append(pa.field(names.shape, pa.list_(pa.int32())))
            if names.scales:
                own.append(pa.field(names.scales, pa.list_(pa.float32())))
            own.append(pa.field(names.gaps, pa.list_(pa.int64())))
        own += [
            pa.field("n_samples", pa.int64()),
            pa.field("rate", pa.float64()),
            pa.field("seconds", pa.float64()),
        ]
        for names in self.names:
            own.append(pa.field(names.frame_rate, pa.float64()))
            own.append(pa.field(names.model, pa.string()))
            own.append(pa.field(names.fingerprint, pa.string()))
        own.append(pa.field("flags", pa.list_(pa.string())))
        self.passed = _passed([field.name for field in own], columns)
        self.schema = pa.schema(
            [*own, *(passed.field for passed in self.passed)],
            metadata={METADATA_KEY: described(models)},
        )

    def record(self, row: Row) -> dict[str, Any]:
        """All of a row but its arrays, as JSON has it."""
        made: dict[str, Any] = {
            "key": row.key,
            "n_samples": row.n_samples,
            "rate": row.rate,
            "seconds": row.seconds,
        }
        for facts, names, tokens in zip(self.models, self.names, row.tokens, strict=True):
            made[names.gaps] = list(tokens.gaps)
            made[names.frame_rate] = frame_rate(facts, row)
            made[names.model], made[names.fingerprint] = facts.name, facts.fingerprint
        flags = list(row.flags)
        for passed in self.passed:
            array, misfits = fitted([row.columns.get(passed.source)], passed.field.type)
            if misfits:
                flags.append(flag(passed))
            made[passed.field.name] = plain(_without_nanoseconds(array)[0].as_py())
        return made | {"flags": flags}


def tokens_type(facts: ModelFacts) -> pa.DataType:
    """list<list<T>>, (rows, frames); list<T> where flat, and of grids."""
    made = pa.list_(pa.from_numpy_dtype(np.dtype(facts.dtype)))
    return made if facts.layout == "flat" or facts.axes else pa.list_(made)


def frame_rate(facts: ModelFacts, row: Row) -> float:
    """Frames of tokens a second: of images, by how many of those there are in this row."""
    if Fraction(facts.frame_rate):
        return float(Fraction(facts.frame_rate))
    return row.rate * float(Fraction(facts.frames_per_image))


def flag(passed: Passed) -> str:
    """What a row says of a value that was not of its column's type."""
    return f"column:{passed.field.name}"


def described(models: Sequence[ModelFacts]) -> bytes:
    """What the models are, for a file that is found alone."""
    return msgspec.json.encode({"version": VERSION, "models": list(models)})


def fitted(values: Sequence[Any], type: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Values as a column, in which those that are not of its type are null; and which they are."""
    with suppress(*_MISFITS):
        if not any(_would_round(value, type) for value in values):
            return pa.array(values, type), []
    misfits = [at for at, value in enumerate(values) if not _fits(value, type)]
    kept = list(values)
    for at in misfits:
        kept[at] = None
    return pa.array(kept, type), misfits


def plain(value: Any) -> Any:
    """A value of a column as JSON has it: bytes in base64, what is no number in JSON as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)  # decimals


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as one line, in UTF-8."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _passed(own: Sequence[str], columns: pa.Schema) -> list[Passed]:
    taken = {*own, *columns.names}
    found = []
    for field in columns:
        name = field.name
        if name in own:
            while name in taken:
                name += "_in"
            taken.add(name)
        found.append(Passed(field.name, field.with_name(name).with_nullable(True)))
    return found


def _without_nanoseconds(array: pa.Array) -> pa.Array:
    """Python's times have none, and pandas may not be there."""
    if pa.types.is_timestamp(array.type) and array.type.unit == "ns":
        return array.cast(pa.timestamp("us", array.type.tz), safe=False)
    if pa.types.is_duration(array.type) and array.type.unit == "ns":
        return array.cast(pa.duration("us"), safe=False)
    if array.type == pa.time64("ns"):
        return array.cast(pa.time64("us"), safe=False)
    return array


def _fits(value: Any, type: pa.DataType) -> bool:
    try:
        pa.array([value], type)
    except _MISFITS:
        return False
    return not _would_round(value, type)


def _would_round(value: Any, type: pa.DataType) -> bool:
    """Whether pyarrow would make another whole number of it, without a word."""
    if pa.types.is_integer(type):
        return isinstance(value, float) and not value.is_integer()
    if pa.types.is_struct(type):
        return isinstance(value, Mapping) and any(
            _would_round(value.get(field.name), field.type) for field in type
        )
    if pa.types.is_nested(type) and not pa.types.is_map(type):
        inner = isinstance(value, list | tuple)
        return inner and any(_would_round(each, type.value_type) for each in value)
    return False
