"""Cuts of Lhotse: what a line of a manifest of cuts says, and which columns that makes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from streamenc.errors import InputError

# Manifests and cuts themselves: a line of more bytes is none.
MAX_LINE_BYTES = 16 * 2**20
# By how much a cut may fall short of its recording and still be all of it: manifests round.
WHOLE_SECONDS = 1e-4
SUPERVISION = pa.struct(
    [
        ("id", pa.string()),
        ("start", pa.float64()),
        ("duration", pa.float64()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("gender", pa.string()),
    ]
)
# Of each cut: what its supervisions say together, and each of them.
COLUMNS = pa.schema(
    [
        ("recording_id", pa.string()),
        ("start", pa.float64()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("supervisions", pa.list_(SUPERVISION)),
        ("custom", pa.string()),
    ]
)


class LhotseCut(NamedTuple):
    """A cut of one recording.

    Attributes:
        offset_seconds: Where in the recording it begins.
        duration_seconds: None where it ends with the recording.
        channels: Which of the recording's, counted from 0; () for all.
        recording: As the manifest has it; {} where that lies elsewhere.
        columns: Values of COLUMNS. `text` joins the texts of all supervisions in order of time;
            `speaker` and `language` are there where all have the same; `custom` is JSON.
    """

    id: str
    offset_seconds: float
    duration_seconds: float | None
    channels: tuple[int, ...]
    recording: dict[str, Any]
    columns: dict[str, Any]


def cut_id(said: Any) -> str:
    """Of what a line holds; "" where it does not say."""
    found = said.get("id") if isinstance(said, dict) else None
    return found if isinstance(found, str) else ""


def read_cut(said: Any) -> LhotseCut:
    """What a line of a manifest holds, decoded from JSON, as a cut.

    Raises InputError for what is none, and for cuts that are mixed of several.
    """
    if not isinstance(said, dict) or not cut_id(said):
        raise InputError("the line is no cut: it is no object with an id")
    kind = said.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut"):
        raise InputError(f"it is a {kind}: only cuts of one recording are read, as they are")
    start, duration = _seconds(said, "start"), _seconds(said, "duration")
    if start is None or duration is None or start < 0 or duration <= 0:
        raise InputError(f"it lies at {said.get('start')!r} s for {said.get('duration')!r} s")
    recording = said.get("recording") or {}
    if not isinstance(recording, dict):
        raise InputError("its recording is no object")
    ends = _seconds(recording, "duration")
    lasts = None if ends is not None and abs(start + duration - ends) < WHOLE_SECONDS else duration
    return LhotseCut(
        said["id"], start, lasts, _channels(said, recording), recording, _columns(said, recording)
    )


def _seconds(said: dict[str, Any], name: str) -> float | None:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _channels(said: dict[str, Any], recording: dict[str, Any]) -> tuple[int, ...]:
    asked = said.get("channel", 0)
    asked = asked if isinstance(asked, list) else [asked]
    there = recording.get("channel_ids")
    if there is None:
        there = [
            channel
            for source in recording.get("sources") or []
            if isinstance(source, dict)
            for channel in source.get("channels") or []
        ]
    if not isinstance(there, list) or not there or asked == there:
        return ()
    if any(channel not in there for channel in asked):
        raise InputError(f"it is of channel {asked}, and its recording has {there}")
    return tuple(there.index(channel) for channel in asked)


def _columns(said: dict[str, Any], recording: dict[str, Any]) -> dict[str, Any]:
    given = said.get("supervisions")
    listed = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    listed.sort(key=lambda each: _seconds(each, "start") or 0.0)
    texts = [str(each["text"]) for each in listed if each.get("text") is not None]
    custom = said.get("custom")
    return {
        "recording_id": _text(recording.get("id")),
        "start": _seconds(said, "start"),
        "text": " ".join(texts) if texts else None,
        "speaker": _shared(listed, "speaker"),
        "language": _shared(listed, "language"),
        "supervisions": [
            {
                field.name: _seconds(each, field.name)
                if field.type == pa.float64()
                else _text(each.get(field.name))
                for field in SUPERVISION
            }
            for each in listed
        ],
        "custom": msgspec.json.encode(custom).decode() if custom else None,
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _shared(supervisions: list[dict[str, Any]], name: str) -> str | None:
    """What all say, if they say the same."""
    said = {_text(each.get(name)) for each in supervisions}
    return said.pop() if len(said) == 1 else None
