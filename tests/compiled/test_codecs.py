"""Codecs of convolutions, ConvNeXt blocks, patches and transformers, beside the same in torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="needs the extra cpu")
import streamenc
from streamenc import state as states
from streamenc.compiled.compiledmodel import CompiledModel
from streamenc.layers.patches import Patches, Unpatched
from streamenc.layers.streamed import Streamed
from streamenc.models.codecs import vibevoice
from streamenc.models.model import Model
from tests.support import moss
from tests.support.compare import assert_close
from tests.support.programs import (
    ROUNDING,
    assert_states_close,
    compiled_step,
    randomized,
    steps,
)

VIBEVOICE = {
    "num_filters": 6,
    "downsampling_ratios": [2, 3],
    "depths": [1, 2, 2],
    "hidden_size": 10,
}


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(
    "layer, channels, positions",
    [
        (Patches(4), 1, 12),
        (Patches(3), 5, 9),
        (Patches(3, stacked=True), 5, 9),
        (Unpatched(4), 4, 3),
        (Unpatched(3), 15, 2),
    ],
)
def test_patches(layer: Streamed, channels: int, positions: int, lanes: int) -> None:
    x = torch.randn(lanes, channels, positions, generator=torch.Generator().manual_seed(1))
    y, _ = layer.step(x, None)
    # A program's state has a leaf at least for its lanes to be told by.
    ours, _ = compiled_step(layer, x, torch.zeros(lanes, 1))
    assert torch.equal(ours, y)


def models(name: str, folder: Path) -> dict[str, Model]:
    if name == "moss":
        moss.save(folder)
        codec = streamenc.load(str(folder), backend="torch")
        return {"encoder": codec.encoder, "decoder": codec.decoder}
    shape = vibevoice._Shape(VIBEVOICE, {})
    made: dict[str, Model] = {
        "encoder": vibevoice.VibeVoiceEncoder(shape),
        "decoder": vibevoice.VibeVoiceDecoder(shape),
    }
    for model in made.values():
        randomized(model)
        model.prepare()
    return made


def pushed(model: Model, hops: int, lanes: int = 1) -> list[Tensor]:
    """A first step, and so many of one hop to three."""
    generator = torch.Generator().manual_seed(2)
    port, made = model.spec.input, []
    for index in range(hops + 1):
        length = (1 + index % 3) * model.spec.hop if index else model.spec.lead
        if port.kind == "codes":
            shape = (lanes, port.channels, length)
            codes = torch.randint(model.spec.codebook_size, shape, generator=generator)
            made.append(model.before(codes))
        else:
            made.append(0.3 * torch.randn(lanes, port.channels, length, generator=generator))
    return made


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["moss", "vibevoice"])
@pytest.mark.parametrize("precision", ["float32", "int16"])
def test_is_torch_on_the_same_weights(name: str, part: str, precision: str, tmp_path: Path) -> None:
    model = models(name, tmp_path)[part]
    compiled = CompiledModel(model, precision)
    for hops in (2, 3):
        compiled.warm_up(hops)
    assert len(compiled._programs) == 3
    inputs = pushed(model, 40)
    theirs, state = steps([model], inputs)
    ours, ours_state = steps([compiled], inputs)
    assert_close(ours, theirs, ROUNDING)
    assert_states_close(ours_state, state)
    turns, _ = steps([model, compiled, compiled], inputs, end=True)
    ended, _ = steps([model], inputs, end=True)
    assert_close(turns, ended, ROUNDING)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["moss", "vibevoice"])
def test_lanes_are_streams_by_themselves(name: str, part: str, tmp_path: Path) -> None:
    model = models(name, tmp_path)[part]
    compiled = CompiledModel(model)
    inputs = pushed(model, 12, lanes=3)
    together, state = steps([compiled], inputs)
    for lane in range(3):
        alone, lane_state = steps([compiled], [x[lane : lane + 1] for x in inputs])
        assert_close(alone, together[lane : lane + 1], ROUNDING)
        assert_states_close(lane_state, states.lane(state, lane))
