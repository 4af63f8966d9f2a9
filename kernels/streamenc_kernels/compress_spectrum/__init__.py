"""Spectra whose magnitudes are raised to a power, as a network takes them."""

from __future__ import annotations

from torch import Tensor

from streamenc_kernels.compress_spectrum.definition import compress_spectrum_torch
from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton


def compress_spectrum(
    real: Tensor,
    imag: Tensor,
    exponent: float,
    silence: float,
    *,
    implementation: Implementation | None = None,
) -> Tensor:
    """Of each bin z the two parts of z / |z| * |z|^exponent, and |z|^exponent.

    real, imag      (..., bins) each; the last but one axis and those before it lie as one.
    silence         Added to |z|², so that nothing is divided by 0.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Returns (..., 3 * bins): all real parts, all imaginary ones, all magnitudes.
    Raises RuntimeError for a choice that cannot run.
    """
    device = real.device

    def cannot() -> str:
        return cannot_triton(device) if real.dtype.itemsize == 4 else f"the bins are {real.dtype}"

    if takes_triton("compress_spectrum", device, implementation, cannot):
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.compress_spectrum.triton import compressed

        return compressed(real, imag, exponent, silence)
    return compress_spectrum_torch(real, imag, exponent, silence)
