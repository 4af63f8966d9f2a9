"""Opening a file or an address with PyAV (FFmpeg), and saying plainly why that did not work."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import av
import av.error

from streamenc import options
from streamenc.errors import MediaError, UsageError
from streamenc.io.media.incoming.formats import index_is_last, recognise
from streamenc.io.media.incoming.pipe import Pipe, is_pipe
from streamenc.io.media.incoming.wavehead import (
    ReadAt,
    WaveHead,
    bytes_of,
    read_wave_head,
    tag_bytes,
)

LIVE_SCHEMES = {"rtsp", "rtmp", "rtmps", "srt", "udp", "rtp"}
# Without a connection that could break: a sender that starts anew just goes on sending.
CONNECTIONLESS_SCHEMES = {"udp", "rtp"}
# What FFmpeg opens by the ending of the name alone, at a rate that it makes up.
HEADERLESS = {
    "mulaw": "mulaw", "alaw": "alaw", "s8": "s8", "u8": "u8", "s16le": "s16le", "s16be": "s16be",
    "u16le": "", "u16be": "", "s24le": "s24le", "s24be": "s24be", "s32le": "s32le",
    "s32be": "s32be", "f32le": "f32le", "f32be": "f32be", "f64le": "f64le", "f64be": "f64be",
}  # fmt: skip
# Of sound, in a packet that a pipe waits for.
PIPED_SECONDS = 0.02
PIPE_BUFFER_BYTES = 4096
INDEX_LAST = (
    "the index (moov) of this MP4 stands behind its samples, so that it cannot be read as it "
    "comes: name the file instead, or write it with -movflags faststart"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A file or URL, and how much patience it is given.

    open_timeout_seconds   How long a network address may take to open.
    read_timeout_seconds   How long it may send nothing before that is an error.
    reconnect              Whether a connection that broke is made again.
    reconnect_max_seconds  The longest pause between two attempts.
    reconnect_for_seconds  How long attempts may fail before that is an error.
    """

    name: str
    open_timeout_seconds: float
    read_timeout_seconds: float
    reconnect: bool
    reconnect_max_seconds: float
    reconnect_for_seconds: float

    @classmethod
    def checked(
        cls,
        name: str,
        open_timeout_s: str | float,
        read_timeout_s: str | float,
        reconnect: str | bool | None,
        reconnect_max_s: str | float,
        reconnect_for_s: str | float,
    ) -> Self:
        """From the options of a source. Raises UsageError where one is out of range."""
        address = cls(
            name,
            options.number("open_timeout_s", open_timeout_s, 0.1, 3600),
            options.number("read_timeout_s", read_timeout_s, 0.1, 3600),
            _scheme(name) in LIVE_SCHEMES
            if reconnect is None
            else options.flag("reconnect", reconnect),
            options.number("reconnect_max_s", reconnect_max_s, 0.1, 3600),
            options.number("reconnect_for_s", reconnect_for_s, 0, 1e9),
        )
        if address.reconnect and not address.remote:
            raise UsageError(f"option 'reconnect' is for network addresses; {name!r} is a file")
        return address

    @classmethod
    def of_file(cls, name: str) -> Self:
        """Of a file, which needs no patience."""
        return cls(name, 10, 10, False, 0, 0)

    @property
    def remote(self) -> bool:
        return _scheme(self.name) not in ("", "file")

    @property
    def path(self) -> Path:
        """Of a file."""
        return _local_path(self.name)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file: no pipe, no device, nothing remote."""
        return not self.remote and not self.is_pipe and self.path.is_file()

    @property
    def is_pipe(self) -> bool:
        """Whether it is standard input, "-", or a named pipe."""
        return not self.remote and is_pipe(str(self.path))

    @property
    def live(self) -> bool:
        return _scheme(self.name) in LIVE_SCHEMES

    @property
    def connectionless(self) -> bool:
        return _scheme(self.name) in CONNECTIONLESS_SCHEMES

    def open(self, pipe: Pipe | None = None) -> Any:
        """PyAV's container. Raises MediaError where there is nothing that opens as media.

        pipe  Read instead of the name, which is one's; a look at it may have been taken.
        """
        if not self.remote and pipe is None:
            _check_file(self.name)
        read_at = self.read_at(pipe)
        tag = 0 if read_at is None else tag_bytes(read_at)
        opened: Any
        if pipe is not None:
            pipe.skip(tag)
            if not pipe.regular and index_is_last(pipe.peek_at):
                raise MediaError(f"cannot read {self.name!r}: {INDEX_LAST}")
            opened = pipe
        elif self.remote:
            opened = self.name
        else:
            # With its scheme, a name such as "concat:a.wav" is a name.
            opened = f"file:{_local_path(self.name)}"
            if tag:
                opened = f"subfile,,start,{tag},end,0,,:{opened}"
        try:
            container = av.open(
                opened,
                timeout=(self.open_timeout_seconds, self.read_timeout_seconds),
                metadata_errors="replace",
                **_in_small_pieces(pipe, None if pipe is None else self.wave_head(pipe)),
            )
        except (av.error.FFmpegError, OSError) as error:
            raise self.failure(error, opening=True, pipe=pipe) from error
        if container.format.name in HEADERLESS:
            container.close()
            raise MediaError(
                f"{self.name!r} holds samples without a header, whose rate nobody knows: "
                f"{_as_pcm(self.name, HEADERLESS[container.format.name])}"
            )
        return container

    def read_at(self, pipe: Pipe | None) -> ReadAt | None:
        """Reads its beginning, where that can be had without FFmpeg: of a file, and of a pipe of
        which nothing was read yet."""
        if pipe is not None:
            return pipe.peek_at
        return bytes_of(_local_path(self.name)) if self.is_file else None

    def wave_head(self, pipe: Pipe | None) -> WaveHead | None:
        """Of a WAV its header; None of all else, and where it cannot be had."""
        read_at = self.read_at(pipe)
        if read_at is None:
            return None
        tag = tag_bytes(read_at)
        return read_wave_head(lambda offset, size: read_at(tag + offset, size))

    def failure(
        self,
        error: OSError | av.error.FFmpegError,
        opening: bool = False,
        pipe: Pipe | None = None,
    ) -> MediaError:
        """What `error` means here, for its reader."""
        if isinstance(error, (av.error.ExitError, av.error.TimeoutError)):
            option = "open_timeout_s" if opening else "read_timeout_s"
            seconds = self.open_timeout_seconds if opening else self.read_timeout_seconds
            return MediaError(
                f"{self.name!r} sent nothing for up to {seconds:g} s; check the address and the "
                f"network, or raise {option}"
            )
        if isinstance(error, av.error.ProtocolNotFoundError):
            return MediaError(
                f"cannot read {self.name!r}: the FFmpeg in this build of PyAV has no "
                f"{_scheme(self.name)}; build PyAV on one that has, or send it another way"
            )
        reason = error.strerror or str(error)
        if pipe is not None:
            reason = _sniff(pipe.head, self.name, not pipe.regular, reason)
        elif (read_at := self.read_at(None)) is not None:
            reason = _sniff(read_at(0, 512), self.name, False, reason)
        return MediaError(f"cannot read {self.name!r}: {reason}")


def pick_stream(container: Any, kind: str, index: int, name: str) -> Any:
    """The stream number `index` of those of a kind: "audio" or "video" (images that are attached,
    such as the cover of a song, do not count).

    Raises MediaError, which says what there is, where it is not there or has no decoder.
    """
    images = [s for s in container.streams.video if s.disposition & s.disposition.attached_pic]
    streams = [s for s in container.streams if s.type == kind and s not in images]
    if index >= len(streams):
        held = ", ".join("image" if s in images else s.type for s in container.streams)
        raise MediaError(
            f"{name!r} has no {kind} stream {index}; "
            f"it holds {len(streams)} {kind} streams ({held or 'nothing'})"
        )
    if streams[index].codec_context is None:
        raise MediaError(f"{name!r}: this build of PyAV has no decoder for its {kind}")
    return streams[index]


def _scheme(name: str) -> str:
    scheme, separator, _ = name.partition("://")
    return scheme.lower() if separator else ""


def _local_path(name: str) -> Path:
    return Path(name.removeprefix("file://").removeprefix("file:"))


def _check_file(name: str) -> None:
    """Says what is wrong with a path in plainer words than FFmpeg does."""
    path = _local_path(name)
    if path.is_dir():
        raise MediaError(f"{name!r} is a folder; name a file in it")
    if not path.exists():
        names = []
        if path.parent.is_dir():
            names = [entry.name for entry in itertools.islice(path.parent.iterdir(), 1000)]
        close = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
        raise MediaError(f"there is no file {name!r}{hint}")
    if path.is_file() and not path.stat().st_size:
        raise MediaError(f"{name!r} is empty (0 bytes)")


def _sniff(head: bytes, name: str, piped: bool, reason: str) -> str:
    """What it seems to be that FFmpeg refused for `reason`, and what to do."""
    found = recognise(head, ended=True)
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
    cure = "name it as a file, " if piped else ""
    return f"{reason}: it begins as {found.name}; {cure}convert it to FLAC, or record it anew"


def _as_pcm(name: str, format: str) -> str:
    """What to say where samples have no header."""
    return (
        "where it is samples without a header, say of which rate and format: "
        f"'pcm:{name}?rate=8000&channels=1&format={format or 'mulaw'}' "
        "(`streamenc help pcm:` lists the formats)"
    )


def _in_small_pieces(pipe: Pipe | None, head: WaveHead | None) -> dict[str, Any]:
    """The arguments of `av.open` by which a pipe gives sound as soon as it comes."""
    if pipe is None:
        return {}
    settings: dict[str, Any] = {"buffer_size": PIPE_BUFFER_BYTES}
    if head is not None:
        samples = max(1, round(head.rate * PIPED_SECONDS))
        size = samples * max(1, head.channels * head.size)
        settings["container_options"] = {"max_size": str(max(1024, size))}
    return settings
