"""Samplers and shortcuts over video: step by step they give what they give at once; their reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from streamenc.layers.streamed import Streamed
from streamenc.layers.video.rescale import (
    Folded,
    FoldedDown,
    RepeatedUp,
    StridedDown,
    Unfolded,
    UnfoldedUp,
)
from tests.support.compare import assert_close, poisoned_memory
from tests.support.videolayers import assert_steps_equal_the_whole, frames, made

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

# A layer over 6 channels, and how many frames its steps take after the first one.
LAYERS: dict[str, tuple[Callable[[], Streamed], int]] = {
    "down": (lambda: StridedDown(6, time=True), 2),
    "down in space": (lambda: StridedDown(6, time=False), 1),
    "up": (lambda: RepeatedUp(6, 3, time=True), 1),
    "up in space": (lambda: RepeatedUp(6, 3, time=False), 1),
    "folded": (lambda: FoldedDown(6, 12, space=2, time=2), 2),
    "folded in space": (lambda: FoldedDown(6, 4, space=2, time=1), 1),
    "mixed channels": (lambda: FoldedDown(6, 3, space=1, time=1), 1),
    "unfolded": (lambda: UnfoldedUp(6, 3, space=2, time=2), 1),
    "unfolded in space": (lambda: UnfoldedUp(6, 3, space=2, time=1), 1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("steps", [[1] * 12, [3, 1, 7, 5]])
def test_steps_equal_the_whole(name, steps):
    make, unit = LAYERS[name]
    assert_steps_equal_the_whole(made(make), [1, *(unit * step for step in steps)])


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_depend_on_what_reach_says(name):
    make, unit = LAYERS[name]
    layer = made(make)
    x = frames(1 + 8 * unit, batch=1)
    whole = layer(x)
    assert whole.shape[1] == layer.steps.outputs(x.shape[1])
    seen: dict[int, list[int]] = {}
    for frame in range(x.shape[1]):
        other = x.clone()
        other[:, frame] += 1
        differ = (layer(other) - whole).abs().amax(dim=(0, 2, 3, 4)) > 1e-9
        for item in differ.nonzero().flatten().tolist():
            seen.setdefault(item, []).append(frame)
    found = {item: (min(inputs), max(inputs)) for item, inputs in seen.items()}
    assert found == {item: layer.reach(item, item) for item in range(whole.shape[1])}


def test_means_of_a_block_are_those_of_pooling():
    x = frames(5)
    y = FoldedDown(6, 6, space=2, time=2)(x)
    padded = F.pad(x.transpose(1, 2), (0, 0, 0, 0, 1, 0))
    assert_close(y, F.avg_pool3d(padded, 2).transpose(1, 2), 1e-12)


def test_unfolding_undoes_folding():
    x = frames(7)
    folded = FoldedDown(6, 48, space=2, time=2)
    back = UnfoldedUp(48, 6, space=2, time=2)
    assert torch.equal(back(folded(x)), x)
    for size in (1, 2):
        assert torch.equal(Unfolded(size)(Folded(size)(x)), x)


def test_channels_that_make_no_whole_groups():
    with pytest.raises(ValueError, match="6 channels"):
        FoldedDown(6, 5, space=2, time=1)
    with pytest.raises(ValueError, match="6 channels"):
        UnfoldedUp(6, 4, space=1, time=1)
