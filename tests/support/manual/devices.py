"""Stand-ins for what the manual's commands are plugged to: a sound card that hears a clip and then
Ctrl-C, a camera and a screen that show a film."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from streamenc.io.devices import camera
from streamenc.io.devices.camera import CameraDevice
from streamenc.io.devices.capture import CaptureSource
from streamenc.io.media.containersource import ContainerSource
from tests.support.manual.files import talk

RATE = 48_000
FASTER = 5  # than a sound card's clock


class Heard:
    """An input of PortAudio: the clip, in blocks; behind it the source is stopped, as by Ctrl-C."""

    def __init__(self, **options: Any) -> None:
        self.samplerate, self.latency = float(options["samplerate"]), 0.01
        self._options = options
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        told, channels = self._options["callback"], self._options["channels"]
        rate = round(self.samplerate)
        size = self._options["blocksize"] or rate // 50
        sound = np.repeat(talk(rate)[:, None], channels, axis=1)
        for at in range(0, len(sound) - size + 1, size):
            time.sleep(size / rate / FASTER)
            times = SimpleNamespace(inputBufferAdcTime=at / rate)
            told(sound[at : at + size], size, times, SimpleNamespace(input_overflow=False))
        time.sleep(0.05)
        told.__self__.stop()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.join(10)

    def close(self) -> None:
        pass


class Played:
    """An output of PortAudio, which asks for sound until it is stopped."""

    heard = 0.0  # the loudest sample of all that was played

    def __init__(self, **options: Any) -> None:
        self.samplerate, self.latency = float(options["samplerate"]), 0.01
        self._options = options
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        size = self._options["blocksize"] or round(self.samplerate) // 50
        while not self._over.wait(size / self.samplerate / FASTER):
            block = np.zeros((size, self._options["channels"]), np.float32)
            status = SimpleNamespace(output_underflow=False)
            self._options["callback"](block, size, SimpleNamespace(), status)
            Played.heard = max(Played.heard, float(np.abs(block).max()))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)

    def close(self) -> None:
        pass


def plug(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    names = ["USB Mic", "Built-in"]
    sound = SimpleNamespace(
        PortAudioError=OSError,
        InputStream=Heard,
        OutputStream=Played,
        default=SimpleNamespace(device=(1, 1)),
        query_hostapis=lambda: [{"name": "ALSA"}],
        query_devices=lambda: [
            {
                "name": name,
                "hostapi": 0,
                "max_input_channels": 2,
                "max_output_channels": 2,
                "default_samplerate": float(RATE),
            }
            for name in names
        ],
    )
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    monkeypatch.setattr(
        camera, "list_cameras", lambda: [CameraDevice("/dev/video0", "Camera", True)]
    )
    monkeypatch.setattr(CaptureSource, "_open_container", lambda self: av.open(str(film)))
    # A film has an end, where a camera that goes away has failed.
    monkeypatch.setattr(CaptureSource, "read", ContainerSource.read)
