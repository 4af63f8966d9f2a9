"""What equal means: tensors up to rounding, codes up to ties; and memory that nobody wrote."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from streamenc.errors import ContractError
from streamenc.layers.fsq import FSQ
from streamenc.layers.quantize import FactorisedVQ, ResidualVQ
from streamenc.models.model import Model
from streamenc.models.signal import scale, values

# Two distances nearer than this, relative to the squared norms in them, are a tie in float32.
TIE = 1e-4
TIES_PER_FRAME = 1e-3


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value of `theirs`; 0 without any items.

    Raises:
        ContractError: Where the shapes differ.
    """
    _check_shapes(ours, theirs)
    if not theirs.numel():
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max().item()
    return difference / _largest(theirs)


def assert_close(ours: Tensor, theirs: Tensor, rel: float) -> float:
    """Shapes are the same and the relative error is at most `rel`; gives that error.

    Raises ContractError.
    """
    error = relative_error(ours, theirs)
    if not error <= rel:  # a NaN compares as neither
        raise ContractError(f"relative error {error:.2e}; wanted at most {rel:.0e}")
    return error


def difference(ours: Tensor, theirs: Tensor, rel: float) -> str:
    """Where and by how much (batch, channels, time, ...) differ by more than `rel`; "" where not.

    0 for `rel` means equal to the bit.
    """
    if ours.shape[2] != theirs.shape[2]:
        return f"there are {ours.shape[2]} output items instead of {theirs.shape[2]}"
    if not theirs.shape[2]:
        return ""
    if ours.shape != theirs.shape:
        return f"the output has shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    gaps = (ours.double() - theirs.double()).abs().transpose(0, 2).flatten(1).amax(dim=1)
    wrong = ~(gaps <= rel * _largest(theirs))  # a NaN compares as neither
    if not wrong.any():
        return ""
    item = int(wrong.nonzero()[0])
    if not math.isfinite(gaps[item]):
        return f"output {item} is not finite"
    return f"output {item} differs by {float(gaps[item]) / _largest(theirs):.1e} (relative)"


def assert_codes_equal(
    ours: Tensor,
    theirs: Tensor,
    latents: Tensor,
    quantizers: Sequence[ResidualVQ | FactorisedVQ],
    *,
    ties_per_frame: float = TIES_PER_FRAME,
) -> float:
    """Codes are the same, except on near ties of at most one frame in a thousand (or one at all).

    Within a quantizer only the first level that differs in a frame is comparable: the later ones
    quantise other residuals. There, the two distances are computed again in float64.

    Args:
        ours: (batch, levels, frames); the levels of all quantizers one after the other.
        theirs: See `ours`.
        latents: (batch, channels, frames), which every quantizer takes as they are.

    Returns:
        The rate of frames with a tie that was decided differently. Raises ContractError.
    """
    _check_shapes(ours, theirs)
    batch, levels, frames = ours.shape
    start, different = 0, set()
    for quantizer in quantizers:
        stop = min(start + quantizer.levels, levels)
        unequal = (ours[:, start:stop] != theirs[:, start:stop]).any(dim=1).nonzero().tolist()
        for lane, frame in unequal:
            different.add((lane, frame))
            a, b = ours[lane, start:stop, frame], theirs[lane, start:stop, frame]
            if isinstance(quantizer, FactorisedVQ):
                gap = _gap_of_directions(ours[lane], theirs[lane], frame, latents[lane], quantizer)
            else:
                gap = _gap(a, b, latents[lane, :, frame], quantizer)
            if not gap <= TIE:
                raise ContractError(
                    f"lane {lane}, frame {frame}: codes {a.tolist()}, theirs {b.tolist()}; no tie, "
                    f"the distances are {gap:.1e} apart"
                )
        start = stop
    if start < levels:
        # Of levels that no quantizer has, no tie can be told.
        for lane, frame in (ours[:, start:] != theirs[:, start:]).any(dim=1).nonzero().tolist():
            different.add((lane, frame))
    most = max(1, math.floor(ties_per_frame * batch * frames))
    if len(different) > most:
        raise ContractError(f"{len(different)} of {batch * frames} frames differ on ties")
    return len(different) / max(1, batch * frames)


def code_difference(model: Model, codes: Tensor, latents: Tensor) -> str:
    """In what an encoder's codes differ from those of `latents`, beyond ties; "" where not.

    Args:
        codes: (batch, codebooks, frames), or a grid of them for each frame.
        latents: (batch, channels, frames), or with a grid: what `after` takes.
    """
    signal = model.after(latents)
    left, factors = values(signal), scale(signal)
    if factors is not None:
        if difference(factors, latents[:, -1:], 0):
            return "the scale is not the latents' last channel"
        latents = latents[:, :-1]
    if codes.dtype != torch.int64 or left.dtype != torch.int64:
        return f"codes have dtype {codes.dtype}; wanted torch.int64"
    if codes.shape != left.shape:
        return f"codes have shape {tuple(codes.shape)} instead of {tuple(left.shape)}"
    for fsq in (m for m in model.modules() if isinstance(m, FSQ)):
        # A tie: a value that lies half-way between two levels.
        gap = (fsq.bounded(latents).frac().abs() - 0.5).abs().amin(dim=1, keepdim=True)
        return "" if (gap[codes != left] <= TIE).all() else "codes differ where there is no tie"
    # Where a model's items are groups of frames, no tie can be told.
    quantizers = [
        m
        for m in model.modules()
        if isinstance(m, ResidualVQ)
        or (isinstance(m, FactorisedVQ) and m.out_of.shape[1] == latents.shape[1])
    ]
    try:
        # A grid of codes is as many of them, one after the other.
        assert_codes_equal(codes.flatten(2), left.flatten(2), latents.flatten(2), quantizers)
    except ContractError as error:
        return str(error)
    return ""


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN, so that whoever reads it is found out.

    On one thread: small tensors gain nothing from more, and lose much on a busy machine.
    """
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        if not torch.empty(3).isnan().all():
            raise ContractError(
                "memory is not poisoned; set "
                "torch.utils.deterministic.fill_uninitialized_memory = True"
            )
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.set_num_threads(threads)


def _check_shapes(ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise ContractError(f"shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")


def _largest(theirs: Tensor) -> float:
    return max(theirs.double().abs().max().item(), 1e-30)


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


def _gap_of_directions(
    a: Tensor, b: Tensor, frame: int, latents: Tensor, quantizer: FactorisedVQ
) -> float:
    """The same of codes (levels, frames) by direction; a frame is computed with those that share a
    code with it."""
    exact = copy.deepcopy(quantizer).double()
    exact.prepare()
    shared = max(exact.strides)
    group = slice(frame // shared * shared, (frame // shared + 1) * shared)
    level = int((a[:, frame] != b[:, frame]).nonzero()[0])
    left = latents[:, group].t().double()
    for before in range(level):
        left = left - exact.entries(a[before, group], before)
    nearness = exact.nearness(left, level)[(frame - group.start) // exact.strides[level]]
    return float((nearness[a[level, frame]] - nearness[b[level, frame]]).abs())
