"""Segments of text from bytes: bare lines, or transcripts as JSON objects. No I/O here.

    {"text": "good morning", "start": 1.5, "end": 2.25, "id": 7, "final": true}

Only `text` has to be there. `start` and `end` are in seconds, `start_ms` and `end_ms` in
milliseconds; `id` may be called `segment`, and be a number or a text; `final` may be called
`is_final`. Other keys are left alone. Speech recognisers of files and of live sound write it so,
or nearly: where an id comes again with other text, that revises what was said before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamenc import options
from streamenc.graph.frames import Frame

FORMATS = ("", "lines", "json")
MAX_BYTES, MOST_BYTES = 65_536, 2**20
MAX_SECONDS = 1e9
MAX_ID = 2**62 - 1
# How many segments are remembered, to tell a revision from a new one.
REMEMBERED = 4096
TICKS = 1000  # a second: times are milliseconds
# What a line of a file lasts, where nothing says it.
SUPPOSED_MS = 1000


class Refused(Exception):
    """Bytes that are no segment; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How segments are read: options of all sources of text.

    format     "lines" of text, "json" for a JSON object a line; "" looks at the first one.
    partials   Whether segments that are not final yet come too, and their revisions.
    max_bytes  The longest segment, in bytes of UTF-8; longer ones are left out, counted and told.
    """

    format: str
    partials: bool
    max_bytes: int

    @classmethod
    def checked(cls, format: str, partials: str | bool, max_bytes: str | int) -> Reading:
        """Raises UsageError where an option is out of range."""
        return cls(
            options.choice("format", format, FORMATS),
            options.flag("partials", partials),
            options.integer("max_bytes", max_bytes, 1, MOST_BYTES),
        )

    @property
    def most_bytes(self) -> int:
        """Of a line or message: in JSON, a character may take six bytes, and more stands around."""
        return self.max_bytes if self.format == "lines" else 6 * self.max_bytes + 4096


class Transcript:
    """Lines or messages to frames of text, one segment each.

    Segments that cannot be read or are too long are left out: `lost` counts them, `remarks` tells,
    and the next frame is flagged. Blank ones, repeated ones, and those that are not final where
    those are not wanted, are none at all.

    A segment without a time begins when it arrived; where `timeless`, as in a file, where the one
    before it ended, and lasts a second: times that only order them.

    Args:
        unit: What one is called in remarks: "line", "message".
        timeless: Whether arrival says nothing.
    """

    def __init__(self, reading: Reading, unit: str, *, timeless: bool) -> None:
        self.lost = 0
        self._reading, self._unit, self._timeless = reading, unit, timeless
        self._format = reading.format
        self._count = self._seq = self._end = 0
        self._gap = False
        self._said: dict[int, str] = {}  # the text of the last segments, by their numbers
        self._numbers: dict[str, int] = {}  # of the last ids that are no numbers
        self._next_number = 0
        self._refusals: dict[str, tuple[int, str]] = {}  # kind -> how many, and the first one

    @property
    def remarks(self) -> list[str]:
        return [
            f"left out {count} {self._unit}{'s' * (count > 1)}: {kind}; the first was {first}"
            for kind, (count, first) in self._refusals.items()
        ]

    def segment(self, raw: bytes, arrived_ns: int, since_ns: int) -> Frame | None:
        """The frame of a line or message; None where it has no segment, or none that is news.

        arrived_ns, since_ns  When it came and when the stream began, on the graph's clock.
        """
        number = self._count
        self._count += 1
        if len(raw) > self._reading.most_bytes:
            self._refuse_long(len(raw), number)
            return None
        try:
            text = raw.decode("utf-8-sig" if not number else "utf-8")
        except UnicodeDecodeError as error:
            self._refuse("no UTF-8", f"{self._unit} {number + 1}: {error.reason}")
            return None
        text = _plain(text)
        if not text:
            return None
        self._format = self._format or ("json" if _is_transcript(text) else "lines")
        if self._format == "lines":
            if len(raw) > self._reading.max_bytes:
                self._refuse_long(len(raw), number)
                return None
            return self._frame(text, number, self._times({}, arrived_ns, since_ns))
        try:
            return self._from_json(_object(text), number, arrived_ns, since_ns)
        except Refused as error:
            where = f"{self._unit} {number + 1}: {error}"
            self._refuse("no segment of a transcript", where)
            return None

    def too_long(self, size: int) -> None:
        """Counts one of which not all was read, at least `size` bytes."""
        self._refuse_long(size, self._count)
        self._count += 1

    def lose(self, count: int, why: str) -> None:
        """Counts segments of which nothing came here."""
        for _ in range(count):
            self._count += 1
            self._refuse(why, f"{self._unit} {self._count}")

    def timed(self, text: str, pts_ms: int, duration_ms: int, arrived_ns: int) -> Frame | None:
        """The frame of a subtitle, whose times are known."""
        number, text = self._count, _plain(text)
        self._count += 1
        if (size := len(text.encode())) > self._reading.max_bytes:
            self._refuse_long(size, number)
            return None
        if max(abs(pts_ms), duration_ms) > MAX_SECONDS * TICKS:
            self._refuse("no times", f"{self._unit} {number + 1}: at {pts_ms} ms")
            return None
        if not text:
            return None
        return self._frame(text, number, (pts_ms, duration_ms, arrived_ns))

    def _from_json(
        self, made: dict[str, Any], number: int, arrived_ns: int, since_ns: int
    ) -> Frame | None:
        if isinstance(parts := made.get("segments"), list):
            raise Refused(
                f"it is a whole transcript of {len(parts)} segments; write them a line each: "
                "jq -c '.segments[]'"
            )
        text = made.get("text")
        if not isinstance(text, str):
            raise Refused(f'it lacks a "text"; got {sorted(made)[:8]}')
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise Refused(f"its text is no Unicode: {error.reason}") from error
        if size > self._reading.max_bytes:
            self._refuse_long(size, number)
            return None
        final = _first(made, "final", "is_final")
        if final is not None and not isinstance(final, bool):
            raise Refused(f"final is true or false; got {final!r:.40}")
        times = self._times(made, arrived_ns, since_ns)
        segment = self._number(_first(made, "id", "segment"))
        text = _plain(text)
        if (final is False and not self._reading.partials) or not text:
            return None
        return self._frame(text, segment, times, revisable=True)

    def _frame(
        self, text: str, segment: int, times: tuple[int, int, int], revisable: bool = False
    ) -> Frame | None:
        revised = False
        if revisable and segment >= 0:
            before = self._said.pop(segment, None)
            self._said[segment] = text
            if len(self._said) > REMEMBERED:
                del self._said[next(iter(self._said))]
            if before == text:
                return None
            revised = before is not None
        pts, duration, arrived_ns = times
        self._end = pts + duration
        frame = Frame(
            np.array([[text]]),
            pts,
            duration,
            self._seq,
            discontinuity=self._gap,
            arrived_ns=arrived_ns,
            segment=segment,
            revised=revised,
        )
        self._seq += 1
        self._gap = False
        return frame

    def _times(self, made: dict[str, Any], arrived_ns: int, since_ns: int) -> tuple[int, int, int]:
        """pts and duration in milliseconds, and the arrival. Raises Refused."""
        start, end = _milliseconds(made, "start"), _milliseconds(made, "end")
        if start is None:
            supposed = SUPPOSED_MS if self._timeless and end is None else 0
            start = self._end if self._timeless else (arrived_ns - since_ns) // 1_000_000
            start = start if end is None else min(start, end)
            return start, supposed if end is None else end - start, arrived_ns
        if end is not None and end < start:
            raise Refused(f"it ends before it begins: {start} and {end} ms")
        return start, 0 if end is None else end - start, arrived_ns

    def _number(self, given: Any) -> int:
        """A segment's number, of ids that are texts one of our own. Raises Refused."""
        if given is None:
            return -1
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= MAX_ID:
            return given
        if not isinstance(given, str) or len(given) > 256:
            raise Refused(f"an id is a whole number from 0, or a short text; got {given!r:.40}")
        number = self._numbers.pop(given, None)
        if number is None:
            number, self._next_number = self._next_number, self._next_number + 1
        self._numbers[given] = number
        if len(self._numbers) > REMEMBERED:
            del self._numbers[next(iter(self._numbers))]
        return number

    def _refuse_long(self, size: int, number: int) -> None:
        most = self._reading.max_bytes
        self._refuse(
            f"more than {most} bytes (max_bytes)", f"{self._unit} {number + 1}: {size} bytes"
        )

    def _refuse(self, kind: str, first: str) -> None:
        count, earliest = self._refusals.get(kind, (0, first))
        self._refusals[kind] = count + 1, earliest
        self.lost += 1
        self._gap = True


def _plain(text: str) -> str:
    """Without blanks around it, nor zero bytes, which numpy would leave off at the end."""
    return text.replace("\0", " ").strip()


def _is_transcript(text: str) -> bool:
    try:
        return isinstance(_object(text).get("text"), str)
    except Refused:
        return False


def _object(text: str) -> dict[str, Any]:
    try:
        made = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"it is no JSON: {error}") from error
    if not isinstance(made, dict):
        raise Refused(f"wanted a JSON object; got a {type(made).__name__}")
    return made


def _first(made: dict[str, Any], *names: str) -> Any:
    return next((made[name] for name in names if made.get(name) is not None), None)


def _milliseconds(made: dict[str, Any], name: str) -> int | None:
    """`start` in seconds, or `start_ms`. Raises Refused."""
    for key, scale in ((name, TICKS), (f"{name}_ms", 1)):
        value = made.get(key)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= MAX_SECONDS * TICKS / scale:  # also what is no number
            unit = "seconds" if scale > 1 else "milliseconds"
            raise Refused(f"{key} is a number of {unit}; got {value!r:.40}")
        return int(round(value * scale))
    return None
