"""Snake: activations with a learned frequency for each channel (Liu, Hartwig and Ueda, arXiv
2006.08195). They see each position alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# What keeps a frequency of 0 from dividing by it.
EPSILON = 1e-9


class Snake(nn.Module):
    """x + sin^2(alpha x) / (alpha + 1e-9), (batch, channels, time) -> the same.

    alpha  (1, channels, 1), as the DAC family stores it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _snake(x, self.alpha, self.alpha)


class SnakeBeta(nn.Module):
    """x + sin^2(exp(alpha) x) / (exp(beta) + 1e-9), (batch, channels, time) -> the same.

    With a magnitude of its own beside the frequency, both as logarithms (BigVGAN, arXiv
    2206.04658).

    alpha, beta  (channels,).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return _snake(x, self.alpha.exp()[:, None], self.beta.exp()[:, None])


def _snake(x: Tensor, frequency: Tensor, divisor: Tensor) -> Tensor:
    return torch.addcmul(x, (divisor + EPSILON).reciprocal(), (frequency * x).sin().square())
