"""Discriminators of spectra: they learn to tell decoded speech from recorded speech."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOWS = (256, 512, 1024)


class SpectralDiscriminator(nn.Module):
    """Looks at patches of a compressed complex spectrum; a small relative of EnCodec's MS-STFT one.

    Strides shrink bins and windows from the first layer on, so that it is affordable on a CPU.
    """

    def __init__(self, window: int, width: int = 32, *, mixed: bool = False) -> None:
        super().__init__()
        self.mixed = mixed
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        shapes = [
            (3, width, (8, 4), (4, 2)),
            (width, 2 * width, (5, 3), (2, 1)),
            (2 * width, 4 * width, (5, 3), (2, 2)),
            (4 * width, 4 * width, (3, 3), (2, 1)),
        ]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(
                nn.Conv2d(i, o, k, s, padding=(k[0] // 2, k[1] // 2))
            )
            for i, o, k, s in shapes
        )
        self.verdict = nn.Conv2d(4 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(batch, samples) -> verdicts, 1 for recorded and 0 for decoded; features per layer."""
        n = len(self.window)
        spectrum = torch.stft(x, n, n // 4, window=self.window, return_complex=True) * (2 / n)
        power = spectrum.real.square() + spectrum.imag.square() + 1e-8
        loudness = power**0.15
        gain = loudness / power.sqrt()
        h = torch.stack((spectrum.real * gain, spectrum.imag * gain, loudness), dim=1) * 3
        features = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            for layer in self.layers:
                h = F.leaky_relu(layer(h), 0.2)
                features.append(h)
            return self.verdict(h).float(), features


class Discriminators(nn.ModuleList):
    """One for each resolution."""

    def __init__(self, width: int = 32, *, mixed: bool = False) -> None:
        super().__init__(SpectralDiscriminator(window, width, mixed=mixed) for window in WINDOWS)

    def loss(self, recorded: Tensor, decoded: Tensor) -> Tensor:
        """What the discriminators are trained by: least squares, a scalar."""
        both = torch.cat((recorded, decoded.detach()))
        total = recorded.new_zeros(())
        for judge in self:
            real, fake = judge(both)[0].chunk(2)
            total = total + (1 - real).square().mean() + fake.square().mean()
        return total / len(self)

    def verdict(self, recorded: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """What the codec is trained by: the adversarial and the feature-matching loss, scalars."""
        adversarial, matching = decoded.new_zeros(()), decoded.new_zeros(())
        for judge in self:
            with torch.no_grad():
                _, wanted = judge(recorded)
            verdict, features = judge(decoded)
            adversarial = adversarial + (1 - verdict).square().mean()
            for mine, theirs in zip(features, wanted, strict=True):
                distance = (mine.float() - theirs.float()).abs().mean()
                matching = matching + distance / theirs.float().abs().mean() / len(features)
        return adversarial / len(self), matching / len(self)
