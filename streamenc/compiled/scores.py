"""Scores of a codebook's entries, and a bound of what they are off by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamenc.compiled.weights import Arena, Array, Panels, aligned, pack
from streamenc_kernels.compiled.instruction import PANEL

# Half a unit in the last place of 1, in float32.
HALF_UNIT = 2.0**-24
# What a product of numbers is off by at most where they are so small that they have fewer digits,
# or none; 2**-126 with room for the factors of a sum.
UNDERFLOW = 2.0**-120
OVERFLOW = 2.0**120


class Scores(NamedTuple):
    """How entries are scored, and how far a score may be off; `scored` says more.

    factor, shift  (entries up to a multiple of PANEL,) float32: a score is shift - |factor| * sum.
    slope, base    As many: it is off by at most slope * |x| + base, for a vector x.
    limit          (1,) float64: of vectors as long as that, scores may overflow.
    panels         The entries as products take them.
    """

    factor: Array
    shift: Array
    slope: Array
    base: Array
    limit: Array
    panels: Panels


def scored(entries: Array, *, short: bool, arena: Arena) -> Scores:
    """The scores of entries (entries, dim) float32, in int16 where `short` and that is close.

    The true score of entry e is |e|^2 / 2 - x . e. What is computed is h - s (q . x) in float32,
    for the entry as it is stored, s q, with s = 1 and q = e where it is float32. They differ by no
    more than the sum of

    * |(e - s q) . x| <= |e - s q| |x|: what storing has rounded off. It is computed here from the
      entries; it is at most s / 2 * sqrt(dim) * |x|.
    * g |s q| |x|, with g = n u / (1 - n u), u = 2^-24 and n = dim + 8: a sum of dim products in any
      order, behind each of which float32 rounds (Higham, Accuracy and Stability of Numerical
      Algorithms, section 3.1, with Cauchy's inequality for the sum of the magnitudes), its factor,
      and the differences that it goes into; the last ones in the comparison itself.
    * 8 u |e|^2 / 2: rounding half the norm, and the same differences.
    * what numbers too small for float32 lose.

    slope and base are their parts that go with |x| and that do not, rounded up.
    """
    count, dim = entries.shape
    padded = -(-count // PANEL) * PANEL
    panels = pack(entries, short, arena)
    exact = entries.astype(np.float64)
    numbers = np.concatenate([kept.T for kept in panels.kept], dtype=np.float64)[:count]
    scale = np.ones(count) if panels.scale is None else panels.scale.astype(np.float64)
    stored = numbers * scale[:, None]
    half = 0.5 * np.square(exact).sum(axis=1)
    size = np.linalg.norm(stored, axis=1)
    roundings = (dim + 8) * HALF_UNIT
    slope = np.linalg.norm(exact - stored, axis=1) + roundings / (1 - roundings) * size
    base = 8 * HALF_UNIT * half + dim * UNDERFLOW * (1 + size)
    longest = max(1.0, size.max(initial=0), np.linalg.norm(numbers, axis=1).max(initial=0))
    limit = OVERFLOW / longest if half.max(initial=0) < OVERFLOW else 0.0
    most = float(np.finfo(np.float32).max)
    factor, shift, above, floor = (aligned((padded,), np.float32) for _ in range(4))
    factor[:count] = -scale
    shift[:] = np.inf
    shift[:count] = np.minimum(half, most)
    above[:count] = _above(slope + dim * UNDERFLOW)
    floor[:count] = _above(np.minimum(base, most / 2))
    at_most = aligned((1,), np.float64)
    at_most[0] = limit
    return Scores(factor, shift, above, floor, at_most, panels)


def _above(numbers: Array) -> Array:
    """float32 numbers that are greater than these."""
    above: Array = np.nextafter((numbers * (1 + 2.0**-18)).astype(np.float32), np.float32(np.inf))
    return above
