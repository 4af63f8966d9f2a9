"""The screen: `screen:` is the one that this program's windows are on, `screen::99.0` another."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from fractions import Fraction

import av.error

from streamenc.errors import DeviceError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.devices.capture import CaptureSource
from streamenc.io.media.demux import Demuxer

CHECK_SECONDS = 0.5
CONNECT_SECONDS = 1.0
X11_PORT = 6000


class _Shrunk(DeviceError):
    """The part that was captured is not on the screen any more."""


class Screen(CaptureSource):
    """Images of a screen, through X11 on Linux, AVFoundation on macOS, GDI on Windows.

    The last two have not been tried. Of Wayland, only windows that use X11 are seen.

    Where the screen gets smaller, it is opened again: the next image is flagged, and images are
    brought within the size of the beginning. Where it gets larger, what was captured stays.

    size    WIDTHxHEIGHT of the part that is captured; None is all of it.
    fps     Images a second.
    offset  X,Y of the upper left corner of that part (not on macOS).
    """

    word = "screen"

    def __init__(
        self,
        address: str = "",
        size: str | None = None,
        fps: str | float | Fraction = 30,
        offset: str = "0,0",
    ) -> None:
        super().__init__(address, size, fps)
        if not re.fullmatch(r"\d{1,5},\d{1,5}", offset):
            raise UsageError(
                f"option 'offset' must be X,Y in pixels, such as 0,120; got {offset!r}"
            )
        self.offset = offset
        self._checked_at = time.monotonic()

    def _capture(self) -> tuple[str, str, dict[str, str]]:
        x, y = self.offset.split(",")
        if sys.platform == "darwin":
            # Pixels are asked for by name: the first format offered can be one without a decoder.
            return "avfoundation", self.address or "Capture screen 0", {"pixel_format": "uyvy422"}
        if sys.platform == "win32":
            return "gdigrab", self.address or "desktop", {"offset_x": x, "offset_y": y}
        self.address = self.address or os.environ.get("DISPLAY", "")
        if not self.address:
            raise DeviceError("there is no screen: DISPLAY is not set; name one, as in screen::0.0")
        return "x11grab", self.address, {"grab_x": x, "grab_y": y}

    def _frames(self, demuxer: Demuxer) -> Generator[Frame, None, None]:
        while True:
            try:
                yield from super()._frames(demuxer)
                return
            except _Shrunk:
                self._disconnect()
            self._rejoining = True
            try:
                demuxer = self._connect()
            except DeviceError as error:
                raise self._gone(f"it changed, and now one {error}") from error

    def _failure(self, error: OSError | av.error.FFmpegError) -> Exception:
        # What FFmpeg says of a part of the screen that is not there any more.
        if isinstance(error, PermissionError):
            return _Shrunk(f"the screen {self.address!r} is smaller than what was captured")
        return super()._failure(error)

    def _cure(self) -> str:
        return "see that it runs, that this user may see it (xauth), and that the part lies on it"

    def read(self) -> Frame | None:
        frame = super().read()
        now = time.monotonic()
        if sys.platform == "linux" and now - self._checked_at > CHECK_SECONDS:
            # FFmpeg goes on to give the last image of an X server that is gone.
            if not _answers(self.address):
                raise self._gone("its X server does not answer")
            self._checked_at = now
        return frame


def _answers(display: str) -> bool:
    """Whether something listens at an X11 display, "[HOST]:NUMBER[.SCREEN]"."""
    named = re.fullmatch(r"(?:unix/?)?(.*):(\d+)(?:\.\d+)?", display)
    if named is None:
        return True
    host, number = named[1], int(named[2])
    if host:
        with (
            suppress(OSError),
            socket.create_connection((host, X11_PORT + number), CONNECT_SECONDS),
        ):
            return True
        return False
    # The second one is Linux's abstract namespace: it works where /tmp is another one.
    for path in (f"/tmp/.X11-unix/X{number}", f"\0/tmp/.X11-unix/X{number}"):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
            server.settimeout(CONNECT_SECONDS)
            server.connect(path)
            return True
    return False
