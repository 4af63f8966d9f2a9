"""RowDecoder: the tokens of rows back to sound or images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamenc import registry
from streamenc.bulk.readback.rowlayout import RowLayout
from streamenc.bulk.readback.shardrows import RowDict
from streamenc.bulk.tokenizejob import ModelAsk, ModelFacts
from streamenc.codec import Codec
from streamenc.errors import InputError, UsageError
from streamenc.models.signal import Scaled


class RowDecoder:
    """Decodes the tokens of one model, in torch and float32, as they were made.

    Args:
        model: Which one, and its column.
        ask: How it was loaded.
        layout: Of the codes in rows.
        codec: One that is loaded; None loads it.
        device: Where it is loaded to.
        check: Whether its encoder's fingerprint has to be that of the set.

    Attributes:
        codec: The decoder alone.

    Raises UsageError where it has no decoder, or has other weights than it had.
    """

    def __init__(
        self,
        model: ModelFacts,
        ask: ModelAsk,
        layout: str,
        *,
        codec: Codec | None = None,
        device: str = "cpu",
        check: bool = True,
    ) -> None:
        if codec is None:
            part: registry.Part = "both" if check else "decoder"
            codec = registry.load(
                ask.name, part=part, device=device, backend="torch", **ask.options
            )
        if check and codec.has_encoder and codec.encoder.fingerprint() != model.fingerprint:
            raise UsageError(
                f"{codec.name} has the fingerprint {codec.encoder.fingerprint()}, and this set was "
                f"made with {model.fingerprint}: load the revision that made it and give it as "
                "codec=, or say check=False"
            )
        self._decoder = codec.decoder
        self.codec = Codec(codec.name, None, codec.decoder)
        self._model, self._layout = model, RowLayout(model, layout, "books")

    def decode(self, row: RowDict) -> Tensor:
        """(channels, samples), or (3, images, height, width).

        Raises InputError where the tokens are none of this model.
        """
        names = self._layout.names
        for needed in filter(None, (names.gaps, names.scales)):
            if needed not in row:
                raise InputError(f"this row has no {needed!r}, without which it is not decoded")
        tokens, gaps = self._layout.change(np.asarray(row[names.tokens]), row[names.gaps])
        scales = row.get(names.scales)
        bounds = [0, *gaps, tokens.shape[1]]
        pieces = []
        for start, stop in zip(bounds, bounds[1:], strict=False):
            if stop > start:
                pieces.append(self._piece(tokens[:, start:stop], scales, start, stop))
        if not pieces:
            output = self._decoder.spec.output
            return torch.zeros(output.channels, 0, *(0,) * output.axes)
        made = torch.cat(pieces, dim=1)
        return made if gaps else made[:, : self._length(row)]

    def _piece(self, tokens: np.ndarray[Any, Any], scales: Any, start: int, stop: int) -> Tensor:
        kind = np.int64 if self._model.kind == "codes" else np.float32
        device = self._decoder.like.device
        made = torch.from_numpy(tokens.astype(kind))[None].to(device)
        if not self._model.scaled:
            return self.codec.decode(made)[0]
        scale = torch.from_numpy(np.array(scales, np.float32)[start:stop]).to(device)
        return self.codec.decode(Scaled(made, scale[None, None]))[0]

    def _length(self, row: RowDict) -> int | None:
        """How many samples were encoded, at the model's rate; None where that is not known."""
        samples, rate = row.get("n_samples"), row.get("rate")
        if samples is None or not rate:
            return None
        output = self._decoder.spec.output
        if output.kind != "audio":
            return int(samples)
        return round(int(samples) * float(output.rate) / float(rate))
