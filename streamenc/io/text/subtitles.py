"""Subtitles of a file, or of a film's track, as FFmpeg decodes them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.error
from av.subtitles.subtitle import AssSubtitle

from streamenc.errors import MediaError
from streamenc.io.text.transcript import TICKS

# ASS's overrides of style, and its line breaks.
_STYLES = re.compile(r"\{\\[^}]*\}")
_BREAKS = re.compile(r"\s*(?:\\N|\\n|\\h|\n)\s*")


class Subtitles:
    """One track of subtitles that are text: SRT, WebVTT, ASS, or such a track of MKV, MP4, ...

    stream  Which track, from 0.

    Raises MediaError where the file has none, or pictures of text.
    """

    def __init__(self, path: str, stream: int) -> None:
        try:
            self._container: Any = av.open(f"file:{path}")
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"cannot read {path!r} as subtitles: {error.strerror}") from error
        tracks = self._container.streams.subtitles
        if stream >= len(tracks):
            self.close()
            if not tracks:
                raise MediaError(f"{path!r} has no subtitles, so no text is in it")
            raise MediaError(f"{path!r} has {len(tracks)} tracks of subtitles; got stream={stream}")
        self._track, self._path = tracks[stream], path

    def read(self, halt: threading.Event) -> Iterator[tuple[str, int, int] | None]:
        """Text, and when it begins and how long it lasts, in milliseconds; None for one that
        could not be decoded. Ends once `halt` is set."""
        tick = self._track.time_base or Fraction(1, TICKS)
        for packet in self._container.demux():  # of all tracks: between titles may be much else
            if halt.is_set():
                return
            if packet.stream.index != self._track.index or packet.pts is None or not packet.size:
                continue
            try:
                texts = [_text(part, self._path) for part in packet.decode()]
            except av.error.FFmpegError:
                yield None
                continue
            begin = round(packet.pts * tick * TICKS)
            lasts = round((packet.duration or 0) * tick * TICKS)
            yield " ".join(texts), begin, max(0, lasts)

    def close(self) -> None:
        self._container.close()


def _text(part: Any, path: str) -> str:
    if not isinstance(part, AssSubtitle):
        raise MediaError(f"{path!r} has subtitles that are pictures, and no text in them")
    said = part.dialogue.decode(errors="replace")
    return _BREAKS.sub(" ", _STYLES.sub("", said)).strip()
