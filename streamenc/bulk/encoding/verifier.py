"""Verifier: some items encoded once more, by another road, and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import numpy as np
import torch

from streamenc.bulk.decoding.mediareader import Reading
from streamenc.bulk.decoding.preparing import Preparing
from streamenc.bulk.encoding.modelpass import Gathered
from streamenc.bulk.encoding.road import Models
from streamenc.bulk.items import Item, Row, Tokens
from streamenc.errors import StreamencError

log = logging.getLogger(__name__)

# What is collected of an item at most: an hour at 16 kHz. Of longer ones none is verified.
MOST_BYTES = 1 << 28
# Of features, relative to the largest of an item: sums in another order, and what float16 rounds.
CLOSE = {"float16": 2e-3}
CLOSE_IN_FULL = 1e-4
DIFFERS = "differs"


class Verifier:
    """Encodes a share of the items as a whole, by `Codec.encode` on all that was decoded of each.

    Which ones, their names decide: they are the same in each run.

    Args:
        share: Of the items, 0 to 1.
    """

    def __init__(self, models: Models, preparing: Preparing, share: float) -> None:
        self._models, self._preparing, self._share = models, preparing, share

    def chosen(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self._share * 2.0**64

    def verified(self, item: Item, row: Row) -> Row:
        """The row, and what came of it: tokens that differ are flagged, and told in the log."""
        try:
            others = self._encoded(item)
        except StreamencError as error:
            others, differing = [], [str(error)]
        if others is None:
            log.info("%s is too long to be verified", item.key)
            return row
        if others:
            told = map(difference, row.tokens, others)
            pairs = zip(self._models.codecs, told, strict=True)
            differing = [f"{codec.public_name}: {what}" for codec, what in pairs if what]
        if not differing:
            return dataclasses.replace(row, verified=True)
        log.warning(
            "%s has other tokens when it is encoded alone, as a whole: %s",
            item.key,
            "; ".join(differing),
        )
        return dataclasses.replace(row, verified=True, flags=(*row.flags, DIFFERS))

    def _encoded(self, item: Item) -> list[Tokens] | None:
        """What each model makes of an item; None for one that is too long."""
        parts: dict[int, list[list[np.ndarray]]] = {}
        size = 0
        for piece in self._preparing.pieces(item):
            if isinstance(piece, Reading):
                break
            stretches = parts.setdefault(piece.of, [[]])
            if piece.anew and stretches[-1]:
                stretches.append([])
            if piece.data.shape[1]:
                stretches[-1].append(piece.data)
            size += piece.data.nbytes
            if size > MOST_BYTES:
                return None
        of = self._preparing.of
        return [self._of_one(at, parts.get(of[at], [])) for at in range(len(self._models))]

    def _of_one(self, at: int, stretches: list[list[np.ndarray]]) -> Tokens:
        models = self._models
        codec, ask = models.codecs[at], models.job.models[at]
        gathered = Gathered(codec, ask, models.job.layout)
        for number, stretch in enumerate(part for part in stretches if part):
            if number:
                gathered.break_off()
            whole = torch.from_numpy(np.concatenate(stretch, axis=1))
            gathered.add(codec.encode(whole[None], codebooks=ask.codebooks))
        return gathered.tokens(models.nothing[at])


def difference(ours: Tokens, theirs: Tokens) -> str:
    """In what tokens differ; "" where they do not: codes to the last, features to rounding."""
    if ours.data.shape != theirs.data.shape or ours.gaps != theirs.gaps:
        return f"{ours.data.shape[1]} frames, and {theirs.data.shape[1]} as a whole"
    if not ours.data.size:
        return ""
    if ours.data.dtype.kind != "f":
        count = int((ours.data != theirs.data).sum())
        return f"{count} of {ours.data.size} codes" if count else ""
    close = CLOSE.get(ours.data.dtype.name, CLOSE_IN_FULL)
    mine, other = ours.data.astype(np.float64), theirs.data.astype(np.float64)
    most = float(np.abs(mine - other).max() / max(float(np.abs(other).max()), 1e-30))
    return "" if most <= close else f"features by {most:.1e} of the largest"
