"""Cameras: there is none on a test machine, so FFmpeg's side is a fake, and sysfs is a folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import av.error
import numpy as np
import pytest

from streamenc import io
from streamenc.errors import DeviceError, UsageError
from streamenc.io.devices import camera, capture
from streamenc.io.devices.camera import Camera, CameraDevice, list_cameras
from streamenc.io.media.pattern import read_number
from tests.support.clips import images


class FakeContainer:
    """Delivers images every 40 ms of its own clock, and then does what `at_end` does."""

    def __init__(self, count: int, at_end: Any, skip: int | None = None) -> None:
        codec = SimpleNamespace(
            name="rawvideo", sample_aspect_ratio=None, options={}, extradata=None
        )
        self.stream = SimpleNamespace(
            type="video", index=0, disposition=0, codec_context=codec, time_base=Fraction(1, 10**6),
            average_rate=Fraction(25), guessed_rate=None, base_rate=None,
            sample_aspect_ratio=None, container=self, metadata={}, width=8, height=8,
        )  # fmt: skip
        self.name, self.format, self.metadata = "camera", SimpleNamespace(name="v4l2"), {}
        self.stream.disposition = _Disposition()
        self.streams = _Streams([self.stream])
        self.duration = None
        self.closed = False
        self._count, self._at_end, self._skip = count, at_end, skip

    def demux(self, streams: list[Any]) -> Iterator[Any]:
        assert streams == [self.stream]
        for number, image in enumerate(images(self._count)):
            if self._skip is not None and self._skip <= number < self._skip + 5:
                continue
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = 10**9 + 40_000 * number, Fraction(1, 10**6)
            yield SimpleNamespace(
                stream=self.stream, decode=lambda frame=frame: [frame], size=1, pts=frame.pts,
                is_corrupt=False, is_keyframe=True, time_base=frame.time_base, duration=40_000,
            )  # fmt: skip
        self._at_end()

    def close(self) -> None:
        self.closed = True


class _Disposition(int):
    attached_pic = 0


class _Streams(list[Any]):
    @property
    def video(self) -> list[Any]:
        return list(self)


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cameras; the first has a second node for its metadata, as most have."""
    folder = tmp_path / "video4linux"
    for node, index, name in (
        ("video10", "0", "Grabber"), ("video2", "0", "Webcam HD"), ("video3", "1", "Webcam HD"),
        ("vbi0", "0", "Tuner"),
    ):  # fmt: skip
        (folder / node).mkdir(parents=True)
        (folder / node / "index").write_text(index + "\n")
        (folder / node / "name").write_text(name + "\n")
    monkeypatch.setattr(camera, "SYSTEM_CAMERAS", folder)
    monkeypatch.setattr(camera.sys, "platform", "linux")
    return folder


def fake_open(monkeypatch: pytest.MonkeyPatch, made: Any) -> list[tuple[Any, ...]]:
    """Makes av.open give or raise `made`; returns what it was called with."""
    calls: list[tuple[Any, ...]] = []

    def open(file: str, **keywords: Any) -> Any:
        calls.append((file, keywords))
        if isinstance(made, Exception):
            raise made
        return made

    monkeypatch.setattr(capture.av, "open", open)
    return calls


def unplug() -> None:
    raise av.error.OSError(19, "No such device")


def test_cameras_are_listed_by_their_names(sysfs: Path) -> None:
    assert list_cameras() == [
        CameraDevice("/dev/video2", "Webcam HD", True),
        CameraDevice("/dev/video10", "Grabber", False),
    ]


def test_a_machine_without_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera.sys, "platform", "linux")
    monkeypatch.setattr(camera, "SYSTEM_CAMERAS", tmp_path / "none")
    assert list_cameras() == []
    with pytest.raises(DeviceError, match="there is no camera; plug one in"):
        Camera().open_blocking()


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("camera:", "/dev/video2"),
        ("camera:/dev/video7", "/dev/video7"),
        ("camera:1", "/dev/video1"),
        ("camera:grab", "/dev/video10"),
        ("camera:?size=640x480&fps=30", "/dev/video2"),
    ],
)
def test_which_one_is_opened_and_how(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, target: str, file: str
) -> None:
    container = FakeContainer(5, unplug)
    calls = fake_open(monkeypatch, container)
    source: Any = io.source(target, kind="video")
    info = source.open_blocking()
    source.close_blocking()
    asked = {"video_size": "640x480", "framerate": "30"} if "?" in target else {}
    assert calls == [(file, {"format": "v4l2", "options": asked})]
    assert (info.shape, info.rate, info.time_base) == (
        (3, None, 112, 192), 25, Fraction(1, 10**6),
    )  # fmt: skip
    assert source.live and container.closed


@pytest.mark.parametrize(
    ("platform", "address", "format", "file"),
    [("darwin", "0", "avfoundation", "0"), ("win32", "HD Cam", "dshow", "video=HD Cam")],
)
def test_other_systems(
    monkeypatch: pytest.MonkeyPatch, platform: str, address: str, format: str, file: str
) -> None:
    monkeypatch.setattr(camera.sys, "platform", platform)
    calls = fake_open(monkeypatch, FakeContainer(5, unplug))
    source = Camera(address)
    source.open_blocking()
    source.close_blocking()
    assert calls == [(file, {"format": format, "options": {}})]


def test_a_system_without_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera.sys, "platform", "plan9")
    assert list_cameras() == []
    with pytest.raises(DeviceError, match="not known on plan9"):
        Camera("0").open_blocking()


def test_images_come_and_an_unplugged_camera_is_an_error(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Camera, "queued_frames", 50)
    fake_open(monkeypatch, FakeContainer(30, unplug, skip=10))
    source = Camera()
    source.open_blocking()
    frames = [source.read() for _ in range(25)]
    said = [read_number(frame.data) for frame in frames if frame is not None]
    assert said == [*range(10), *range(15, 30)]
    assert [f.pts for f in frames if f is not None] == [10**9 + 40_000 * n for n in said]
    assert [n for n, f in zip(said, frames, strict=True) if f and f.discontinuity] == [15]
    assert source.lost == 0
    with pytest.raises(DeviceError, match=r"camera '/dev/video2' stopped delivering: No such dev"):
        source.read()
    source.close_blocking()


def test_a_camera_that_just_ends_is_an_error(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_open(monkeypatch, FakeContainer(3, lambda: None))
    source = Camera()
    source.open_blocking()
    assert all(source.read() for _ in range(3))
    with pytest.raises(DeviceError, match="stopped delivering; see that it is still there"):
        source.read()
    source.close_blocking()


def test_a_camera_that_stalls_is_an_error(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "STALL_SECONDS", 0.4)
    released = threading.Event()
    container = FakeContainer(2, lambda: released.wait(20))
    fake_open(monkeypatch, container)
    source = Camera()
    source.open_blocking()
    assert source.read() and source.read()
    with pytest.raises(DeviceError, match="nothing came for 0.4 s"):
        source.read()
    source.close_blocking()
    assert not container.closed  # it is in use: the thread that reads it closes it
    released.set()
    assert source._pump is not None
    source._pump._thread.join(5)
    assert container.closed


def test_stop_ends_it_without_an_error(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_open(monkeypatch, FakeContainer(50, unplug))
    source = Camera()
    source.open_blocking()
    assert source.read()
    source.stop()
    assert source.read() is None
    source.close_blocking()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (av.error.PermissionError(13, "Permission denied"), "Permission denied"),
        (av.error.FileNotFoundError(2, "No such file or directory"), "No such file"),
        (av.error.OSError(16, "Device or resource busy"), "Device or resource busy"),
        (ValueError("no container format 'v4l2'"), "no container format"),
    ],
)
def test_a_camera_that_cannot_be_opened(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    fake_open(monkeypatch, error)
    said = f"cannot open the camera '/dev/video9': {reason}"
    with pytest.raises(DeviceError, match=said) as got:
        Camera("/dev/video9").open_blocking()
    assert "/dev/video2 (Webcam HD)" in str(got.value) and "group video" in str(got.value)


def test_a_name_that_fits_none_or_several(sysfs: Path) -> None:
    with pytest.raises(DeviceError, match=r"no cameras are called 'x'; .*video2 \(Webcam HD\)"):
        Camera("x").open_blocking()
    with pytest.raises(DeviceError, match="2 cameras are called 'b'"):
        Camera("b").open_blocking()


def test_the_real_ffmpeg_says_that_there_is_no_such_device() -> None:
    with pytest.raises(DeviceError, match="cannot open the camera '/dev/video4242': No such file"):
        Camera("/dev/video4242").open_blocking()


def test_options() -> None:
    for option, value in (("size", "0x9"), ("fps", "x"), ("fps", 0.5)):
        with pytest.raises(UsageError, match=option):
            Camera("", **{option: value})
