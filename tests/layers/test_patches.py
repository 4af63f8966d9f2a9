"""Neighbours along time as channels, and back."""

from __future__ import annotations

import pytest
import torch

from streamenc.layers.patches import Patches, Unpatched


def numbers(positions: int) -> torch.Tensor:
    return torch.arange(2 * 3.0 * positions).view(2, 3, positions)


def test_the_order_of_the_channels() -> None:
    x = torch.tensor([[[0.0, 1, 2, 3], [10, 11, 12, 13]]])
    y, _ = Patches(2).step(x, None)
    assert y.tolist() == [[[0, 2], [1, 3], [10, 12], [11, 13]]]
    z, _ = Patches(2, stacked=True).step(x, None)
    assert z.tolist() == [[[0, 2], [10, 12], [1, 3], [11, 13]]]


def test_unpatched_undoes_it() -> None:
    y, _ = Patches(4).step(numbers(20), None)
    assert torch.equal(Unpatched(4).step(y, None)[0], numbers(20))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("tail", [0, 1, 4])
def test_a_tail_is_left_out_at_the_end_alone(stacked: bool, tail: int) -> None:
    layer = Patches(5, stacked=stacked)
    wanted, _ = layer.step(numbers(15), None)
    longer = torch.cat((numbers(15), torch.ones(2, 3, tail)), dim=-1)
    assert torch.equal(layer.step(longer, None, end=True)[0], wanted)
    if tail:
        with pytest.raises(AssertionError):
            layer.step(longer, None)
