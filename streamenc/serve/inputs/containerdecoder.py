"""ContainerDecoder: bytes of a file or container as they come -> frames, in a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import av
import av.error

from streamenc.errors import InputError, MediaError, StreamencError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiosource import AudioTrack
from streamenc.io.media.container import Address
from streamenc.io.media.containersource import ContainerSource, Track
from streamenc.io.media.incoming.pipe import HEAD_BYTES, Pipe
from streamenc.io.media.videosource import VideoTrack

NAME = "what was sent"
# What holds sound or images itself: no playlists, which would have the server read other files.
FORMATS = (
    "matroska,webm,ogg,wav,w64,mp3,flac,aac,mov,mp4,m4a,3gp,3g2,mj2,mpegts,mpeg,flv,aiff,au,caf,"
    "amr,amrnb,amrwb,ac3,eac3,avi,asf,wv,tta,ivf"
)
# How long bytes may take to be decoded.
MAX_SECONDS = 30.0
# What they may become: samples of all channels, and pixels.
MAX_SAMPLES, MAX_PIXELS = 2**24, 2**30
# Behind the end of a file there may be tags.
MAX_TRAILING_BYTES = 2**16


class ContainerDecoder:
    """A thread in which FFmpeg reads what is fed, and waits where nothing is left.

    Args:
        kind: Which streams are taken: "audio" or "video".
        max_pixels: Of an image.

    Attributes:
        info: What comes out; None until that is known.
    """

    def __init__(self, kind: str, max_pixels: int) -> None:
        self.info: StreamInfo | None = None
        self._halt = threading.Event()
        self._change = threading.Condition()
        self._pipe = _Fed(self._halt, self._change)
        self._frames: list[Frame] = []
        self._amount, self._most = 0, MAX_SAMPLES if kind == "audio" else MAX_PIXELS
        self._kind = "samples" if kind == "audio" else "pixels"
        self._error: Exception | None = None
        self._ended = False
        self._trailing = 0
        track: Track = AudioTrack(None, name=NAME) if kind == "audio" else VideoTrack(None)
        self._source = _FedSource(track, max_pixels)
        self._source.take(self._pipe, self._halt)
        self._thread = threading.Thread(target=self._run, name="streamenc-media", daemon=True)
        self._thread.start()

    def feed(self, piece: bytes) -> list[Frame]:
        """The next bytes; what they become, as far as it can be told.

        Raises:
            InputError: Where they are no media, or become too much.
        """
        if self._ended and self._error is None:
            self._trailing += len(piece)
            if self._trailing > MAX_TRAILING_BYTES:
                raise InputError(
                    "the file that was sent has ended: flag a discontinuity where another begins"
                )
            return []
        self._pipe.feed(piece)
        return self._taken()

    def end(self) -> list[Frame]:
        """What is left where all bytes were fed; the thread ends."""
        self._pipe.end()
        frames = self._taken()
        self.close()
        return frames

    def close(self) -> None:
        """Ends the thread, as soon as FFmpeg is through with what it does; may be called twice."""
        self._halt.set()
        self._pipe.end()

    def _taken(self) -> list[Frame]:
        with self._change:
            done = self._change.wait_for(lambda: self._ended or self._pipe.starves, MAX_SECONDS)
            frames, self._frames, self._amount = self._frames, [], 0
            error = self._error
        if not done:
            self.close()
            raise InputError(f"what was sent could not be decoded within {MAX_SECONDS:g} s")
        if isinstance(error, StreamencError | av.error.FFmpegError):
            raise InputError(str(error)) from None
        if error is not None:
            raise error
        return frames

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._decode()
        except Exception as met:  # raised again in the thread that feeds
            error = met
        finally:
            with self._change:
                self._error, self._ended = error, True
                self._change.notify_all()

    def _decode(self) -> None:
        items = self._source._play()
        try:
            for item in items:
                with self._change:
                    if isinstance(item, StreamInfo):
                        self.info = item
                        continue
                    self._frames.append(item)
                    self._amount += item.data.size
                    if self._amount > self._most:
                        raise InputError(
                            f"one message became more than {self._most} {self._kind}: send "
                            "shorter ones"
                        )
        finally:
            items.close()


class _Fed(Pipe):
    """A pipe that is fed by another thread.

    starves  Whether its reader waits, all that was fed being read.
    """

    def __init__(self, halt: threading.Event, change: threading.Condition) -> None:
        self.name = NAME
        self.ended = False
        self.head = b""
        self.regular = False
        self.starves = False
        self._begin = 0
        self._halt = halt
        self._ahead = bytearray()
        self._change = change
        self._fed = bytearray()
        self._all_fed = False

    def feed(self, piece: bytes) -> None:
        with self._change:
            self._fed += piece
            self.starves = self.starves and not piece
            self._change.notify_all()

    def end(self) -> None:
        with self._change:
            self._all_fed, self.starves = True, False
            self._change.notify_all()

    def tell(self) -> int:
        raise OSError("what is fed has no places")

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        raise OSError("what is fed has no places")

    def close(self) -> None:
        self.ended = True

    def _fill(self) -> bool:
        with self._change:
            while not self._fed and not self._all_fed:
                self.starves = True
                self._change.notify_all()
                self._change.wait()
            if self._halt.is_set():
                self.ended = True
                return True
            got = bytes(self._fed)
            self._fed.clear()
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + got)[:HEAD_BYTES]
        self._ahead += got
        self.ended = not got
        return True


class _FedSource(ContainerSource):
    """Opens a pipe as one of the formats that are safe."""

    def __init__(self, track: Track, max_pixels: int) -> None:
        super().__init__(Address.of_file(NAME), [track], live=True, in_own_thread=False)
        self._max_pixels = max_pixels

    def _open_container(self) -> Any:
        assert self._pipe is not None
        beginning = self._address.beginning(self._pipe)
        self._wave_head = beginning.wave_head()
        opened, settings = beginning.opened()
        options = settings.pop("container_options", {})
        options |= {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        try:
            container: Any = av.open(
                opened, metadata_errors="replace", container_options=options, **settings
            )
        except av.error.FFmpegError as error:
            raise MediaError(
                f"got bytes that begin with {self._pipe.head[:8]!r}, which FFmpeg does not open as "
                f"sound or video: {error.strerror}"
            ) from None
        try:
            self._bound(container.streams)
        except BaseException:  # closed, and passed on
            container.close()
            raise
        return container

    def _bound(self, streams: Sequence[Any]) -> None:
        """Raises MediaError where images are larger than is taken."""
        for stream in streams:
            context = stream.codec_context
            if stream.type != "video" or context is None:
                continue
            if context.width * context.height > self._max_pixels:
                raise MediaError(
                    f"got a video of {context.width} x {context.height}; at most "
                    f"{self._max_pixels} pixels are taken"
                )
            context.thread_count = 1
            context.options = {"max_pixels": str(self._max_pixels)}
