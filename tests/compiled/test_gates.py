"""Transformers with gated feed-forwards as programs, beside the same in torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")
from streamenc import state as states
from streamenc.layers.attention.sliding import Norm, Transformer
from tests.support.compare import assert_close
from tests.support.programs import ROUNDING, assert_states_close, compiled_step, randomized

BIASES = ("in_proj", "out_proj", "linear1", "linear2")


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("scaled, biases", [(True, ()), (False, BIASES), (True, BIASES)])
@pytest.mark.parametrize("precision", ["float32", "int16"])
def test_gated_feed_forward(
    norm: Norm, scaled: bool, biases: tuple[str, ...], precision: str
) -> None:
    layer = Transformer(
        *(36, 3, 50, 2, 5),
        norm=norm,
        gated=True,
        scaled=scaled,
        final=True,
        biases=biases,
    )
    randomized(layer)
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        _, state = layer.step(torch.randn(2, 36, 2, generator=generator), None)
        for positions in (1, 2, 1, 1, 2, 2):
            x = torch.randn(2, 36, positions, generator=generator)
            ours, ours_after = compiled_step(layer, x, state, precision)
            theirs, state = layer.step(x, state)
            assert_close(ours, theirs, ROUNDING)
            assert_states_close(ours_after, states.clone(state))
