"""Snake against its formula."""

from __future__ import annotations

import torch

from streamenc.layers.activation import Snake, SnakeBeta
from tests.support.compare import assert_close


def test_snake():
    x = torch.randn(2, 5, 123, generator=torch.Generator().manual_seed(0)).double()
    alpha = torch.tensor([0.0, 0.5, 1, -2, 30]).double()
    layer = Snake(5).double().requires_grad_(False)
    layer.alpha.copy_(alpha[:, None])
    expected = x + torch.sin(alpha[:, None] * x) ** 2 / (alpha[:, None] + 1e-9)
    assert_close(layer(x), expected, 1e-12)


def test_snake_beta():
    x = torch.randn(2, 5, 123, generator=torch.Generator().manual_seed(0)).double()
    alpha, beta = torch.linspace(-2, 2, 5).double(), torch.linspace(3, -3, 5).double()
    layer = SnakeBeta(5).double().requires_grad_(False)
    layer.alpha.copy_(alpha)
    layer.beta.copy_(beta)
    scale = 1 / (beta.exp() + 1e-9)
    expected = x + scale[:, None] * torch.sin(alpha.exp()[:, None] * x) ** 2
    assert_close(layer(x), expected, 1e-12)
