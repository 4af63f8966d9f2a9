"""Rows decoded: pieces between gaps alone, with their scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import streamenc
from streamenc.bulk.encoding.tokenizer import facts_of
from streamenc.bulk.readback.rowdecoder import RowDecoder
from streamenc.bulk.tokenizejob import ModelAsk, ModelFacts, TokenizeJob
from streamenc.errors import InputError
from streamenc.nodes.codes.interleaving import delay

ASK = ModelAsk(name="nano", codebooks=2)


@pytest.fixture(scope="module")
def nano() -> streamenc.Codec:
    return streamenc.load("nano", backend="torch")


def told(nano: streamenc.Codec, layout: str = "books") -> ModelFacts:
    return facts_of(nano, ASK, TokenizeJob(input="", models=(ASK,), layout=layout))


def test_pieces_between_gaps_are_decoded_alone(nano: streamenc.Codec) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (2, 12)).astype(np.uint16)
    pieces = np.split(codes, [5, 8], axis=1)
    wanted = torch.cat([nano.decode(torch.from_numpy(p.astype(int))[None])[0] for p in pieces], 1)
    row: dict[str, Any] = {"codes": codes, "gaps": [5, 8], "n_samples": 3, "rate": 16000.0}
    made = RowDecoder(told(nano), ASK, "books", codec=nano).decode(row)
    assert torch.equal(made, wanted), "which frames a gap has cost, nobody knows: nothing is cut"
    delayed = [delay(piece, 1024) for piece in pieces]
    row |= {"codes": np.concatenate(delayed, axis=1), "gaps": [6, 10]}
    assert torch.equal(
        RowDecoder(told(nano, "delay"), ASK, "delay", codec=nano).decode(row), wanted
    )
    del row["gaps"]
    with pytest.raises(InputError, match="no 'gaps'"):
        RowDecoder(told(nano, "delay"), ASK, "delay", codec=nano).decode(row)


def test_the_encoder_is_not_kept() -> None:
    decoder = RowDecoder(told(streamenc.load("nano", part="encoder")), ASK, "books")
    assert not decoder.codec.has_encoder
