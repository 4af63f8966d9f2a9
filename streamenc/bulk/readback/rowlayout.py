"""RowLayout: the tokens of a row in another layout than that of the set."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamenc.bulk.outputs.rowcolumns import names_of
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.errors import InputError
from streamenc.nodes.codes.interleaving import (
    Layout,
    Layouter,
    Undelayer,
    token_dtype,
    unflatten,
)

Codes = np.ndarray[Any, Any]


class RowLayout:
    """Brings the tokens of one model from a layout to another.

    Between gaps, each piece is laid out by itself, as it was when it was made.

    Args:
        there, wanted: Layouts, as options name them.

    Attributes:
        names: The columns of the model.
    """

    def __init__(self, model: ModelFacts, there: str, wanted: str) -> None:
        self._model, self._same, self.names = model, there == wanted, names_of(model)
        self._there, self._wanted = Layout.of(there), Layout.of(wanted)
        if model.kind == "codes" and self._wanted.name == "delay":
            self._wanted.delays_of(model.codebooks)

    def change(self, tokens: Codes, gaps: list[int]) -> tuple[Codes, list[int]]:
        """(rows, frames), or (tokens,) where flat, and where its gaps are -> those of the other.

        Raises InputError where they are not of the layout that the set is said to have.
        """
        if self._same or self._model.kind != "codes":
            return tokens, gaps
        pieces = [self._laid_out(self._codes(piece)) for piece in np.split(tokens, gaps, axis=-1)]
        ends = np.cumsum([piece.shape[-1] for piece in pieces])
        return np.concatenate(pieces, axis=-1), [int(end) for end in ends[:-1]]

    def _codes(self, piece: Codes) -> Codes:
        """A piece without gaps as (codebooks, frames)."""
        model, layout = self._model, self._there
        if layout.name == "flat":
            piece = piece[None] if piece.ndim == 1 else piece
            return unflatten(piece, model.codebooks, model.codebook_size)
        if layout.name == "delay" and piece.shape[1]:
            undelayer = Undelayer(layout.delays_of(model.codebooks), model.codebook_size)
            codes = undelayer.push(piece)
            if undelayer.flush():
                raise InputError("the tokens end before their last frames are whole")
            return codes
        return piece

    def _laid_out(self, codes: Codes) -> Codes:
        model = self._model
        if self._wanted.name == "books":
            return codes.astype(token_dtype(model.codebook_size), copy=False)
        layouter = Layouter(self._wanted, model.codebooks, model.codebook_size)
        made = np.concatenate((layouter.push(codes), layouter.flush()), axis=1)
        return made[0] if self._wanted.name == "flat" else made
