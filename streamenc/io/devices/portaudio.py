"""PortAudio: which sound devices there are, and a stream whose callback wakes the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import anyio

from streamenc import options
from streamenc.errors import DeviceError
from streamenc.graph.node import TimedNode
from streamenc.graph.worker import Worker

STALL_SECONDS = 5.0  # a device that is silent for longer is gone; some take 2 s to wake up

Kind = Literal["input", "output"]
WORDS = {"input": "microphone", "output": "speaker"}


@dataclass(frozen=True, slots=True)
class Device:
    """A sound device as one can record from it or play to it; one that does both is listed twice.

    index     PortAudio's number; it may change when devices come and go.
    channels  The most it has.
    rate      Its own sample rate in Hz.
    default   What `mic:` or `speaker:` opens.
    api       The system's sound interface: "ALSA", "Core Audio", "Windows WASAPI", ...
    """

    index: int
    name: str
    kind: Kind
    channels: int
    rate: int
    default: bool
    api: str

    def __str__(self) -> str:
        star = "*" if self.default else ""
        return f"{star}{self.index}: {self.name} ({self.api}, {self.channels} ch, {self.rate} Hz)"


def list_devices() -> list[Device]:
    """All microphones, then all speakers. Raises DeviceError where PortAudio is not installed."""
    sound = _portaudio()
    apis = sound.query_hostapis()
    found = []
    kinds: tuple[Kind, Kind] = ("input", "output")
    for kind, default in zip(kinds, sound.default.device, strict=True):
        for index, raw in enumerate(sound.query_devices()):
            channels = raw[f"max_{kind}_channels"]
            rate = round(raw["default_samplerate"])
            api = apis[raw["hostapi"]]["name"]
            if channels:
                found.append(
                    Device(index, raw["name"], kind, channels, rate, index == default, api)
                )
    return found


def find_device(name: str, kind: Kind, api: str = "") -> Device:
    """The one device of `kind` that `name` names: "" is the default one, digits are an index, all
    else is the device's name or a part of it, upper or lower case.

    Windows lists a device once for each of its sound interfaces: then that of the default device is
    taken, or else the first one.

    api  A part of the name of an interface, the only one in which is looked; "" for all.

    Raises DeviceError, which lists what there is, where none or several fit.
    """
    word = WORDS[kind]
    devices = [device for device in list_devices() if device.kind == kind]
    if not devices:
        raise DeviceError(
            f"there is no {word}: plug one in, and see that the sound server (PulseAudio, "
            "PipeWire) runs and that this user may use it"
        )
    usual = next((device.api for device in devices if device.default), devices[0].api)
    if api:
        within = [device for device in devices if api.casefold() in device.api.casefold()]
        if not within:
            known = ", ".join(dict.fromkeys(device.api for device in devices))
            raise DeviceError(f"no {word} has an interface called {api!r}; there are {known}")
        devices, usual = within, within[0].api
    if not name:
        # An interface has a default of its own, which PortAudio does not always name.
        fit = [device for device in devices if device.default] or devices[:1] * bool(api)
    elif name.isdecimal():
        fit = [device for device in devices if device.index == int(name)]
    else:
        wanted = name.casefold()
        fit = [device for device in devices if device.name.casefold() == wanted] or [
            device for device in devices if wanted in device.name.casefold()
        ]
        apis = list(dict.fromkeys(device.api for device in fit))
        chosen = usual if usual in apis else next(iter(apis), "")
        fit = [device for device in fit if device.api == chosen]
    if len(fit) != 1:
        wanted = f"called {name!r}" if name else "the default one"
        listing = "; ".join(map(str, devices))
        raise DeviceError(
            f"{len(fit) or 'no'} {word}s are {wanted}; name one by its index or its name: {listing}"
        )
    return fit[0]


def _portaudio() -> Any:
    """The sounddevice module, which loads PortAudio when it is imported."""
    try:
        import sounddevice
    except OSError as error:
        raise DeviceError(
            f"{error}; sound devices need it: apt install libportaudio2 (Debian, Ubuntu), dnf "
            "install portaudio (Fedora), or brew install portaudio (macOS)"
        ) from error
    return sounddevice


class DeviceStream(TimedNode):
    """What both ends have in common: a PortAudio stream whose callback wakes the event loop.

    The callback runs in PortAudio's thread. It shares only deques and numbers that one side alone
    writes, so it never waits for a lock.
    """

    kind: Kind
    _callback: Callable[[Any, int, Any, Any], None]

    def __init__(self, address: str, latency: str | float, api: str) -> None:
        self.address, self.api = address, api
        self.latency: str | float = (
            latency if latency in ("low", "high") else options.number("latency", latency, 0.0, 10.0)
        )
        self._device: Device | None = None
        self._stream: Any = None
        self._rate = self._delay_seconds = (
            0.0  # as the device runs; callbacks can outlive `_stream`
        )
        self._ended = False  # the device went away
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    @cached_property
    def worker(self) -> Worker:
        return Worker(f"{WORDS[self.kind]} {self.address}")

    async def in_thread(self, call: Callable[[], Any]) -> Any:
        with self.clock.busy():
            return await self.worker.call(call)

    async def _start(self, channels: int, rate: int | None, block_seconds: float) -> int:
        """Opens and starts the device; `rate` None is its own. Returns the rate."""
        self._loop = asyncio.get_running_loop()
        await self.in_thread(partial(self._start_blocking, channels, rate, block_seconds))
        return round(self._rate)

    def _start_blocking(self, channels: int, rate: int | None, block_seconds: float) -> None:
        self._device = device = find_device(self.address, self.kind, self.api)
        sound = _portaudio()
        make = sound.InputStream if self.kind == "input" else sound.OutputStream
        rate = rate or device.rate
        try:
            self._stream = make(
                device=device.index,
                samplerate=rate,
                channels=channels,
                dtype="float32",
                blocksize=round(rate * block_seconds),
                latency=self.latency,
                callback=self._callback,
                finished_callback=self._finished,
            )
            self._rate, self._delay_seconds = self._stream.samplerate, self._stream.latency
            self._stream.start()
        except sound.PortAudioError as error:
            raise DeviceError(
                f"cannot open {WORDS[self.kind]} {device} with {channels} channels at {rate} Hz: "
                f"{error}; take its own rate and channels, or close what else uses it"
            ) from error

    def _finished(self) -> None:
        """PortAudio calls this when the stream stops, be it by itself or on demand."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            # Where nobody closed this stream, its callback can outlive the loop.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._news.set)

    async def _wait(self) -> bool:
        """Waits for the next `_wake`; False where none comes for STALL_SECONDS."""
        with self.clock.busy(), anyio.move_on_after(STALL_SECONDS) as patience:
            await self._news.wait()
        return not patience.cancelled_caught

    def _gone(self) -> DeviceError:
        word = WORDS[self.kind]
        verb = "delivering" if self.kind == "input" else "playing"
        return DeviceError(f"the {word} {self._device} stopped {verb} (unplugged?)")

    async def _close(self, *, play_out: bool = False) -> None:
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                if play_out:
                    await self.in_thread(stream.stop)
                await self.in_thread(stream.close)
        finally:
            self.worker.close()
