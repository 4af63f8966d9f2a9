"""What is written to files elsewhere, as bytes of an answer that is still being made."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Self, cast

from streamenc.errors import StreamencError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.files.jsonlines import JsonLinesSink
from streamenc.io.files.recording import RecordingSink
from streamenc.io.files.soundwriter import AudioFileSink


class Collected(io.RawIOBase):
    """A file without a beginning: what was written is taken away."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written += data
        return memoryview(data).nbytes

    def taken(self) -> bytes:
        """What was written since it was last called."""
        taken, self._written = bytes(self._written), bytearray()
        return taken


class _Recording(RecordingSink):
    file: Collected

    def _opened(self) -> BinaryIO:
        return cast(BinaryIO, self.file)


class _JsonLines(JsonLinesSink):
    file: Collected

    def _opened(self) -> BinaryIO:
        return cast(BinaryIO, self.file)


class _Sound(AudioFileSink):
    file: Collected

    def _settings(self) -> dict[str, str]:
        # Of WAV, a header that says no length.
        return {"fflags": "+bitexact"} if self._container_name == "wav" else {}

    def _opened(self) -> BinaryIO:
        return cast(BinaryIO, self.file)


class Writer:
    """A sink whose file is an answer's body; a context manager. What it does takes milliseconds.

    events  Whether each line is an event of `text/event-stream`.
    tells   Whether the format can say that what it holds is not the whole.
    """

    def __init__(self, sink: _Recording | _JsonLines | _Sound, *, events: bool = False) -> None:
        self._sink: BlockingSink = sink
        self._file = sink.file = Collected()
        self._events = events
        self._is_open = False
        self.tells = not isinstance(sink, _Sound)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        with suppress(StreamencError):  # where it was not closed, nobody reads it any more
            await asyncio.to_thread(self._sink.close_blocking)

    def write(self, info: StreamInfo, frame: Frame) -> bytes:
        """Bytes that there are now, if any. `info` is that of the first frame."""
        if not self._is_open:
            self._open(settled(info, frame))
        self._sink.write_blocking(frame)
        return self._taken()

    def close(self, info: StreamInfo, broken: str = "") -> bytes:
        """The rest; `broken` says why it is not the whole, where it is not."""
        if not self._is_open:
            self._open(info)
        self._sink.broken = broken
        self._sink.close_blocking()
        return self._taken()

    def _open(self, info: StreamInfo) -> None:
        self._is_open = True
        self._sink.open_blocking(info)

    def _taken(self) -> bytes:
        taken = self._file.taken()
        if not self._events:
            return taken
        return b"".join(b"data: " + line + b"\n\n" for line in taken.splitlines())


def settled(info: StreamInfo, frame: Frame) -> StreamInfo:
    """With the rows and columns of the first frame, which a model elsewhere does not tell."""
    shape = (*info.shape[:2], *frame.data.shape[2:])
    return replace(info, shape=shape)


@dataclass(frozen=True, slots=True)
class Format:
    """A way in which an answer can be written.

    name  As `?format=` has it.
    make  None for JSON, which is made as a whole.
    """

    name: str
    media_type: str
    make: Callable[[], Writer] | None

    def fits(self, accepted: str) -> bool:
        """Whether one media range of Accept takes it."""
        kind, _, _ = self.media_type.partition("/")
        return accepted in (self.media_type, f"{kind}/*", "*/*")


# Of codes and features, and of sound; the first ones are the default.
TOKENS = (
    Format("json", "application/json", None),
    Format(
        "arrow", "application/vnd.apache.arrow.stream", lambda: Writer(_Recording("answer.arrows"))
    ),
    Format(
        "ndjson", "application/x-ndjson", lambda: Writer(_JsonLines("answer.jsonl", values=True))
    ),
    Format(
        "events",
        "text/event-stream",
        lambda: Writer(_JsonLines("answer.jsonl", values=True), events=True),
    ),
)
SOUND = (
    Format("wav", "audio/wav", lambda: Writer(_Sound("answer.wav"))),
    Format("wav-f32", "audio/x-wav", lambda: Writer(_Sound("answer.wav", "f32"))),
    Format("flac", "audio/flac", lambda: Writer(_Sound("answer.flac"))),
    Format("opus", "audio/ogg", lambda: Writer(_Sound("answer.opus"))),
)
