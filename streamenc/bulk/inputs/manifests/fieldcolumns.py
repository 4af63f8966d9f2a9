"""FieldColumns: which columns the fields of a manifest's records become, found once for all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from streamenc.errors import UsageError

NAME = "columns.json"
MAX_FIELDS = 1000
INT64 = range(-(2**63), 2**63)
TYPES = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "json": pa.string(),
    "none": pa.string(),
}


class FieldColumns:
    """The fields of all records: numbers, text, or JSON for what is nested or of several types.

    Args:
        kept: Where they are written when they are first asked for; see Input.
        records: All of them, where nothing is kept yet.
    """

    def __init__(self, kept: Path, records: Iterable[Mapping[str, Any]]) -> None:
        path = kept / NAME
        if not path.exists():
            found: dict[str, str] = {}
            for record in records:
                for name, value in record.items():
                    if not _is_unicode(name):
                        continue
                    found[name] = _joined(found.get(name, "none"), _type_of(value))
                if len(found) > MAX_FIELDS:
                    raise UsageError(f"the records have more than {MAX_FIELDS} fields in all")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(found, file)
                file.flush()
                os.fsync(file.fileno())
        self._types: dict[str, str] = json.loads(path.read_bytes())

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(name, TYPES[kind]) for name, kind in self._types.items()])

    def values(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Of one record, by names of columns."""
        return {name: _value(record.get(name), kind) for name, kind in self._types.items()}


def _type_of(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in INT64 else "json"
    if isinstance(value, float):
        return "float"
    return "text" if isinstance(value, str) and _is_unicode(value) else "json"


def _joined(one: str, other: str) -> str:
    if "none" in (one, other):
        return other if one == "none" else one
    if one == other:
        return one
    return "float" if {one, other} == {"int", "float"} else "json"


def _value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value)
    return float(value) if kind == "float" else value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
