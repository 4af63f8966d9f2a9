"""JSON lines of Lhotse: cuts.jsonl, which are segments of recordings, and recordings.jsonl."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.manifests.linemanifest import (
    Line,
    LineManifest,
    record_of,
    seconds_of,
)
from streamenc.bulk.items import Item, Local, Remote
from streamenc.errors import InputError

CUTS = ("MonoCut", "MultiCut")
SAME_SECONDS = 1e-6
COLUMNS = pa.schema([(name, pa.string()) for name in ("text", "speaker", "supervisions", "custom")])


class LhotseCuts(LineManifest):
    """Cuts, or recordings, of Lhotse 1.

    A cut is a segment of channels of one file. Its columns are `text` and `speaker` of its first
    supervision, and all supervisions and custom fields as JSON. What Lhotse would compute is none
    of it: mixed and padded cuts, transforms, commands, and cuts of features alone are faults.
    """

    kind = "lhotse"

    def columns(self) -> pa.Schema:
        return COLUMNS

    def item(self, line: Line) -> Item:
        record = record_of(line)
        key = record.get("id")
        if not isinstance(key, str) or not key:
            raise InputError(f"got id {key!r}; wanted is the name of a cut or recording")
        key.encode()
        if "sources" in record and "recording" not in record:
            return self._of_recording(key, record)
        kind = record.get("type", "MonoCut")
        if kind not in CUTS:
            raise InputError(
                f"got a {kind}; read are {' and '.join(CUTS)}: save what it is mixed or padded to "
                "as files first (CutSet.save_audios)"
            )
        recording = record.get("recording")
        if not isinstance(recording, dict):
            raise InputError("the cut has no recording, such as one of features alone")
        start, lasts = seconds_of(record, "start") or 0.0, seconds_of(record, "duration")
        whole = seconds_of(recording, "duration")
        if not start and whole is not None and lasts is not None:
            lasts = None if abs(whole - lasts) < SAME_SECONDS else lasts
        channel = record.get("channel", 0)
        wanted = channel if isinstance(channel, list) else [channel]
        media, channels = self._file_of(recording, wanted)
        return Item(key, media, start, lasts, channels, passed(record))

    def _of_recording(self, key: str, recording: dict[str, Any]) -> Item:
        media, _ = self._file_of(recording, None)
        return Item(key, media, columns=passed(recording))

    def _file_of(
        self, recording: dict[str, Any], wanted: list[Any] | None
    ) -> tuple[Local | Remote, tuple[int, ...]]:
        """The file that holds channels of a recording, and which of its channels they are."""
        if recording.get("transforms"):
            names = json.dumps(recording["transforms"])[:80]
            raise InputError(
                f"its recording is to be transformed ({names}), which is not done here"
            )
        sources = recording.get("sources")
        if not isinstance(sources, list) or not all(isinstance(each, dict) for each in sources):
            raise InputError(f"got sources {str(sources)[:80]} of its recording; wanted is a list")
        for source in sources:
            there = source.get("channels")
            if not isinstance(there, list):
                raise InputError(f"got channels {there!r} of a source; wanted is a list")
            if wanted is None and len(sources) > 1:
                raise InputError(f"its channels are in {len(sources)} files; wanted is one file")
            if wanted is None or wanted == there:
                return self._media_of(source), ()
            if all(channel in there for channel in wanted):
                return self._media_of(source), tuple(there.index(channel) for channel in wanted)
        raise InputError(f"none of its files holds all of the channels {wanted}")

    def _media_of(self, source: dict[str, Any]) -> Local | Remote:
        kind, name = source.get("type"), source.get("source")
        if kind not in ("file", "url") or not isinstance(name, str):
            raise InputError(
                f"its recording is a {kind!r}; read are files and urls, and commands are never run"
            )
        media = self.media(name)
        # Lhotse takes names from where its process runs, others from where the list lies.
        if isinstance(media, Local) and not filesystem.exists(media.path):
            here = filesystem.local_name(name)
            return Local(here) if filesystem.exists(here) else media
        return media


def passed(record: dict[str, Any]) -> dict[str, str | None]:
    """What a cut or recording says that is passed through, by names of COLUMNS."""
    supervisions, custom = record.get("supervisions"), record.get("custom")
    first = supervisions[0] if isinstance(supervisions, list) and supervisions else {}
    first = first if isinstance(first, dict) else {}
    return {
        "text": _text(first.get("text")),
        "speaker": _text(first.get("speaker")),
        "supervisions": json.dumps(supervisions) if supervisions else None,
        "custom": json.dumps(custom) if custom else None,
    }


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return json.dumps(value)
    value.encode()
    return value
