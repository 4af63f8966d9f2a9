"""How much of a codebook codes use."""

from __future__ import annotations

from typing import Any

import numpy as np


def perplexity(codes: np.ndarray[Any, Any]) -> float:
    """How many entries are in use, weighted: 2 to the power of the entropy in bits.

    codes  Entries of one codebook, integers of any shape.
    """
    return perplexity_of(np.unique(codes, return_counts=True)[1])


def perplexity_of(counts: np.ndarray[Any, Any]) -> float:
    """The same of how often each entry came, (entries,)."""
    share = counts[counts > 0] / counts.sum()
    return float(2 ** -(share * np.log2(share)).sum())
