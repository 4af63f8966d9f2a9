"""Opening a file or an address with PyAV (FFmpeg), and saying plainly why that did not work."""

from __future__ import annotations

import difflib
import errno
import itertools
import logging
import os
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import av
import av.error

from streamenc import options
from streamenc.addresses import shown_address
from streamenc.errors import MediaError, UsageError
from streamenc.io.media.incoming import playlistparts, stranger
from streamenc.io.media.incoming.beginning import Beginning, check_header, refused
from streamenc.io.media.incoming.pipe import Pipe, is_pipe
from streamenc.io.media.incoming.wavehead import WaveHead, read_wave_head
from streamenc.io.media.pictures.album import MAX_PIXELS

log = logging.getLogger(__name__)

# What does not wait for us, by how it comes.
LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp"}
# Without a connection that could break: a sender that starts anew just goes on sending.
CONNECTIONLESS_SCHEMES = {"udp", "rtp"}
# Only what answers says what it is: a file, a broadcast, a camera.
ANSWERING_SCHEMES = {"http", "https", "hls"}
# FFmpeg's formats whose samples it may misread, and how many packets hold their header, as bytes.
WAVES, HEAD_PACKETS = {"wav", "w64", "caf"}, 8
# FFmpeg's formats without any times: what it says of them is made up.
TIMELESS_FORMATS = {"mpjpeg", "mjpeg", "h264", "hevc", "m4v"}
# Of these, a new picture follows for as long as the connection holds.
ENDLESS_FORMATS = {"mpjpeg", "hls"}
CONCAT, MAX_LIST_BYTES = b"ffconcat", 2**20
TRANSPORTS = ("", "tcp", "udp", "udp_multicast", "http")
TLS_SCHEMES = {"https", "rtmps", "rtsps", "hls"}
TLS_PORTS = {"https": 443, "rtmps": 443, "rtsps": 322}
# Where Linux distributions, BSD and macOS keep the certificates that they trust, if Python's ssl
# does not know.
CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class Nature:
    """What a source turned out to be, once it is open.

    live      The world does not wait for us.
    endless   Where it ends in order, it has broken off, too.
    timeless  It has no times but those at which it arrives.
    """

    live: bool = False
    endless: bool = False
    timeless: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """A file or URL, how it is opened, and how much patience it is given.

    open_timeout_seconds   How long a network address may take to open.
    read_timeout_seconds   How long it may send nothing before that is an error.
    reconnect              Whether a connection that broke is made again; None where it is live.
    reconnect_max_seconds  The longest pause between two attempts.
    reconnect_for_seconds  How long attempts may fail before that is an error.
    said_live              What the user says, against all signs; None where nothing was said.
    transport              Of RTSP; "" prefers TCP.
    insecure               Whether any certificate is taken.
    ca_file                The certificates that are trusted; "" for the system's.
    max_pixels             Of an image in a stranger's file, of which also nothing is opened that it
                           names; 0 where whoever runs this chose the file.
    """

    name: str
    open_timeout_seconds: float
    read_timeout_seconds: float
    reconnect: bool | None = None
    reconnect_max_seconds: float = 10
    reconnect_for_seconds: float = 60
    said_live: bool | None = None
    transport: str = ""
    insecure: bool = False
    ca_file: str = ""
    max_pixels: int = 0

    @classmethod
    def checked(
        cls,
        name: str,
        open_timeout_s: str | float = 10,
        read_timeout_s: str | float = 10,
        reconnect: str | bool | None = None,
        reconnect_max_s: str | float = 10,
        reconnect_for_s: str | float = 60,
        live: str | bool | None = None,
        rtsp_transport: str = "",
        insecure: str | bool = False,
        ca_file: str = "",
    ) -> Self:
        """From the options of a source. Raises UsageError where one is out of range."""
        address = cls(
            name,
            options.number("open_timeout_s", open_timeout_s, 0.1, 3600),
            options.number("read_timeout_s", read_timeout_s, 0.1, 3600),
            None if reconnect is None else options.flag("reconnect", reconnect),
            options.number("reconnect_max_s", reconnect_max_s, 0.1, 3600),
            options.number("reconnect_for_s", reconnect_for_s, 0, 1e9),
            None if live is None else options.flag("live", live),
            options.choice("rtsp_transport", rtsp_transport, TRANSPORTS),
            options.flag("insecure", insecure),
            ca_file,
        )
        if address.insecure:
            log.warning("%s: any certificate is taken (insecure)", address.shown)
        for option, said in (("reconnect", address.reconnect), ("live", address.said_live)):
            if said and not address.remote:
                raise UsageError(f"option {option!r} is for network addresses; {name!r} is a file")
        return address

    @classmethod
    def of_file(cls, name: str) -> Self:
        """Of a file, which needs no patience."""
        return cls(name, 10, 10, reconnect=False)

    @property
    def shown(self) -> str:
        """For people: without passwords and tokens."""
        return shown_address(self.name)

    @property
    def remote(self) -> bool:
        return _scheme(self.name) not in ("", "file")

    @property
    def path(self) -> Path:
        """Of a file."""
        return local_path(self.name)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file: no pipe, no device, nothing remote."""
        return not self.remote and not self.is_pipe and self.path.is_file()

    @property
    def is_pipe(self) -> bool:
        """Whether it is standard input, "-", or a named pipe."""
        return not self.remote and is_pipe(str(self.path))

    @property
    def live(self) -> bool | None:
        """Whether it waits for nobody; None where only opening it tells."""
        if self.said_live is not None:
            return self.said_live
        return None if _scheme(self.name) in ANSWERING_SCHEMES else self._live_scheme

    @property
    def connectionless(self) -> bool:
        return _scheme(self.name) in CONNECTIONLESS_SCHEMES

    @property
    def _live_scheme(self) -> bool:
        return _scheme(self.name) in LIVE_SCHEMES

    def nature(self, container: Any) -> Nature:
        """What it is, open, by what it is: not by its scheme alone.

        What says its length in bytes or seconds waits for us, whatever brings it.
        """
        if not self.remote:
            return Nature()
        format = set(container.format.name.split(","))
        # The size of a playlist says nothing of what it lists.
        sized = container.duration is not None or (container.size >= 0 and "hls" not in format)
        timeless = bool(format & TIMELESS_FORMATS) and not sized
        live = self.live
        if live is None:
            live = not sized and not any(name.endswith("_pipe") for name in format)
        endless = self._live_scheme or bool(format & ENDLESS_FORMATS)
        return Nature(live, live and endless and container.duration is None, live and timeless)

    def open(self, pipe: Pipe | None = None) -> Any:
        """PyAV's container. Raises MediaError where there is nothing that opens as media.

        pipe  Read instead of the name, which is one's; a look at it may have been taken.
        """
        if not self.remote and pipe is None:
            _check_file(self.name)
        opened: Any
        settings: dict[str, Any]
        if self.remote:
            opened, settings = self.name, {"container_options": self._container_options()}
        else:
            opened, settings = self.beginning(pipe).opened()
        # A header of some bytes would have it make room for gigapixels, to look at the first.
        settings["options"] = {"max_pixels": str(self.max_pixels or MAX_PIXELS)}
        if self.max_pixels:
            settings["container_options"] = stranger.container_options()
        try:
            if self._verifies_parts:
                container = self._open_answering(settings)
            else:
                container = self._opened(opened, settings)
        except (av.error.FFmpegError, OSError) as error:
            raise self.failure(error, opening=True, pipe=pipe) from error
        check_header(container, self.shown)
        return container

    @property
    def _verifies_parts(self) -> bool:
        """Whether it may be a playlist, of which all that it names has to have a certificate."""
        return _scheme(self.name) in ("http", "https") and not (self.insecure or self.max_pixels)

    def _open_answering(self, settings: dict[str, Any]) -> Any:
        """FFmpeg opens all but playlists; of those it gets what it asks for."""
        wanted = settings["container_options"]
        one = {**wanted, "format_whitelist": playlistparts.all_but_playlists()}
        try:
            return self._opened(self.name, {**settings, "container_options": one})
        except av.error.ArgumentError:  # none of these formats
            context = ssl.create_default_context(cafile=self.ca_file or _trusted_certificates())
            return self._opened(
                self.name,
                {
                    **settings,
                    "container_options": wanted | playlistparts.OPTIONS,
                    "io_open": playlistparts.opener(context, self.read_timeout_seconds),
                },
            )

    def _opened(self, name: Any, settings: dict[str, Any]) -> Any:
        return av.open(
            name,
            timeout=(self.open_timeout_seconds, self.read_timeout_seconds),
            metadata_errors="replace",
            **settings,
        )

    def _container_options(self) -> dict[str, str]:
        scheme = _scheme(self.name)
        wanted = {}
        if scheme in ("rtsp", "rtsps") and self.transport:
            wanted["rtsp_transport"] = self.transport
        elif scheme in ("rtsp", "rtsps"):
            wanted["rtsp_flags"] = "prefer_tcp"
        if scheme in TLS_SCHEMES or scheme == "http":  # which may lead to https
            wanted["tls_verify"] = "0" if self.insecure else "1"
            if trusted := self.ca_file or _trusted_certificates():
                wanted["ca_file"] = trusted
        return wanted

    def is_end(self, error: Exception, container: Any) -> bool:
        """Whether `error` only means that a server hung up which never said how much would come.

        HTTP/1.0 ends like that, in order; where the container knows better, it is asked.
        """
        answering = _scheme(self.name) in ("http", "https")
        return answering and container.size < 0 and getattr(error, "errno", None) == errno.EIO

    def beginning(self, pipe: Pipe | None) -> Beginning:
        """Of a file, or of a pipe of which nothing was read yet."""
        return Beginning(self.name, self.path, pipe)

    def remote_wave_head(self, container: Any) -> WaveHead | None:
        """Of a WAV, W64 or CAF that lies on a server, which is asked for its beginning again."""
        answering = _scheme(self.name) in ("http", "https")
        if not answering or container.format.name not in WAVES or container.size < 0:
            return None
        try:
            raw: Any = av.open(
                self.name,
                format="s8",
                timeout=(self.open_timeout_seconds, self.read_timeout_seconds),
                container_options=self._container_options(),
            )
            with raw:
                packets = itertools.islice(raw.demux(audio=0), HEAD_PACKETS)
                data = b"".join(map(bytes, packets))
        except av.error.FFmpegError:
            return None
        return read_wave_head(lambda offset, size: data[offset : offset + size])

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
                f"{self.shown!r} sent nothing for up to {seconds:g} s; check the address and the "
                f"network, or raise {option}"
            )
        if isinstance(error, av.error.ProtocolNotFoundError):
            return MediaError(
                f"cannot read {self.shown!r}: the FFmpeg in this build of PyAV has no "
                f"{_scheme(self.name)}; build PyAV on one that has, or send it another way"
            )
        reason = error.strerror or str(error).replace(self.name, self.shown)
        if not self.remote:
            reason = refused(self.name, self.path, pipe, reason)
        elif opening and _scheme(self.name) in TLS_SCHEMES and not self.insecure:
            reason = self._certificate_trouble() or reason
        return MediaError(f"cannot read {self.shown!r}: {reason}")

    def _certificate_trouble(self) -> str:
        """What is wrong with the certificate of the server, which FFmpeg does not say; or ""."""
        try:
            url = urlsplit(self.name)
            context = ssl.create_default_context(cafile=self.ca_file or _trusted_certificates())
            place = (url.hostname or "", url.port or TLS_PORTS.get(url.scheme, 443))
            with (
                socket.create_connection(place, self.open_timeout_seconds) as plain,
                context.wrap_socket(plain, server_hostname=place[0]),
            ):
                return ""
        except ssl.SSLCertVerificationError as error:
            return (
                f"its certificate is not trusted ({error.verify_message}); name the certificates "
                "that are with ca_file, or take any with insecure=yes"
            )
        except (OSError, ValueError):
            return ""


def pick_streams(container: Any, wanted: Sequence[tuple[str, int | None]], name: str) -> list[Any]:
    """The streams of a container that are wanted: each a kind, "audio" or "video", and its number
    among those of its kind; None for the best one.

    The best one is what FFmpeg takes for it (av_find_best_stream): by its marks, such as default,
    before its bitrate; of the variants of an HLS playlist, the one of most pixels and highest
    bitrate. The best sound is one that belongs to the images that are taken. Images that are
    attached, such as the cover of a song, do not count.

    Raises MediaError, which says what there is, where one is not there or has no decoder.
    """
    picked: dict[int, Any] = {}
    related = None
    for place, (kind, number) in sorted(enumerate(wanted), key=lambda item: item[1][0] != "video"):
        picked[place] = related = _pick(container, kind, number, name, related)
    return [picked[place] for place in range(len(wanted))]


def _pick(container: Any, kind: str, number: int | None, name: str, related: Any) -> Any:
    covers = [s for s in container.streams.video if s.disposition & s.disposition.attached_pic]
    streams = [s for s in container.streams if s.type == kind and s not in covers]
    if (number or 0) >= len(streams):
        held = ", ".join("image" if s in covers else s.type for s in container.streams)
        other, models = ("audio", "sound") if kind == "video" else ("video", "images")
        instead = not streams and any(s.type == other for s in container.streams)
        raise MediaError(
            f"{name!r} has no {kind} stream {number or 0}; "
            f"it holds {len(streams)} {kind} streams ({held or 'nothing'})"
            + (f", which a model of {models} takes" if instead else "")
        )
    if number is not None:
        stream = streams[number]
    else:
        known = [s for s in streams if s.codec_context is not None] or streams
        best = container.streams.best(kind, related=related)
        stream = best if best in known else known[0]
        if related is None and len(known) > 1 and any(map(_bitrate_of_variant, known)):
            stream = max(known, key=lambda s: (_pixels(s), _bitrate_of_variant(s)))
    if stream.codec_context is None:
        raise MediaError(f"{name!r}: this build of PyAV has no decoder for its {kind}")
    return stream


def _bitrate_of_variant(stream: Any) -> int:
    """0 where the stream is none of several variants."""
    said = stream.metadata.get("variant_bitrate", "")
    return int(said) if said.isdecimal() else 0


def _pixels(stream: Any) -> int:
    return stream.codec_context.width * stream.codec_context.height if stream.type == "video" else 0


def _trusted_certificates() -> str | None:
    """The file of the certificates that this system trusts; None where it is not found."""
    known = (ssl.get_default_verify_paths().cafile, *CERTIFICATES)
    return next((path for path in known if path and Path(path).is_file()), None)


def _scheme(name: str) -> str:
    scheme, separator, _ = name.partition("://")
    return scheme.lower() if separator else ""


def local_path(name: str) -> Path:
    """Of a file that is named by its path or as file:."""
    return Path(name.removeprefix("file://").removeprefix("file:"))


def _check_file(name: str) -> None:
    """Says what is wrong with a path in plainer words than FFmpeg does."""
    path = local_path(name)
    if path.is_dir():
        raise MediaError(f"{name!r} is a folder; name one file in it, or run once for each")
    if not path.exists():
        if re.search(r"%0?\d*d", path.name):
            raise MediaError(
                f"there is no file {name!r}; numbered images are not read one by one: make one "
                f"film of them first (ffmpeg -i {path.name} -c:v ffv1 film.mkv)"
            )
        if found := _matches(path):
            raise MediaError(
                f"{name!r} is a pattern, and {len(found)} files match it; name one of them, such "
                f"as {str(found[0])!r}, or run once for each"
            )
        names = []
        if path.parent.is_dir():
            names = [entry.name for entry in itertools.islice(path.parent.iterdir(), 1000)]
        close = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
        raise MediaError(f"there is no file {name!r}{hint}")
    if path.is_file() and not path.stat().st_size:
        raise MediaError(f"{name!r} is empty (0 bytes)")
    if path.is_file() and (listed := _list_in_list(path)):
        raise MediaError(
            f"{name!r} lists {listed!r}, which is a list itself; name the files of both in one list"
        )


def _list_in_list(path: Path) -> str:
    """What a list of FFmpeg's concat names that is one, too, perhaps itself, without an end; ""."""
    try:
        with path.open("rb") as file:
            if not file.read(len(CONCAT)) == CONCAT:
                return ""
            lines = file.read(MAX_LIST_BYTES).splitlines()
        for line in lines:
            word, _, listed = line.strip().partition(b" ")
            other = path.parent / os.fsdecode(listed.strip(b" '\"\0"))
            if word == b"file" and other.is_file():
                with other.open("rb") as file:
                    if file.read(len(CONCAT)) == CONCAT:
                        return other.name
    except (OSError, ValueError):  # which FFmpeg then says
        return ""
    return ""


def _matches(path: Path) -> list[Path]:
    """The files that a pattern with *, ? or [ stands for."""
    if not set("*?[") & set(path.name) or not path.parent.is_dir():
        return []
    try:
        return sorted(itertools.islice(path.parent.glob(path.name), 1000))
    except ValueError:  # "**wav"
        return []
