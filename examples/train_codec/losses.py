"""What a decoded signal is compared by: mel bands and compressed spectra at several resolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Window in samples -> mel bands, and whether compressed spectra count as well.
RESOLUTIONS = ((256, 32, False), (512, 64, True), (1024, 96, True))
COMPRESSION = 0.3
# Hz: phases are to be right below the first and may be anything above the second, where the ear
# does not follow them and few bits could not tell them.
PHASE_BAND = (2000.0, 4000.0)


class SpectralLoss(nn.Module):
    """Mean distances of log-mel bands, compressed magnitudes, and compressed complex spectra."""

    def __init__(self, rate: int) -> None:
        super().__init__()
        low, high = PHASE_BAND
        for window, bands, _ in RESOLUTIONS:
            self.register_buffer(f"window{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"mel{window}", mel_bank(rate, window, bands), persistent=False)
            hertz = torch.linspace(0, rate / 2, window // 2 + 1)
            share = ((high - hertz) / (high - low)).clamp(0, 1)[:, None]
            self.register_buffer(f"share{window}", share / share.mean(), persistent=False)

    def forward(self, decoded: Tensor, original: Tensor) -> dict[str, Tensor]:
        """(batch, samples) each -> scalars `mel`, `magnitude` and `phase`."""
        mel, magnitude, phase = [], [], []
        for window, _, complete in RESOLUTIONS:
            weights = getattr(self, f"window{window}")
            bank = getattr(self, f"mel{window}")
            x, y = (
                torch.stft(s, window, window // 4, window=weights, return_complex=True)
                * (2 / window)
                for s in (original, decoded)
            )
            px, py = (s.real.square() + s.imag.square() + 1e-10 for s in (x, y))
            bands_x, bands_y = ((bank @ p.sqrt()).clamp(min=1e-5).log() for p in (px, py))
            mel.append((bands_x - bands_y).abs().mean())
            if complete:
                mx, my = px ** (COMPRESSION / 2), py ** (COMPRESSION / 2)
                gx, gy = mx / px.sqrt(), my / py.sqrt()
                apart = (x.real * gx - y.real * gy).square() + (x.imag * gx - y.imag * gy).square()
                phase.append((getattr(self, f"share{window}") * apart).mean())
                magnitude.append((mx - my).square().mean())
        parts = {"mel": mel, "magnitude": magnitude, "phase": phase}
        return {name: torch.stack(values).mean() for name, values in parts.items()}


def mel_bank(rate: int, window: int, bands: int) -> Tensor:
    """Triangular bands of unit height on the HTK mel scale, (bands, bins)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    # A band narrower than a bin would be empty: it is widened to one.
    width = rate / window
    left = torch.minimum(edges[:-2], edges[1:-1] - width)[:, None]
    right = torch.maximum(edges[2:], edges[1:-1] + width)[:, None]
    centre = edges[1:-1, None]
    rise, fall = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rise, fall).clamp(min=0).float()
