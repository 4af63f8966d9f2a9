"""Decode: frames of codes back to audio, on the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from streamenc.codec import Codec
from streamenc.engine.session import Engine
from streamenc.errors import FitError
from streamenc.frames import Frame, StreamInfo
from streamenc.models.base import Scaled, Signal
from streamenc.nodes.model import ModelNode


class Decode(ModelNode):
    """Decodes a live stream of codes; what the encoder padded its last frame with is cut off again."""

    def __init__(self, codec: Codec, engine: Engine, *, hops: int = 1) -> None:
        super().__init__(codec.decoder, engine, hops=hops)
        self._codec = codec

    def _agree(self, info: StreamInfo) -> StreamInfo:
        spec = self._model.spec
        if info.kind != "codes" or info.codebook_size != spec.codebook_size:
            entries = f", of {info.codebook_size} entries" if info.kind == "codes" else ""
            raise FitError(
                f"{self._codec.name} decodes codes of {spec.codebook_size} entries; got {info}{entries}"
            )
        if info.shape[0] is not None and info.shape[0] > spec.input.channels:
            raise FitError(
                f"{self._codec.name} decodes up to {spec.input.channels} codebooks; got {info}"
            )
        return StreamInfo(
            kind="audio",
            time_base=info.time_base,
            rate=spec.output.rate,
            shape=(spec.output.channels, None),
            dtype="float32",
            model=info.model,
        )

    def _chunk(self, frame: Frame) -> Any:
        codes = torch.from_numpy(frame.data.astype(np.int64))[None]
        if not self._model.spec.scaled:
            return codes
        return Scaled(codes, torch.full((1, 1, codes.shape[-1]), frame.scale))

    def _frames(self, signal: Signal, *, last: bool) -> list[Frame]:
        assert isinstance(signal, torch.Tensor)
        samples = min(signal.shape[-1], self._timeline.left())
        if samples <= 0:
            return []
        pts, duration = self._timeline.give(samples)
        return [self._frame(signal[0, :, :samples].float().cpu().numpy(), pts, duration)]
