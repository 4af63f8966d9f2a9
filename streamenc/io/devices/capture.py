"""CaptureSource: images of a device that does not wait, a camera or a screen."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from typing import Any, ClassVar

import av
import av.error

from streamenc import options
from streamenc.errors import DeviceError
from streamenc.graph.frames import Frame
from streamenc.io.media.container import Address
from streamenc.io.media.containersource import ContainerSource
from streamenc.io.media.videosource import VideoTrack

STALL_SECONDS = 5.0


class CaptureSource(ContainerSource):
    """Video, uint8 RGB (3, 1, height, width), from a device that FFmpeg captures from.

    Times are the device's, in microseconds or whatever it counts in. A device does not wait: where
    the graph is late, the newest images are kept, the others are counted in `lost`, and the next
    frame is flagged, as it is where the device itself skips images.

    Raises DeviceError from `open` where the device is not there or refuses, and from `frames` where
    it goes away or delivers nothing for 5 s.

    word  What it is called in errors.
    """

    queued_frames = 4
    keep_newest = True
    word: ClassVar[str]

    def __init__(
        self,
        address: str,
        size: str | None,
        fps: str | float | Fraction | None,
    ) -> None:
        self.size = None if size is None else options.size("size", size)
        self.fps = None if fps is None else options.rate("fps", fps, 1, 1000)
        named = Address(address, STALL_SECONDS, STALL_SECONDS, reconnect=False)
        # A driver that does not know the rate goes on at its own: what is too much is left out.
        track = VideoTrack(0, self.fps)
        super().__init__(named, [track], live=True, in_own_thread=True)

    @abstractmethod
    def _capture(self) -> tuple[str, str, dict[str, str]]:
        """FFmpeg's name of the format, what to open by it, and its options; may raise."""

    @abstractmethod
    def _cure(self) -> str:
        """What to do where it cannot be opened."""

    def read(self) -> Frame | None:
        frame = super().read()
        if frame is None and self._pump is not None and not self._halt.is_set():
            raise self._gone()
        return frame

    def _open_container(self) -> Any:
        format, file, wanted = self._capture()
        if self.size is not None:
            height, width = self.size
            wanted["video_size"] = f"{width}x{height}"
        if self.fps is not None:
            wanted["framerate"] = str(self.fps)
        try:
            return av.open(file, format=format, options=wanted)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DeviceError(
                f"cannot open the {self.word} {self.address!r}: {reason}; {self._cure()}"
            ) from error

    def _failure(self, error: OSError | av.error.FFmpegError) -> Exception:
        return self._gone(error.strerror)

    def _check_silence(self, seconds: float) -> None:
        if seconds > STALL_SECONDS:
            raise self._gone(f"nothing came for {STALL_SECONDS:g} s")

    def _gone(self, reason: str | None = None) -> DeviceError:
        why = f": {reason}" if reason else ""
        return DeviceError(
            f"the {self.word} {self.address!r} stopped delivering{why}; see that it is still there"
        )
