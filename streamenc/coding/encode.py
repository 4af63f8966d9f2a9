"""Encode: frames of sound, images or text to frames of codes or features, on the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from streamenc.coding.sessionnode import ModelNode
from streamenc.coding.times import CarriedTimes, OutputTimes, SegmentTimes
from streamenc.engine.exchange import outputs
from streamenc.engine.remote.remotemodel import RemoteCodec, RemoteModel
from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo, round_to_bfloat16
from streamenc.spec import ScaledCodes

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.engine.engine import Engine
    from streamenc.engine.remote.remoteengine import RemoteEngine
    from streamenc.models.model import Model
    from streamenc.models.signal import Signal

FEATURE_DTYPES = ("float32", "float16", "bfloat16")


class Encode(ModelNode):
    """Encodes a live stream; of sound, a Chunker before it makes each frame one step.

    What comes out of images has the times of the images that it was made from, a frame each; what
    comes out of text, those of its segments, with their numbers, and flagged where one is revised.

    codebooks  How many codebooks come out; None for all. May be changed while the graph runs.
    hops       Hops in a step: 1 for live sound, more for files.
    cut        Texts that had more tokens than the model takes.
    dtype      What features are rounded to: "float32" (as None), "float16" or "bfloat16". Half as
               many bytes are recorded and sent; see StreamInfo.
    """

    _times: OutputTimes

    def __init__(
        self,
        codec: Codec | RemoteCodec,
        engine: Engine | RemoteEngine,
        *,
        codebooks: int | None = None,
        hops: int = 1,
        dtype: str | None = None,
    ) -> None:
        super().__init__(engine, hops=hops, codebooks=codebooks)
        if codebooks is not None:
            codec.encoder.check_codebooks(codebooks)
        self._codec, self._model = codec, codec.encoder
        output = codec.spec.output
        if dtype is not None and (output.kind != "features" or dtype not in FEATURE_DTYPES):
            raise UsageError(
                f"dtype is {' or '.join(FEATURE_DTYPES)}, of features; got {dtype!r} for the "
                f"{output.kind} of {codec.name}"
            )
        self._dtype = dtype or output.dtype
        self.cut = 0
        self._marks: deque[tuple[int, bool]] = deque()  # of segments: their numbers, revised or not

    @property
    def codebooks(self) -> int | None:
        return self._codebooks

    @codebooks.setter
    def codebooks(self, codebooks: int | None) -> None:
        if codebooks is not None:
            self._model.check_codebooks(codebooks)
        if self._session is not None:
            self._session.codebooks = codebooks
        self._codebooks = codebooks

    def _agree(self, info: StreamInfo) -> StreamInfo:
        spec, name = self._model.spec, self._codec.name
        if spec.input.kind == "video":
            if info.kind != "video":
                raise FitError(f"{name} encodes video; got {info}")
            self._check_grid(info, name)
            rate = info.rate * spec.hop_out / spec.hop
            self._times = CarriedTimes(self._model.first_input)
        elif spec.input.kind == "text":
            if info.kind != "text":
                raise FitError(f"{name} encodes text; got {info}: give it a source of text")
            rate, self._times = Fraction(0), SegmentTimes()
        else:
            self._check_audio(info, name)
            rate = spec.output.rate
            self._times = self._counted(info)
        kind = spec.output.kind
        assert kind in ("codes", "features")
        return StreamInfo(
            kind=kind,
            time_base=info.time_base,
            rate=rate,
            shape=(spec.output.channels, None, *self._axes(info)),
            dtype=self._dtype,
            model=self._codec.public_name,
            codebook_size=spec.codebook_size,
        )

    def _axes(self, info: StreamInfo) -> tuple[int | None, ...]:
        """Of an output, behind time."""
        axes = self._model.spec.output.axes
        return (self._grid(info) or (None,) * axes) if axes else ()

    def _check_audio(self, info: StreamInfo, name: str) -> None:
        port = self._model.spec.input
        rate, channels = port.rate, port.channels
        if info.kind == "text":
            raise FitError(f"{name} encodes sound; got {info}: encode it with a model of text")
        if info.kind != "audio" or info.rate != rate or info.shape[0] != channels:
            raise FitError(
                f"{name} encodes {float(rate):g} Hz audio of {channels} "
                f"channel{'s' * (channels > 1)}; got {info}: put Resample({int(rate)}, {channels}) "
                "before it"
            )

    def _took(self, frame: Frame) -> None:
        super()._took(frame)
        if self._model.spec.input.kind == "text":
            self._marks.extend([(frame.segment, frame.revised)] * frame.data.shape[1])

    async def _chunk(self, frame: Frame) -> Any:
        if self._model.spec.input.kind != "text":
            return frame.data
        if isinstance(self._model, RemoteModel):
            return frame.data[0].tolist()
        # Of a long text, tokens take a while.
        return await asyncio.to_thread(self._tokens, self._model, frame)

    def _tokens(self, model: Model, frame: Frame) -> Signal:
        """What the model makes of texts; says of those that are too long for it that they are."""
        from streamenc.models.signal import values
        from streamenc.models.text.textencoder import TextEncoder

        tokens = model.signal(frame.data)
        # Only a text that fills its row may have been cut.
        if isinstance(model, TextEncoder) and bool(values(tokens)[..., -1].any()):
            self.cut += model.overlong(frame.data)
        if self.cut:
            self.remarks = [
                f"{self.cut} texts had more tokens than {self._codec.name} takes, and were cut "
                "there: make shorter segments of them"
            ]
        return tokens

    async def _frames(self, output: outputs.Output, *, last: bool) -> list[Frame]:
        count = outputs.items(output)
        if not count:
            return []
        array = outputs.values(output)[0]
        if self._dtype == "bfloat16":
            array = round_to_bfloat16(array)
        else:
            array = array.astype(self._dtype, copy=False)
        if self._model.spec.input.kind in ("video", "text"):
            # Each by itself, as each has its own time.
            return [self._dated(array[:, i : i + 1], last=last) for i in range(count)]
        if not isinstance(output, ScaledCodes):
            return [self._dated(array, last=last)]
        # A scale holds for one segment, so its codes travel in a frame of their own.
        factors = output.scale[0, 0].tolist()
        size = self._model.spec.hop_out
        starts = [i for i in range(count) if i % size == 0 or factors[i] != factors[i - 1]]
        frames = []
        for start, stop in zip(starts, [*starts[1:], count], strict=True):
            piece = np.ascontiguousarray(array[:, start:stop])
            frames.append(self._dated(piece, scale=factors[start], last=last and stop == count))
        return frames

    def _dated(self, data: Any, *, scale: float = 1.0, last: bool) -> Frame:
        frame = self._frame(data, *self._times.give(data.shape[1], last=last), scale)
        if not self._marks:
            return frame
        segment, revised = self._marks.popleft()
        return frame.with_(segment=segment, revised=revised)
