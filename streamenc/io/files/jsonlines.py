"""Streams as text, one JSON object a line: on standard output, or in a `.jsonl` file.

    {"info": {"kind": "codes", "time_base": "1/24000", "rate": "25/2", ...}}
    {"seq": 0, "pts": 0, "pts_seconds": 0.0, "duration": 1920, "shape": [2, 1], "codes": [[7], [9]]}

`codes` has a list per codebook. Sound, images and features give `min`, `max`, `mean` and `rms`
instead, or everything, as `values`, on request: a list per channel or bin. Text is all there, as
`text`. `track` stands where several streams are interleaved, `discontinuity` where something is
missing before a frame, `scale` where it is not 1, `segment` where a segment has a number, and
`revised` where it replaces what was said of it before. Where the stream ended before its end, a
last line says why:

    {"end": "broken", "reason": "the microphone was unplugged"}
"""

from __future__ import annotations

import json
import math
import os
import sys
from io import TextIOWrapper
from typing import Any, BinaryIO, TextIO

import numpy as np

from streamenc import options
from streamenc.errors import OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.files.infojson import info_to_json
from streamenc.io.files.output import open_output, output_error


class JsonLinesSink(BlockingSink):
    """Writes any stream as JSON lines; each frame can be seen as soon as it was written.

    values     Writes sound, images and features in full, in as few digits as float32 comes back
               from. What is not finite becomes null.
    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.
    """

    def __init__(
        self, address: str = "-", values: str | bool = False, overwrite: str | bool = True
    ) -> None:
        self.address = address
        self.values = options.flag("values", values)
        self.overwrite = options.flag("overwrite", overwrite)
        self._file: TextIO | None = None

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises OutputError."""
        self._info = info
        if self.address == "-":
            self._file = sys.stdout
        else:
            self._file = TextIOWrapper(self._opened(), "utf-8")
        self._write({"info": info_to_json(info)})

    def write_blocking(self, frame: Frame) -> None:
        """Raises OutputError where the disk is full or the reader of standard output went away."""
        track = self._info.track(frame.track)
        line: dict[str, Any] = {"track": frame.track} if self._info.kind == "mux" else {}
        line |= {
            "seq": frame.seq,
            "pts": frame.pts,
            "pts_seconds": float(frame.pts * track.time_base),
            "duration": frame.duration,
        }
        if frame.discontinuity:
            line["discontinuity"] = True
        if frame.scale != 1:
            line["scale"] = _number(frame.scale)
        if frame.segment >= 0:
            line["segment"] = frame.segment
        if frame.revised:
            line["revised"] = True
        line["shape"] = list(frame.data.shape)
        if track.kind == "text":
            line["text"] = frame.data.tolist()
        elif track.kind == "codes":
            line["codes"] = frame.data.tolist()
        elif self.values:
            line["values"] = _values(frame.data)
        else:
            line |= _statistics(frame.data)
        self._write(line)

    def close_blocking(self) -> None:
        if self._file is not None and self.broken:
            self._write({"end": "broken", "reason": self.broken})
        file, self._file = self._file, None
        if file is not None and file is not sys.stdout:
            file.close()

    def _opened(self) -> BinaryIO:
        """Where it is written, from front to back. Raises OutputError."""
        return open_output(self.address, self.overwrite)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            raise OutputError(f"{self.address!r} is closed")
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except BrokenPipeError as error:
            self._silence()
            raise OutputError("the reader of standard output went away") from error
        except OSError as error:
            self._silence()
            raise output_error(self.address, error) from error

    def _silence(self) -> None:
        """What could not be written stays in the file's buffer, and closing would try it again, at
        exit too: let that go nowhere."""
        assert self._file is not None
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self._file.fileno())
        os.close(devnull)
        self.close_blocking()


def _statistics(data: np.ndarray[Any, Any]) -> dict[str, float | None]:
    if not data.size:
        return {}
    wide = data.astype(np.float64)
    return {
        "min": _number(wide.min()),
        "max": _number(wide.max()),
        "mean": _number(wide.mean()),
        "rms": _number(np.sqrt(np.square(wide).mean())),
    }


def _number(value: float) -> float | None:
    """Six digits are plenty for the eye; JSON has no name for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _values(data: np.ndarray[Any, Any]) -> Any:
    """As lists; of float32 the shortest decimal that gives the same number again."""
    if data.dtype.kind == "f" and data.dtype.itemsize <= 4:
        data = data.astype(np.float32).astype(np.str_).astype(np.float64)
    values = data.tolist()
    return values if np.isfinite(data).all() else _finite(values)


def _finite(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if math.isfinite(values) else None
