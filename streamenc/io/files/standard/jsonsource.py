"""Streams from JSON lines, as streamenc prints them: `streamenc encode talk.wav - | ...`."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo, frame_fault
from streamenc.graph.node import BlockingSource
from streamenc.io.files.infojson import info_from_json
from streamenc.io.media.incoming.pipe import Pipe, is_pipe

# As Python's objects a line takes up to ten times its size: no image of a film comes so.
MAX_LINE_BYTES, MAX_LINE_ITEMS, MAX_LINE_LISTS = 32 * 2**20, 4_000_000, 250_000


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
            cure = "; a transcript is taken with a model of text, or as text:FILE" if line else ""
            raise self._wrong('the description of its stream, {"info": ...}' + cure)
        self._info = info_from_json(line["info"])
        return self._info

    def read(self) -> Frame | None:
        while (line := self._line()) is not None:
            if "end" not in line:
                return self._frame(line)
            if line["end"] != "ended":
                self.broken = str(line.get("reason") or line["end"])
        return None

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
            values = line[{"codes": "codes", "text": "text"}.get(track.kind, "values")]
            data = self._array(values, track.array_dtype).reshape(line["shape"])
            frame = Frame(
                data,
                pts=int(line["pts"]),
                duration=int(line["duration"]),
                seq=int(line["seq"]),
                discontinuity=bool(line.get("discontinuity", False)),
                arrived_ns=self.clock.now_ns(),
                track=int(index),
                scale=float(line.get("scale", 1.0)),
                segment=int(line.get("segment", -1)),
                revised=bool(line.get("revised", False)),
            )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise self._wrong(
                "a whole frame; of all but codes write them with values=true (-?values=true)"
            ) from error
        entries = track.codebook_size
        if not track.fits(data) or (
            entries and data.size and not 0 <= data.min() <= data.max() < entries
        ):
            within = f" of {entries} entries" if entries else ""
            raise self._wrong(
                f"a frame of {track}{within}; got {frame!r}, scale={frame.scale:g}"
                + (f", values up to {data.max():g}" if data.size and entries else "")
            )
        if fault := frame_fault(track, frame):
            raise self._wrong(f"a frame of {track}: {fault}")
        return frame

    @staticmethod
    def _array(values: Any, dtype: str) -> np.ndarray[Any, Any]:
        if dtype == "str":
            texts = np.asarray(values)
            if texts.size and texts.dtype.kind != "U":
                raise ValueError("no texts")
            return texts.astype(np.str_)
        if dtype.startswith(("int", "uint")):
            whole, range_ = np.asarray(values), np.iinfo(dtype)
            if whole.size and whole.dtype.kind not in "iu":
                raise ValueError("not whole numbers")
            if whole.size and not range_.min <= whole.min() <= whole.max() <= range_.max:
                raise ValueError("out of range")
            return whole.astype(dtype)
        numbers = np.asarray(values, np.float64)  # null is not a number
        with np.errstate(over="ignore"):
            made = numbers.astype(dtype)
        if (np.isinf(made) > np.isinf(numbers)).any():
            raise ValueError("out of range")
        return made

    def _line(self) -> dict[str, Any] | None:
        assert self._pipe is not None
        ended = False
        while b"\n" not in self._rest and not ended:
            got = self._pipe.read()
            self._rest += got
            ended = not got
            if len(self._rest) > MAX_LINE_BYTES:
                self._lines += 1
                raise self._wrong(f"shorter than {MAX_LINE_BYTES} bytes")
        line, _, self._rest = self._rest.partition(b"\n")
        if ended and not line.strip():
            return None
        self._lines += 1
        if (
            line.count(b",") > MAX_LINE_ITEMS
            or line.count(b"[") + line.count(b"{") > MAX_LINE_LISTS
        ):
            raise self._wrong(f"of up to {MAX_LINE_ITEMS} items and {MAX_LINE_LISTS} lists")
        try:
            made = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not ended:
                raise self._wrong("JSON") from error
            if not self._stopped:
                self.broken = f"{self.address!r} ends within line {self._lines}"
            return None
        if not isinstance(made, dict):
            raise self._wrong("a JSON object")
        return made

    def _wrong(self, wanted: str) -> MediaError:
        return MediaError(f"{self.address!r}: line {self._lines} is not {wanted}")
