"""Streams from JSON lines, as streamenc prints them: `streamenc encode talk.wav - | ...`."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.files.infojson import info_from_json
from streamenc.io.media.incoming.pipe import Pipe, is_pipe

MAX_LINE_BYTES = 256 * 2**20


class JsonLinesSource(BlockingSource):
    """A stream that was written as JSON lines: codes; all else only where the lines have values.

    Raises MediaError from `open` and `read` for lines that are none of such a stream.
    """

    format_name = "stream of JSON lines"

    def __init__(self, address: str = "-") -> None:
        self.address = address
        self.replayed = not is_pipe(address)
        self._halt = threading.Event()
        self._pipe: Pipe | None = None
        self._rest = bytearray()
        self._lines = 0

    def take(self, pipe: Pipe, halt: threading.Event) -> None:
        """Before `open`: reads this pipe, at which somebody looked, and ends with its event."""
        self._pipe, self._halt = pipe, halt

    def open_blocking(self) -> StreamInfo:
        if self._pipe is None:
            self._pipe = Pipe(self.address, self._halt)
        line = self._line()
        if line is None or "info" not in line:
            raise self._wrong('the description of its stream, {"info": ...}')
        self._info = info_from_json(line["info"])
        return self._info

    def read(self) -> Frame | None:
        line = self._line()
        if line is None:
            return None
        if "end" in line:
            if line["end"] != "ended":
                self.broken = str(line.get("reason") or line["end"])
            return self.read()
        return self._frame(line)

    def stop(self) -> None:
        super().stop()
        self._halt.set()

    def close_blocking(self) -> None:
        self._halt.set()
        if self._pipe is not None:
            self._pipe.close()

    def _frame(self, line: dict[str, Any]) -> Frame:
        index = line.get("track", 0)
        tracks = self._info.tracks or (self._info,)
        try:
            if index < 0:
                raise IndexError
            track = tracks[index]
            values = line["codes" if track.kind == "codes" else "values"]
            data = self._array(values, track.dtype).reshape(line["shape"])
            return Frame(
                data,
                pts=int(line["pts"]),
                duration=int(line["duration"]),
                seq=int(line["seq"]),
                discontinuity=bool(line.get("discontinuity", False)),
                arrived_ns=self.clock.now_ns(),
                track=int(index),
                scale=float(line.get("scale", 1.0)),
            )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise self._wrong(
                "a whole frame; of all but codes write them with values=true (-?values=true)"
            ) from error

    @staticmethod
    def _array(values: Any, dtype: str) -> np.ndarray[Any, Any]:
        if dtype.startswith(("int", "uint")):
            whole = np.asarray(values, np.int64)
            if whole.size and not np.iinfo(dtype).min <= whole.min() <= whole.max() <= (
                np.iinfo(dtype).max
            ):
                raise ValueError
            return whole.astype(dtype)
        numbers = np.asarray(values, np.float64)  # null is not a number
        return numbers.astype("float32" if dtype == "bfloat16" else dtype)

    def _line(self) -> dict[str, Any] | None:
        assert self._pipe is not None
        while b"\n" not in self._rest:
            got = self._pipe.read()
            if not got:
                return self._last_line()
            self._rest += got
            if len(self._rest) > MAX_LINE_BYTES:
                self._lines += 1
                raise self._wrong(f"a frame: it is longer than {MAX_LINE_BYTES >> 20} MiB")
        line, _, self._rest = self._rest.partition(b"\n")
        self._lines += 1
        try:
            made = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._wrong("JSON") from error
        if not isinstance(made, dict):
            raise self._wrong("a JSON object")
        return made

    def _last_line(self) -> dict[str, Any] | None:
        """What stands behind the last line break, where it is whole nevertheless."""
        rest = bytes(self._rest)
        self._rest.clear()
        if not rest.strip() or self._stopped:
            return None
        self._lines += 1
        try:
            made = json.loads(rest)
        except (ValueError, RecursionError):
            made = None
        if not isinstance(made, dict):
            self.broken = f"{self.address!r} ends within line {self._lines}"
            return None
        return made

    def _wrong(self, wanted: str) -> MediaError:
        return MediaError(f"{self.address!r}: line {self._lines} is not {wanted}")
