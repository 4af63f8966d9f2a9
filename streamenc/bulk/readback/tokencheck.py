"""TokenCheck: whether the tokens of rows are what a model can have made of so many samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from streamenc.bulk.outputs.rowcolumns import names_of
from streamenc.bulk.readback.rowdecoder import RowDecoder
from streamenc.bulk.readback.rowlayout import RowLayout
from streamenc.bulk.readback.shardrows import RowDict
from streamenc.bulk.tokenizejob import ModelAsk, ModelFacts
from streamenc.codec import Codec
from streamenc.errors import StreamencError, UsageError
from streamenc.registry import load

DECODED_SECONDS = 30


class TokenCheck:
    """Looks at the tokens of one model.

    Args:
        device: Where the model is loaded to; None loads none.

    Attributes:
        lengths: Rows whose number of frames was compared with their samples.
        decoded: Rows that were decoded.
        left_out: What is not looked at, and why.
    """

    def __init__(self, model: ModelFacts, ask: ModelAsk, device: str | None) -> None:
        self._model, self._names = model, names_of(model)
        self._layout = RowLayout(model, model.layout, "books")
        self.lengths = self.decoded = 0
        self.left_out: list[str] = []
        self._codec: Codec | None = None
        self._decoder: RowDecoder | None = None
        if device is None:
            return
        try:
            self._load(ask, device)
        except StreamencError as error:
            self.left_out.append(f"lengths and decoding of {model.column}: {error}")

    def frames(self, row: RowDict) -> int:
        """Columns of the array, as manifests count them."""
        return int(row[self._names.tokens].shape[-1 - self._model.axes])

    def check(self, row: RowDict, *, decode: bool) -> Iterator[str]:
        """What is wrong with a row, in words. Raises InputError for codes of another layout."""
        model, names = self._model, self._names
        data, gaps = row[names.tokens], row[names.gaps]
        heights = 1 if data.ndim == 1 else len(data)
        if heights != model.rows:
            yield f"{heights} rows of tokens; {model.rows} are wanted"
            return
        if any(not 0 < gap < self.frames(row) for gap in gaps):
            yield f"its gaps {gaps} are not within its {self.frames(row)} frames"
            return
        codes, code_gaps = self._layout.change(data, gaps)
        if model.kind == "codes":
            most = int(codes.max(initial=0))
            if most >= model.codebook_size:
                yield f"code {most}; there are {model.codebook_size} entries"
                return
        elif not np.isfinite(codes).all():
            yield "features that are no numbers"
            return
        frames = codes.shape[1]
        if names.scales and len(row[names.scales] or ()) != frames:
            yield f"{len(row[names.scales] or ())} scales for {frames} frames"
            return
        if self._codec is not None and not gaps:
            yield from self._wrong_length(row, frames)
        if decode and self._decoder is not None:
            yield from self._undecoded(row, codes, code_gaps)

    def _load(self, ask: ModelAsk, device: str) -> None:
        codec = load(ask.name, part="both", device=device, backend="torch", **ask.options)
        if codec.encoder.fingerprint() != self._model.fingerprint:
            raise UsageError(
                f"{codec.name} has the fingerprint {codec.encoder.fingerprint()} now, and had "
                f"{self._model.fingerprint}"
            )
        self._codec = codec
        if codec.has_decoder:
            self._decoder = RowDecoder(self._model, ask, "books", codec=codec, check=False)
        else:
            self.left_out.append(f"decoding of {self._model.column}: {codec.name} has no decoder")

    def _wrong_length(self, row: RowDict, frames: int) -> Iterator[str]:
        """By the steps of the model; how it ends differs from model to model by a step."""
        assert self._codec is not None
        spec, samples, rate = self._codec.spec, row["n_samples"], row["rate"]
        if samples is None or not rate:
            return
        items = samples
        if spec.input.kind == "audio":
            items = round(samples * float(spec.input.rate) / rate)
        steps = max(0, (items - spec.lead) / spec.hop)
        wanted = steps * spec.hop_out + (spec.lead_out if items >= spec.lead else 0)
        self.lengths += 1
        if abs(frames - wanted) > spec.hop_out + spec.lead_out:
            yield f"{frames} frames for {samples} samples of {rate:g} Hz; about {wanted:.0f} fit"

    def _undecoded(
        self, row: RowDict, codes: np.ndarray[Any, Any], gaps: list[int]
    ) -> Iterator[str]:
        """The beginning of it, if it is long."""
        assert self._decoder is not None and self._codec is not None
        port = self._codec.spec.output
        most = max(1, int(DECODED_SECONDS * port.rate))
        first = gaps[0] if gaps else codes.shape[1]
        frames = min(first, most)
        some = row | {self._names.tokens: codes[:, :frames], self._names.gaps: []}
        if self._names.scales:
            some[self._names.scales] = row[self._names.scales][:frames]
        if frames < codes.shape[1]:
            some["n_samples"] = None
        self.decoded += 1
        try:
            made = self._decoder.decode(some)
        except StreamencError as error:
            yield f"it cannot be decoded: {error}"
            return
        if not bool(made.isfinite().all()):
            yield "it is decoded to what are no numbers"
        elif frames and not made.numel():
            yield f"{frames} frames are decoded to nothing"
