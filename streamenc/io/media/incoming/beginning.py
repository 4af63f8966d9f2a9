"""The beginning of a file or pipe: how FFmpeg gets it, and what it seems to be if that refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from av.codec.context import Flags2

from streamenc.errors import MediaError
from streamenc.io.media.incoming.formats import index_is_last, recognise
from streamenc.io.media.incoming.pipe import Pipe
from streamenc.io.media.incoming.wavehead import (
    ReadAt,
    WaveHead,
    bytes_of,
    read_wave_head,
    tag_bytes,
)

# What FFmpeg opens by the ending of the name alone, at a rate that it makes up.
HEADERLESS = {
    "mulaw": "mulaw", "alaw": "alaw", "s8": "s8", "u8": "u8", "s16le": "s16le", "s16be": "s16be",
    "u16le": "", "u16be": "", "s24le": "s24le", "s24be": "s24be", "s32le": "s32le",
    "s32be": "s32be", "f32le": "f32le", "f32be": "f32be", "f64le": "f64le", "f64be": "f64be",
}  # fmt: skip
LFS_POINTER = b"version https://git-lfs"
# Of sound, in a packet that a pipe waits for.
PIPED_SECONDS = 0.02
PIPE_BUFFER_BYTES = 4096
HEAD_BYTES = 512


class Beginning:
    """Of a regular file, or of a pipe of which nothing was read yet.

    name  As people see it.
    pipe  Read instead of the file, where there is one.
    """

    def __init__(self, name: str, path: Path, pipe: Pipe | None) -> None:
        self._name, self._path, self._pipe = name, path, pipe
        self._read_at: ReadAt = bytes_of(path) if pipe is None else pipe.peek_at
        self._tag = tag_bytes(self._read_at)

    def wave_head(self) -> WaveHead | None:
        """Of a WAV its header, also behind a tag; None of all else."""
        return read_wave_head(lambda offset, size: self._read_at(self._tag + offset, size))

    def opened(self) -> tuple[Any, dict[str, Any]]:
        """What `av.open` gets, and its arguments. Raises MediaError where it could not read it."""
        pipe = self._pipe
        if pipe is None:
            # With its scheme, a name such as "concat:a.wav" is a name.
            url = f"file:{self._path}"
            return (f"subfile,,start,{self._tag},end,0,,:{url}" if self._tag else url), {}
        settings: dict[str, Any] = {"buffer_size": PIPE_BUFFER_BYTES}
        if (head := self.wave_head()) is not None:  # so that sound is there as soon as it comes
            samples = max(1, round(head.rate * PIPED_SECONDS))
            size = max(1024, samples * head.channels * head.size)
            settings["container_options"] = {"max_size": str(size)}
        pipe.skip(self._tag)
        if not pipe.regular and index_is_last(pipe.peek_at):
            raise MediaError(
                f"cannot read {self._name!r}: the index (moov) of this MP4 stands behind its "
                "samples, so that it cannot be read as it comes: name the file instead, or write "
                "it with -movflags faststart"
            )
        return pipe, settings


def check_header(container: Any, name: str) -> None:
    """Raises MediaError where FFmpeg took bare samples for some of a rate of its own."""
    format = container.format.name
    if format in HEADERLESS:
        container.close()
        raise MediaError(
            f"{name!r} holds samples without a header, whose rate nobody knows: "
            f"{_as_pcm(name, HEADERLESS[format])}"
        )


def keep_whole(stream: Any) -> None:
    """Keeps FFmpeg from cutting samples off that are no padding, as it does of ALAC in CAF: the
    last packet says itself how short it is."""
    context = stream.codec_context
    if context.name == "alac" and stream.container.format.name == "caf":
        context.flags2 |= Flags2.skip_manual


def refused(name: str, path: Path, pipe: Pipe | None, reason: str) -> str:
    """What it seems to be that FFmpeg refused for `reason`, and what to do."""
    head = bytes_of(path)(0, HEAD_BYTES) if pipe is None else pipe.head
    found = recognise(head, ended=True)
    if head.startswith(LFS_POINTER):
        return (
            "it is a pointer of Git LFS, and what it points to was not fetched; run `git lfs pull` "
            "where it lies"
        )
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return (
            "the MP4 is damaged or has no index (moov); if its recording was cut short, record "
            "into .mkv, .wav or .flac, which stay readable"
        )
    if found is None:
        return f"{reason}: FFmpeg knows no such format; {_as_pcm(name, '')}"
    if found.name == "text":
        return "it holds text, not audio or video"
    if found.holds == "other":
        return f"{reason}: it is a {found.name}"
    cure = "" if pipe is None or pipe.regular else "name it as a file, "
    if found.holds == "image":
        return (
            f"{reason}: it begins as {found.name}; it is damaged or cut short, or of a kind that "
            f"FFmpeg does not read: {cure}convert it to PNG or MP4"
        )
    return f"{reason}: it begins as {found.name}; {cure}convert it to FLAC, or record it anew"


def _as_pcm(name: str, format: str) -> str:
    """What to say where samples have no header."""
    return (
        "where it is samples without a header, say of which rate and format: "
        f"'pcm:{name}?rate=8000&channels=1&format={format or 'mulaw'}' "
        "(`streamenc help pcm:` lists the formats)"
    )
