"""Text from files and standard input: lines, transcripts and subtitles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePath

from streamenc import options
from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.media.incoming.formats import recognise
from streamenc.io.media.incoming.pipe import HEAD_BYTES, Pipe, is_pipe
from streamenc.io.text.subtitles import Subtitles
from streamenc.io.text.transcript import (
    FORMATS,
    MAX_BYTES,
    TICKS,
    Reading,
    Transcript,
)

SUBTITLES = (".srt", ".vtt", ".ass", ".ssa", ".sub", ".lrc")
# What is text by its name, however it begins.
TEXTS = (".txt", ".jsonl", ".ndjson", ".json", ".md", ".log", ".csv", ".tsv")
INFO = StreamInfo("text", Fraction(1, TICKS), Fraction(0), (1, None), "str")


class TextSource(BlockingSource):
    """Text in segments: lines of UTF-8, transcripts as JSON lines, or subtitles.

    Each line is a segment, and its number from 0 the segment's; blank ones are none. In a
    transcript a line is an object with a `text`, and perhaps `start`, `end`, `id` and `final`. Of
    what is piped in or typed, a segment's time is when it came; lines of a file have none, and are
    a second apart. What is piped in is live.

    format     lines, json, subtitles, or "", which looks at the file's name and at its first line.
    partials   Of a transcript: whether segments that are not final come too, and what revises them.
    max_bytes  The longest segment, in bytes of UTF-8: longer ones are left out, counted and told.
    stream     Of a film: which one of its tracks of subtitles, from 0.
    """

    def __init__(
        self,
        address: str = "-",
        format: str = "",
        partials: str | bool = False,
        max_bytes: str | int = MAX_BYTES,
        stream: str | int = 0,
    ) -> None:
        self.address = address
        format = options.choice("format", format, (*FORMATS, "subtitles"))
        self._as_subtitles = format == "subtitles"
        self._reading = Reading.checked("" if self._as_subtitles else format, partials, max_bytes)
        self._said_format = format
        self._stream = options.integer("stream", stream, 0, 1000)
        self.live = None if address == "-" else is_pipe(address)
        self.replayed = Path(address).is_file()
        self.remarks: list[str] = []
        self._halt = threading.Event()
        self._pipe: Pipe | None = None
        self._subtitles: Subtitles | None = None
        self._rest = bytearray()
        self._segments: Iterator[Frame] = iter(())

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where it cannot be opened, or holds no text."""
        if not self.live and self._holds_subtitles():
            self._subtitles = Subtitles(self.address, self._stream)
            self._transcript = Transcript(self._reading, "subtitle", timeless=True)
            self._segments = self._titles(self._subtitles)
        else:
            self._pipe = Pipe(self.address, self._halt, terminal=True)
            self.live = not self._pipe.regular
            self._transcript = Transcript(self._reading, "line", timeless=self._pipe.regular)
            self._segments = self._lines(self._pipe)
        self._since_ns = self.clock.now_ns()
        return INFO

    def read(self) -> Frame | None:
        try:
            return next(self._segments, None)
        finally:
            self._tell()

    def stop(self) -> None:
        super().stop()
        self._halt.set()

    def close_blocking(self) -> None:
        self._halt.set()
        self._segments = iter(())
        if self._pipe is not None:
            self._pipe.close()
        if self._subtitles is not None:
            self._subtitles.close()
            self._subtitles = None

    def _holds_subtitles(self) -> bool:
        """Raises MediaError where the file holds neither them nor text."""
        suffix = PurePath(self.address).suffix.lower()
        if self.address == "-":
            return False
        if self._said_format or suffix in SUBTITLES or suffix in TEXTS:
            return self._as_subtitles or (not self._said_format and suffix in SUBTITLES)
        try:
            with open(self.address, "rb") as file:
                found = recognise(file.read(HEAD_BYTES))
        except OSError as error:
            raise MediaError(f"cannot open {self.address!r}: {error.strerror}") from error
        if found is None or found.name == "text":
            return False
        if found.holds != "media":
            raise MediaError(
                f"{self.address!r} begins as {found.name}, and holds no text; say format=lines "
                "(text:FILE?format=lines) where it is text all the same"
            )
        return True

    def _titles(self, subtitles: Subtitles) -> Iterator[Frame]:
        for title in subtitles.read(self._halt):
            if title is None:
                self._transcript.lose(1, "not to be decoded")
                continue
            text, begin, lasts = title
            frame = self._transcript.timed(text, begin, lasts, self.clock.now_ns())
            if frame is not None:
                yield frame

    def _lines(self, pipe: Pipe) -> Iterator[Frame]:
        while (line := self._line(pipe)) is not None:
            frame = self._transcript.segment(line, self.clock.now_ns(), self._since_ns)
            if frame is not None:
                yield frame

    def _line(self, pipe: Pipe) -> bytes | None:
        """The next one; None at the end. What is longer than any segment is read past."""
        left_out, rest, ended = 0, self._rest, False
        while True:
            end = rest.find(b"\n")
            if end < 0 and not ended:
                if len(rest) > self._reading.most_bytes:
                    left_out += len(rest)
                    rest.clear()
                got = pipe.read()
                rest += got
                ended = not got
                continue
            if end < 0 and not rest and not left_out:
                return None
            line = bytes(rest if end < 0 else rest[:end])
            del rest[: len(rest) if end < 0 else end + 1]
            if not left_out:
                return line
            self._transcript.too_long(left_out + len(line))
            self._tell()
            left_out = 0

    def _tell(self) -> None:
        self.lost, self.remarks = self._transcript.lost, self._transcript.remarks
