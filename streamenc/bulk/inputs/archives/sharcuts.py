"""Cuts as Lhotse Shar lists them: where in the recording beside it each lies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from streamenc.bulk.inputs.manifests.lhotsecuts import passed
from streamenc.errors import InputError

# Manifests and cuts themselves: a line of more bytes is none.
MAX_LINE_BYTES = 16 * 2**20
# By how much a cut may fall short of its recording and still be all of it: manifests round.
WHOLE_SECONDS = 1e-4


class LhotseCut(NamedTuple):
    """A cut of one recording.

    Attributes:
        offset_seconds: Where in the recording it begins.
        duration_seconds: None where it ends with the recording.
        channels: Which of the recording's, counted from 0; () for all.
        columns: Values of COLUMNS of lhotsecuts.
    """

    id: str
    offset_seconds: float
    duration_seconds: float | None
    channels: tuple[int, ...]
    columns: dict[str, str | None]


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
    return LhotseCut(said["id"], start, lasts, _channels(said, recording), passed(said))


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
