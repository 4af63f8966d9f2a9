"""Messages of an Arrow IPC stream, each looked at before any of it is unpacked.

Arrow believes what a compressed buffer says that it becomes: 30 kB may say gigabytes. So the
message's own description, a flatbuffer, is read here first, as far as bounds need it
(`Message.fbs` and `Schema.fbs` of the format).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from streamenc.errors import MediaError

# Of one batch, whose buffers were compressed; what is not lies in the file as it is.
MAX_UNPACKED_BYTES, MAX_UNPACKED_ROWS = 128 * 2**20, 2**20
_HEADER, _CUSTOM_METADATA = 2, 4  # fields of Message
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3  # of RecordBatch
_KEY, _VALUE = 0, 1  # of KeyValue
_BUFFER_BYTES = 16


class ArrowStream:
    """The schema and the batches of a file that is an Arrow IPC stream.

    file  Read from front to back, and never asked for more than it gives.

    Raises what pyarrow does where it is none.
    """

    def __init__(self, file: Any) -> None:
        self._messages = pa.ipc.MessageReader.open_stream(pa.PythonFile(file, mode="r"))
        try:
            message = self._messages.read_next_message()
        except StopIteration:
            raise pa.ArrowInvalid("it is empty") from None
        if message.type != "schema":
            # pyarrow would read whatever it is as one, and may crash.
            raise pa.ArrowInvalid(f"it begins with a message that is {message.type}, no schema")
        self.schema = pa.ipc.read_schema(message)

    def batches(self) -> Iterator[tuple[Any, dict[bytes, bytes]]]:
        """Each with the metadata of its message.

        Raises MediaError where one would become more than is taken in at once; and what pyarrow
        does where one is damaged.
        """
        while True:
            try:
                message = self._messages.read_next_message()
            except StopIteration:
                return
            if message.type != "record batch":
                raise pa.ArrowInvalid(f"a message is a {message.type}; wanted record batches")
            try:
                head = _Table.root(message.metadata.to_pybytes())
                _check(head.table(_HEADER), message.body)
                note = head.pairs(_CUSTOM_METADATA)
            except (struct.error, IndexError) as error:
                raise pa.ArrowInvalid(f"a message is damaged: {error}") from error
            yield pa.ipc.read_record_batch(message, self.schema), note


def _check(batch: _Table | None, body: Any) -> None:
    """Raises MediaError where what is compressed in it becomes too much."""
    if batch is None or batch.table(_COMPRESSION) is None or body is None:
        return
    unpacked = 0
    for start, size in batch.structs(_BUFFERS, "<qq", _BUFFER_BYTES):
        if size:
            (says,) = struct.unpack_from("<q", body, start)
            unpacked += size if says < 0 else says
    rows = batch.number(_LENGTH, "<q")
    if unpacked > MAX_UNPACKED_BYTES or rows > MAX_UNPACKED_ROWS:
        raise MediaError(
            f"a compressed batch of {rows} rows becomes {unpacked} bytes; at most "
            f"{MAX_UNPACKED_ROWS} rows and {MAX_UNPACKED_BYTES} bytes are unpacked at once: write "
            "it in smaller batches, or uncompressed"
        )


class _Table:
    """A table of a flatbuffer. Raises struct.error where it points beyond its end."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - self._read("<i", at)
        self._size = self._read("<H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def table(self, field: int) -> _Table | None:
        at = self._place(field)
        return None if at is None else _Table(self._data, at + self._read("<I", at))

    def number(self, field: int, form: str) -> int:
        at = self._place(field)
        return 0 if at is None else self._read(form, at)

    def structs(self, field: int, form: str, size: int) -> Iterator[tuple[Any, ...]]:
        """A vector of structs."""
        first, count = self._vector(field)
        return struct.iter_unpack(form, self._data[first : first + count * size])

    def pairs(self, field: int) -> dict[bytes, bytes]:
        """A vector of tables of two strings."""
        first, count = self._vector(field)
        found = {}
        for index in range(min(count, len(self._data))):
            at = first + 4 * index
            pair = _Table(self._data, at + self._read("<I", at))
            found[pair._bytes(_KEY)] = pair._bytes(_VALUE)
        return found

    def _bytes(self, field: int) -> bytes:
        first, count = self._vector(field)
        return self._data[first : first + count]

    def _vector(self, field: int) -> tuple[int, int]:
        """Where its first element lies, and how many there are."""
        at = self._place(field)
        if at is None:
            return 0, 0
        start = at + self._read("<I", at)
        return start + 4, self._read("<I", start)

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        offset = self._read("<H", self._fields + entry) if entry < self._size else 0
        return self._at + offset if offset else None

    def _read(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error(f"an offset of {at}")
        value: int = struct.unpack_from(form, self._data, at)[0]
        return value
