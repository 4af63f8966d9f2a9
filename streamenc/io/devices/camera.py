"""Cameras: `camera:` is the first one, `camera:/dev/video0` (Linux) or `camera:NAME` another."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av.device
import av.error

from streamenc.errors import DeviceError
from streamenc.io.devices.capture import CaptureSource

# FFmpeg's capture format by `sys.platform`.
FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
SYSTEM_CAMERAS = Path("/sys/class/video4linux")
DEVICES = Path("/dev")


@dataclass(frozen=True, slots=True)
class CameraDevice:
    """A camera. `camera:ADDRESS` opens it; `default` is what `camera:` opens."""

    address: str
    name: str
    default: bool


class Camera(CaptureSource):
    """Images of a camera, through V4L2 on Linux, AVFoundation on macOS, DirectShow on Windows.

    The last two have not been tried.

    size  WIDTHxHEIGHT that is asked for; None takes what the camera is set to.
    fps   Images a second that are asked for; where the camera has more, some are left out.
    """

    word = "camera"

    def __init__(
        self,
        address: str = "",
        size: str | None = None,
        fps: str | float | Fraction | None = None,
    ) -> None:
        super().__init__(address, size, fps)

    def _capture(self) -> tuple[str, str, dict[str, str]]:
        format = FORMATS.get(sys.platform)
        if format is None:
            raise DeviceError(f"cameras are not known on {sys.platform}; give a file or an address")
        if not self.address:
            cameras = list_cameras()
            if not cameras:
                raise DeviceError(
                    "there is no camera; plug one in, and see that this user may use it"
                )
            self.address = next((c for c in cameras if c.default), cameras[0]).address
        if format == "dshow":
            return format, f"video={self.address}", {}
        return format, _device_of(self.address) if format == "v4l2" else self.address, {}

    def _cure(self) -> str:
        known = ", ".join(f"{c.address} ({c.name})" for c in list_cameras()) or "none"
        return (
            f"there are: {known}; see that this user may use it (on Linux: the group video), that "
            "nothing else does, and that it has this size and rate"
        )


def list_cameras() -> list[CameraDevice]:
    """The cameras of this machine, the first one is the default; [] where there is none.

    On Linux those nodes /dev/video* that capture, with their names.
    """
    format = FORMATS.get(sys.platform)
    if format is None:
        return []
    if format == "v4l2":
        found = [(str(DEVICES / entry.name), _name(entry)) for entry in _capture_nodes()]
    else:
        found = _other_cameras(format)
    return [CameraDevice(*pair, default=not i) for i, pair in enumerate(found)]


def _capture_nodes() -> list[Path]:
    """In the order of their numbers; of one camera, only its first node captures images."""
    numbered = []
    for entry in SYSTEM_CAMERAS.glob("video*"):
        number = re.fullmatch(r"video(\d+)", entry.name)
        if number and _read(entry / "index") in ("", "0"):
            numbered.append((int(number[1]), entry))
    return [entry for _, entry in sorted(numbered)]


def _device_of(address: str) -> str:
    """The path of a camera that is named by its path, its number, or its name or a part of it."""
    if address.startswith("/"):
        return address
    if address.isdecimal():
        return str(DEVICES / f"video{address}")
    cameras = list_cameras()
    fit = [camera for camera in cameras if address.casefold() in camera.name.casefold()]
    if len(fit) != 1:
        known = ", ".join(f"{c.address} ({c.name})" for c in cameras) or "none"
        raise DeviceError(f"{len(fit) or 'no'} cameras are called {address!r}; there are: {known}")
    return fit[0].address


def _name(entry: Path) -> str:
    return _read(entry / "name") or entry.name


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _other_cameras(format: str) -> list[tuple[str, str]]:
    try:
        devices = av.device.enumerate_input_devices(format)
    except (av.error.FFmpegError, OSError):
        return []
    cameras = [device for device in devices if "video" in device.media_types]
    return [(device.name, device.description or device.name) for device in cameras]
