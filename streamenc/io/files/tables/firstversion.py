"""Recordings of version 1, whose items were bytes beside their type and shape.

track, seq, pts, duration, discontinuity, arrived_unix_ns, scale    as in `columns`
dtype    string         numpy's name of the type of the items, or "bfloat16": the upper two
                        bytes of float32
shape    list<int32>    of the frame
data     binary         the items, C order, little-endian
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo, bfloat16_numbers, frame_fault
from streamenc.io.files.infojson import DTYPES, MAX_AXES
from streamenc.io.files.tables.columns import COMMON

SCHEMA = pa.schema(
    [
        *(field for field in COMMON if field.name != "seconds"),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
    ]
)


class FirstColumns:
    """The columns of one stream in a recording of version 1, for reading."""

    def __init__(self, info: StreamInfo) -> None:
        self._tracks = info.tracks or (info,)

    def check(self, schema: Any, where: str) -> None:
        """Raises MediaError where a file's columns are others."""
        if schema.remove_metadata() != SCHEMA:
            raise MediaError(f"{where} is Arrow, but not a recording of streamenc")

    def frames(self, batch: Any, first_row: int, where: str, now_ns: int) -> Iterator[Frame]:
        """The frames in a pyarrow.RecordBatch whose columns are checked. Raises MediaError."""
        for index in range(batch.num_rows):
            # One row at a time: a batch as Python objects would be many times its size.
            row = {name: batch.column(name)[index].as_py() for name in SCHEMA.names}
            yield self._frame(f"row {first_row + index} of {where}", row, now_ns)

    def _frame(self, where: str, row: dict[str, Any], now_ns: int) -> Frame:
        shape, dtype, raw = row["shape"], row["dtype"], row["data"]
        if any(value is None for value in row.values()) or None in shape:
            raise MediaError(f"{where} has a missing value")
        if row["track"] >= len(self._tracks):
            raise MediaError(f"{where} is of track {row['track']}; there are {len(self._tracks)}")
        track = self._tracks[row["track"]]
        if dtype not in DTYPES or dtype != track.dtype:
            raise MediaError(f"{where} is {dtype!r:.40}; its track is {track}")
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
        fits = 1 <= len(shape) <= MAX_AXES and min(shape) >= 0
        if not fits or math.prod(shape) * kind.itemsize != len(raw):
            raise MediaError(f"{where} has {len(raw)} bytes; its shape is {shape} of {dtype}")
        items = np.frombuffer(raw, kind).reshape(shape)
        data = bfloat16_numbers(items) if dtype == "bfloat16" else items
        if not track.fits(data):
            raise MediaError(f"{where} has shape {shape}; its track is {track}")
        frame = Frame(
            data=data,
            pts=row["pts"],
            duration=row["duration"],
            seq=row["seq"],
            discontinuity=row["discontinuity"],
            arrived_ns=now_ns,
            scale=row["scale"],
            track=row["track"],
        )
        if fault := frame_fault(track, frame):
            raise MediaError(f"{where} is no frame: {fault}")
        return frame
