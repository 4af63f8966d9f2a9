"""Decode: frames of codes back to audio, on the engine."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch

from streamenc.codec import Codec
from streamenc.engine.session import Engine
from streamenc.errors import FitError
from streamenc.frames import Frame, StreamInfo
from streamenc.models.base import Scaled, Signal
from streamenc.nodes.model import ModelNode
from streamenc.registry import LISTED, load
from streamenc.worker import in_daemon_thread


class Decode(ModelNode):
    """Decodes a live stream of codes; what the encoder padded its last frame with is cut off again.

    codec  None takes the model that the stream names, where that is one of the listed models: a
           stranger's stream must not choose what is fetched and opened here.
    """

    def __init__(self, codec: Codec | None, engine: Engine, *, hops: int = 1) -> None:
        super().__init__(engine, hops=hops)
        self._codec = codec
        self._early: np.ndarray[Any, Any] | None = None  # (channels, samples) behind `_end`

    async def open(self, info: StreamInfo) -> StreamInfo:
        if self._codec is None:
            # Not on the engine: a download that hangs must not keep the process alive.
            self._codec = await in_daemon_thread(partial(_listed, info))
        self._model = self._codec.decoder
        return await super().open(info)

    def _agree(self, info: StreamInfo) -> StreamInfo:
        spec = self._model.spec
        if spec.output.kind != "audio":
            raise FitError(
                f"{spec.name} decodes to {spec.output.kind}, which graphs do not carry: use the "
                "model from Python"
            )
        if info.kind != "codes" or info.codebook_size != spec.codebook_size:
            entries = f", of {info.codebook_size} entries" if info.kind == "codes" else ""
            raise FitError(
                f"{spec.name} decodes codes of {spec.codebook_size} entries; got {info}{entries}"
            )
        if info.rate != spec.input.rate:
            raise FitError(
                f"{spec.name} decodes {float(spec.input.rate):g} frames a second; got {info}: are "
                "these codes of another model?"
            )
        if info.shape[0] is not None and info.shape[0] > spec.input.channels:
            raise FitError(f"{spec.name} decodes up to {spec.input.channels} codebooks; got {info}")
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

    def _chunk(self, frame: Frame) -> Any:
        codes = torch.from_numpy(frame.data.astype(np.int64))[None]
        if not self._model.spec.scaled:
            return codes
        return Scaled(codes, torch.full((1, 1, codes.shape[-1]), frame.scale))

    def _frames(self, signal: Signal, *, last: bool) -> list[Frame]:
        assert isinstance(signal, torch.Tensor)
        audio = signal[0].float().cpu().numpy()
        if self._early is not None:
            audio = np.concatenate((self._early, audio), axis=1)
        samples = min(audio.shape[1], max(0, self._left))
        # Durations are rounded to ticks, so what lies beyond the end by less may be within it yet.
        self._early = None if last else audio[:, samples : samples + self._most_early].copy()
        return [self._frame(audio[:, :samples], last=last)] if samples else []


def _listed(info: StreamInfo) -> Codec:
    if info.kind != "codes":
        raise FitError(f"only codes can be decoded; got {info}")
    if info.model not in LISTED:
        raise FitError(
            f"the stream says that {info.model or 'no model'} made it, which is none of the listed "
            "models; name the model to decode it with"
        )
    return load(info.model, part="decoder")
