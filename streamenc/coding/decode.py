"""Decode: frames of codes or latents back to sound or images, on the engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from streamenc.coding.sessionnode import ModelNode
from streamenc.coding.times import CountedTimes, ImageTimes
from streamenc.engine.exchange.outputs import Output
from streamenc.engine.remote.remotemodel import RemoteCodec, RemoteModel
from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.worker import in_daemon_thread
from streamenc.nodes.codes.interleaving import Layout
from streamenc.nodes.codes.relayout import FromLayout
from streamenc.spec import ScaledCodes, StreamSpec

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.engine.engine import Engine
    from streamenc.engine.remote.remoteengine import RemoteEngine

# A stranger's stream must not ask for more memory than there is.
MAX_PIXELS = 2**26


class Decode(ModelNode):
    """Decodes a live stream; what the encoder padded its last frame with is cut off again.

    codec  Or what loads one by the name that the stream gives. It is called in a thread of its own,
           and decides what a stranger's stream may have fetched and opened here.
    hops   Hops in a step, or how many the decoder that is loaded then takes.
    layout How codes lie in the stream, see FromLayout, which takes that back; "" where the stream
           says it.
    """

    _counts: CountedTimes
    _shown: ImageTimes

    def __init__(
        self,
        codec: Codec | RemoteCodec | Callable[[str], Codec],
        engine: Engine | RemoteEngine,
        *,
        hops: int | Callable[[StreamSpec], int] = 1,
        layout: str = "",
    ) -> None:
        super().__init__(engine)
        Layout.of(layout or "books")  # what is wrong is said now
        self._layout = layout
        self._wanted_hops = hops
        self._codec = codec
        self._early: np.ndarray[Any, Any] | None = None  # (channels, samples) behind the end

    async def open(self, info: StreamInfo) -> StreamInfo:
        if callable(self._codec):
            _check_decodable(info)
            # Not on the engine: a download that hangs must not keep the process alive.
            self._codec = await in_daemon_thread(partial(self._codec, info.model))
        self._model = self._codec.decoder
        wanted = self._wanted_hops
        self._hops = wanted if isinstance(wanted, int) else wanted(self._model.spec)
        self._books = FromLayout(self._layout, self._model.spec.codebook_size)
        self.remarks = self._books.remarks
        return await super().open(self._books.open(info))

    async def push(self, frame: Frame) -> Iterable[Frame]:
        out: list[Frame] = []
        for codes in self._books.push(frame):
            out += await super().push(codes)
        return out

    async def flush(self) -> Iterable[Frame]:
        out: list[Frame] = []
        for codes in self._books.flush():
            out += await super().push(codes)
        return [*out, *await super().flush()]

    def _agree(self, info: StreamInfo) -> StreamInfo:
        spec = self._model.spec
        if info.kind != spec.input.kind or info.codebook_size != spec.codebook_size:
            entries = f", of {info.codebook_size} entries" if info.kind == "codes" else ""
            of = f" of {spec.codebook_size} entries" if spec.codebook_size else ""
            raise FitError(f"{spec.name} decodes {spec.input.kind}{of}; got {info}{entries}")
        if spec.output.kind == "video":
            return self._agree_on_video(info)
        if info.rate != spec.input.rate:
            raise FitError(
                f"{spec.name} decodes {float(spec.input.rate):g} frames a second; got {info}: are "
                "these codes of another model, or made with other options (--set)?"
            )
        if info.shape[0] is not None and info.shape[0] > spec.input.channels:
            raise FitError(f"{spec.name} decodes up to {spec.input.channels} codebooks; got {info}")
        self._counts = self._times = self._counted(info)
        rate = spec.output.rate
        self._most_early = min(math.ceil(rate * info.time_base) + 1, int(rate))
        return StreamInfo(
            kind="audio",
            time_base=info.time_base,
            rate=rate,
            shape=(spec.output.channels, None),
            dtype="float32",
            model=info.model,
        )

    def _agree_on_video(self, info: StreamInfo) -> StreamInfo:
        spec = self._model.spec
        if isinstance(self._model, RemoteModel):
            raise FitError(
                f"{spec.name} makes images: use its sessions, or Decode where it is loaded in the "
                "same process"
            )
        self._check_grid(info, spec.name)
        if info.shape[0] != spec.input.channels:
            raise FitError(f"{spec.name} decodes {spec.input.channels} channels; got {info}")
        height, width = self._grid(info)
        if height * width > MAX_PIXELS:
            raise FitError(
                f"{spec.name} would decode images of {width} x {height}; at most {MAX_PIXELS} "
                "pixels are made"
            )
        # The stream's own rate: a model's is nominal.
        rate = info.rate * spec.hop_out / spec.hop
        self._shown = self._times = ImageTimes(self._model.first_input, 1 / (rate * info.time_base))
        return StreamInfo(
            kind="video",
            time_base=info.time_base,
            rate=rate,
            shape=(spec.output.channels, None, height, width),
            dtype="uint8",
            model=info.model,
        )

    async def _chunk(self, frame: Frame) -> Any:
        if self._model.spec.input.kind == "features":
            return frame.data
        codes = frame.data[None]
        if not self._model.spec.scaled:
            return codes
        return ScaledCodes(codes, np.full((1, 1, codes.shape[2]), frame.scale, np.float32))

    async def _frames(self, output: Output, *, last: bool) -> list[Frame]:
        assert isinstance(output, np.ndarray)
        if self._model.spec.output.kind == "video":
            images = await asyncio.to_thread(to_pixels, output)
            return [self._frame(*shown) for shown in self._shown.show(images, last=last)]
        audio = output[0].astype(np.float32, copy=False)
        if self._early is not None:
            audio = np.concatenate((self._early, audio), axis=1)
        samples = min(audio.shape[1], max(0, self._counts.left))
        # Durations are rounded to ticks, so what lies beyond the end by less may be within it yet.
        self._early = None if last else audio[:, samples : samples + self._most_early].copy()
        if not samples:
            return []
        return [self._frame(audio[:, :samples], *self._counts.give(samples, last=last))]


def to_pixels(video: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """(1, 3, frames, height, width) in [-1, 1] -> each image, uint8 (3, 1, height, width).

    They lie in memory as (height, width, 3), the way that most take images.
    """
    scaled = video[0].astype(np.float32)
    scaled += 1
    scaled *= 127.5
    bytes_ = np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)
    pixels = np.ascontiguousarray(bytes_.transpose(1, 2, 3, 0))
    return [image.transpose(2, 0, 1)[:, None] for image in pixels]


def _check_decodable(info: StreamInfo) -> None:
    is_latents = info.kind == "features" and len(info.shape) == 4
    if info.kind != "codes" and not is_latents:
        raise FitError(
            f"only codes, and latents of images, can be decoded; got {info}"
            + (": decode its tracks one by one" if info.kind == "mux" else "")
        )
