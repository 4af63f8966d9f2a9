"""Windows: which positions each one sees, and which of them it gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamenc.layers.attention.windows import Windows


class Told(nn.Module):
    """Gives each position with how many there are in its window, and the sum of those."""

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        assert not x[0, :, : x.shape[-1] - int(count[0])].any()
        count_of = count.to(x.dtype)[:, None, None].expand_as(x)
        return torch.cat((x, count_of, x.sum(-1, keepdim=True).expand_as(x)), dim=1)


def expected(length: int, window: int, hop: int, ahead: int) -> Tensor:
    """Of the positions 1, 2, 3, ..., by the definition."""
    given, rows = 0, []
    while given < length:
        stop = given + hop + ahead
        start = max(0, stop - window)
        last = given + hop if stop <= length else length
        seen = range(start, min(stop, length))
        for item in range(given, last):
            rows.append([item + 1, len(seen), sum(n + 1 for n in seen)])
        given = last
    return torch.tensor(rows, dtype=torch.float64).t()


@pytest.mark.parametrize("sizes", [(4, 4, 0), (5, 2, 0), (7, 2, 3), (6, 3, 3), (1, 1, 0)])
@pytest.mark.parametrize("length", [0, 1, 4, 5, 6, 7, 23])
def test_what_a_window_sees_and_gives(sizes, length):
    layer = Windows(Told(), 3, *sizes)
    x = torch.arange(1, length + 1, dtype=torch.float64)[None, None]
    whole = layer(x)
    assert whole.shape == (1, 3, length)
    if length:
        assert torch.equal(whole[0], expected(length, *sizes))
    steps = layer.steps
    if length > steps.lead:
        y, state = layer.step(x[..., : steps.lead], None)
        outputs, at = [y], steps.lead
        while at + steps.hop <= length:
            y, state = layer.step(x[..., at : at + steps.hop], state)
            outputs.append(y)
            at += steps.hop
        outputs.append(layer.step(x[..., at:], state, end=True)[0])
        assert torch.equal(torch.cat(outputs, -1), whole)
