"""A linear layer for few rows, on weights that are packed once.

At the two rows of a live step a linear layer is bound by reading its weight. On some processors the
BLAS behind torch's `linear` reads it at 7 to 12 GB/s there, and oneDNN on prepacked weights at
about 28; on others (Sapphire Rapids) it reaches 28 itself, and oneDNN costs 15 microseconds more a
call. There packing pays at 5 to 25 rows, where it takes 0.6 to 0.75 of the time. So both are timed,
at the rows that are to come, before the first weight is packed.

The environment variable STREAMENC_PACKED_LINEAR says otherwise, for the same last bits in every
process: "always" packs wherever torch has the operators, "never" nowhere, "auto", the default,
times. What was chosen is logged once.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)
CHOICE_VARIABLE = "STREAMENC_PACKED_LINEAR"
CHOICES = ("auto", "always", "never")
# Packing has to take this part of the time or less: a choice by a hair would change from run to
# run, and with it the last bits.
GAIN, LARGE_GAIN = 0.85, 0.95
# Beyond, a product is bound by its arithmetic, and timing it would take long.
MOST_ROWS = 64


def packed_linear(
    x: Tensor, weight: Tensor, packed: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x @ weight.T + bias, (..., in) -> (..., out).

    packed  What `pack_linear` made of `weight`; None computes the plain definition.
    """
    if packed is None:
        return F.linear(x, weight, bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def pack_linear(weight: Tensor, rows: int = 2) -> Tensor | None:
    """`weight` (out, in) packed for `packed_linear`, or None where `cannot_pack` has a reason.

    rows  How many rows a live step has.
    """
    if cannot_pack(weight, rows):
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def cannot_pack(weight: Tensor, rows: int = 2) -> str:
    """Why the packed path is not taken; "" where it is.

    Raises ValueError where STREAMENC_PACKED_LINEAR is none of its choices.
    """
    choice = packing_choice()
    if weight.device.type != "cpu":
        return f"the weight is on {weight.device}, packing is for the CPU"
    if weight.dtype != torch.float32:
        return f"the weight is {weight.dtype}, packing is for float32"
    if choice != "auto":
        reason = _missing_ops() if choice == "always" else f"{CHOICE_VARIABLE} is never"
        _log_once(choice, reason)
        return reason
    if rows > MOST_ROWS:
        return f"{rows} rows at once, packing is for up to {MOST_ROWS}"
    return _missing_ops() or _no_gain(rows)


def packing_choice() -> str:
    """What STREAMENC_PACKED_LINEAR says: "auto", "always" or "never". Raises ValueError."""
    choice = os.environ.get(CHOICE_VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ValueError(f"{CHOICE_VARIABLE} is {choice!r}; wanted one of {', '.join(CHOICES)}")
    return choice


@functools.cache
def _log_once(choice: str, reason: str) -> None:
    what = f"not packed: {reason}" if reason else "packed"
    log.info("%s=%s: weights of linear layers are %s", CHOICE_VARIABLE, choice, what)


@functools.cache
def _no_gain(rows: int) -> str:
    """Times both ways on weights that no cache near the core holds, in about 10 ms.

    Models whose steps have more than the two rows of a codec are the large ones, of wide layers,
    which come from memory: these take up to 100 ms, and as the whole step pays, any clear gain is
    taken.
    """
    shape, gain = ((512, 512), GAIN) if rows <= 2 else ((3072, 768), LARGE_GAIN)
    weights = [torch.ones(shape) for _ in range(8)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in weights]
    x = torch.ones(rows, shape[1])
    plain_seconds = _fastest(lambda: [packed_linear(x, w) for w in weights])
    packed_seconds = _fastest(
        lambda: [packed_linear(x, w, p) for w, p in zip(weights, packed, strict=True)]
    )
    pays = packed_seconds < gain * plain_seconds
    log.info(
        "weights of linear layers for steps of %d row(s) are %s: a product takes %.3f ms on packed "
        "ones and %.3f ms on plain ones",
        *(rows, "packed" if pays else "not packed"),
        *(1e3 * seconds / len(weights) for seconds in (packed_seconds, plain_seconds)),
    )
    return "" if pays else "the plain product is as fast here"


def _fastest(run: Callable[[], object], times: int = 5) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(times):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
    return min(seconds)


@functools.cache
def _missing_ops() -> str:
    """The two operators are internal to torch: a release without them takes the plain path."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch is built without oneDNN"
    ops = ("_reorder_linear_weight", "_linear_pointwise")
    missing = [op for op in ops if not hasattr(torch.ops.mkldnn, op)]
    if missing:
        return f"this torch has no {', '.join(missing)}"
    weight, x = torch.eye(3), torch.arange(6.0).view(2, 3)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, TypeError) as error:
        return f"this torch's oneDNN operators differ: {str(error).splitlines()[0]}"
    return "" if torch.equal(x, y) else "this torch's oneDNN operators give other values"
