"""What tests mean by equal: tensors up to rounding, codes up to ties."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.utils.deterministic
from torch import Tensor

from streamenc.layers.quantize import ResidualVQ

# Two distances nearer than this, relative to the squared norms in them, are a tie in float32.
TIE = 1e-4


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value of `theirs`; 0 without any items."""
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}"
    if not theirs.numel():
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max().item()
    return difference / max(theirs.double().abs().max().item(), 1e-30)


def assert_close(ours: Tensor, theirs: Tensor, rel: float) -> float:
    """Shapes are the same and the relative error is at most `rel`; gives that error."""
    error = relative_error(ours, theirs)
    # A NaN compares as neither.
    assert error <= rel, f"relative error {error:.2e}; wanted at most {rel:.0e}"
    return error


def assert_codes_equal(
    ours: Tensor,
    theirs: Tensor,
    latents: Tensor,
    quantizers: Sequence[ResidualVQ],
    *,
    ties_per_frame: float = 1e-3,
) -> float:
    """Codes are the same, except on near ties of at most one frame in a thousand (or one at all).

    Within a quantizer only the first level that differs in a frame is comparable: the later ones
    quantise other residuals. There, the two distances are computed again in float64.

    ours, theirs  (batch, levels, frames); the levels of all quantizers one after the other.
    latents       (batch, channels, frames), which every quantizer takes as they are.
    Returns the rate of frames with a tie that was decided differently.
    """
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}"
    batch, levels, frames = ours.shape
    start, different = 0, set()
    for quantizer in quantizers:
        stop = min(start + quantizer.levels, levels)
        unequal = (ours[:, start:stop] != theirs[:, start:stop]).any(dim=1).nonzero().tolist()
        for lane, frame in unequal:
            different.add((lane, frame))
            a, b = ours[lane, start:stop, frame], theirs[lane, start:stop, frame]
            gap = _gap(a, b, latents[lane, :, frame], quantizer)
            assert gap <= TIE, (
                f"lane {lane}, frame {frame}: codes {a.tolist()}, theirs {b.tolist()}; no tie, the "
                f"distances are {gap:.1e} apart"
            )
        start = stop
    most = max(1, math.floor(ties_per_frame * batch * frames))
    rate = len(different) / max(1, batch * frames)
    print(f"codes: {len(different)} of {batch * frames} frames differ on a tie ({rate:.1e})")
    assert len(different) <= most, f"{len(different)} of {batch * frames} frames differ on ties"
    return rate


def _gap(a: Tensor, b: Tensor, latent: Tensor, quantizer: ResidualVQ) -> float:
    """How far apart the distances to the first codes that differ are, relative to squared norms."""
    level = int((a != b).nonzero()[0])
    residual = latent.double()
    if quantizer.project_in is not None:
        residual = quantizer.project_in.double() @ residual
    books = quantizer.codebooks.double()
    for before in range(level):
        residual = residual - books[before, a[before]]
    to_a, to_b = ((residual - books[level, x[level]]).square().sum() for x in (a, b))
    scale = residual.square().sum() + books[level].square().sum(dim=-1).max()
    return float((to_a - to_b).abs() / scale)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN, so that whoever reads it is found out."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
