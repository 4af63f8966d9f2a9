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
from streamenc.io.media.incoming.beginning import Beginning, check_header, refused
from streamenc.io.media.incoming.pipe import Pipe, is_pipe

LIVE_SCHEMES = {"rtsp", "rtmp", "rtmps", "srt", "udp", "rtp"}
# Without a connection that could break: a sender that starts anew just goes on sending.
CONNECTIONLESS_SCHEMES = {"udp", "rtp"}


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
        opened, settings = (self.name, {}) if self.remote else self.beginning(pipe).opened()
        try:
            container = av.open(
                opened,
                timeout=(self.open_timeout_seconds, self.read_timeout_seconds),
                metadata_errors="replace",
                **settings,
            )
        except (av.error.FFmpegError, OSError) as error:
            raise self.failure(error, opening=True, pipe=pipe) from error
        check_header(container, self.name)
        return container

    def beginning(self, pipe: Pipe | None) -> Beginning:
        """Of a file, or of a pipe of which nothing was read yet."""
        return Beginning(self.name, self.path, pipe)

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
        if not self.remote:
            reason = refused(self.name, self.path, pipe, reason)
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
