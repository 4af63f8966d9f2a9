"""What /v1/decode takes: JSON as a whole, JSON lines, an Arrow recording, or an .ecdc."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import pyarrow as pa

from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.errors import InputError, MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.files.ecdc import EcdcSource
from streamenc.io.files.ecdcformat import MAGIC
from streamenc.io.files.recording import RecordingSource
from streamenc.io.files.standard.jsonsource import JsonLinesSource
from streamenc.serve.files.wholejson import TokensSource
from streamenc.serve.limits import Limits

# The first bytes of Arrow's streams: a message of their present form.
ARROW = b"\xff\xff\xff\xff"
# In the tables of its flatbuffers: of a message its header, of a batch its compression.
HEADER, COMPRESSION = 2, 3
RECORD_BATCH, DICTIONARY = 3, 2
HEAD_BYTES = 64


def token_source(path: str, model: RemoteModel, limits: Limits) -> BlockingSource:
    """Reads the file, whichever of these it is. Raises MediaError for another one."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    start = head.lstrip()
    source: BlockingSource
    if head.startswith(ARROW):
        _check_plain(path)
        source = RecordingSource(path)
    elif head.startswith(MAGIC):
        source = EcdcSource(path)
    elif start.startswith(b'{"info"'):
        source = JsonLinesSource(path)
    elif start.startswith(b"{"):
        source = TokensSource(path, model)
    else:
        raise MediaError(
            f"the body begins with {head[:8]!r}; wanted JSON as /v1/encode answers it, JSON lines, "
            "an Arrow recording (.arrows), or an .ecdc"
        )
    return _Bounded(source, limits.max_body_seconds)


class _Bounded(BlockingSource):
    """A source of at most so many seconds."""

    replayed = True

    def __init__(self, source: BlockingSource, most_seconds: float) -> None:
        self._source, self._most_seconds = source, most_seconds
        self._seconds = Fraction(0)

    def open_blocking(self) -> StreamInfo:
        self._info = self._source.open_blocking()
        if self._info.kind == "mux":
            raise InputError("the recording holds several tracks; decode them one by one")
        self._check(self._source.duration_seconds or 0)
        return self._info

    def read(self) -> Frame | None:
        frame = self._source.read()
        if frame is None:
            self.broken = self._source.broken
            return None
        rate = self._info.rate
        lasts = self._info.length(frame)
        self._seconds += max(lasts, frame.data.shape[1] / rate if rate else lasts)
        self._check(self._seconds)
        return frame

    def _check(self, seconds: float | Fraction) -> None:
        if seconds > self._most_seconds:
            raise InputError(f"more than {self._most_seconds:g} s; at most that are taken at once")

    def close_blocking(self) -> None:
        self._source.close_blocking()


def _check_plain(path: str) -> None:
    """Raises MediaError for compressed batches: a few bytes may stand for terabytes."""
    try:
        with pa.OSFile(path) as file:
            for message in pa.ipc.MessageReader.open_stream(file):
                if _is_compressed(message.metadata.to_pybytes()):
                    raise MediaError("the recording has compressed batches; write it without")
    except (pa.ArrowException, OSError, MemoryError, struct.error, IndexError) as error:
        raise MediaError(f"the body is not an Arrow IPC stream: {error}") from error


def _is_compressed(message: bytes) -> bool:
    """Of a flatbuffer with a Message of Arrow: whether it is a batch that says a compression."""
    (root,) = struct.unpack_from("<I", message)
    kind = _field(message, root, HEADER - 1)
    at = _field(message, root, HEADER)
    if kind is None or at is None or message[kind] not in (RECORD_BATCH, DICTIONARY):
        return False
    (offset,) = struct.unpack_from("<I", message, at)
    table = at + offset
    if message[kind] == DICTIONARY:
        return True  # none of ours has any
    return _field(message, table, COMPRESSION) is not None


def _field(message: bytes, table: int, slot: int) -> Any:
    """Where a field of a flatbuffer's table stands; None where it has its default."""
    (back,) = struct.unpack_from("<i", message, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", message, vtable)
    if 4 + 2 * slot >= size:
        return None
    (offset,) = struct.unpack_from("<H", message, vtable + 4 + 2 * slot)
    return table + offset if offset else None
