"""compress_spectrum against its formula in float64, as torch and as Triton kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamenc_kernels import compress_spectrum
from streamenc_kernels.dispatch import Implementation
from tests.support.interpreter import needs_triton


def spectra(batch: int, windows: int, bins: int) -> Tensor:
    """From silence to a full-scale sine, by the octave."""
    generator = torch.Generator().manual_seed(bins)
    parts = torch.randn(batch, windows, bins, 2, generator=generator)
    loud = 2.0 ** -(30 * torch.rand(batch, windows, bins, 1, generator=generator))
    parts *= loud
    parts[:, :, 0] = 0.0
    return parts


def compressed(implementation: Implementation, parts: Tensor, exponent: float) -> Tensor:
    real, imag = torch.view_as_complex(parts).real, torch.view_as_complex(parts).imag
    return compress_spectrum(real, imag, exponent, 1e-10, implementation=implementation)


@needs_triton
@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize(
    ("batch", "windows", "bins", "exponent"), [(1, 2, 241, 0.3), (3, 1, 5, 0.5), (2, 7, 123, 1.0)]
)
def test_magnitudes_are_raised_to_a_power(
    interpreted, implementation, batch, windows, bins, exponent
):
    parts = spectra(batch, windows, bins)
    y = interpreted(compressed, implementation, parts, exponent)
    real, imag = parts.double().unbind(-1)
    magnitude = (real.square() + imag.square() + 1e-10).sqrt()
    factor = magnitude ** (exponent - 1)
    wanted = torch.cat((real * factor, imag * factor, magnitude**exponent), dim=-1)
    assert y.dtype == torch.float32 and y.shape == (batch, windows, 3 * bins)
    assert ((y.double() - wanted).abs() <= 5e-7 * wanted.abs()).all()


@needs_triton
def test_what_it_cannot_take():
    x = torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="float64"):
        compress_spectrum(x, x, 0.3, 1e-10, implementation="triton")
