"""Pieces of sound that reach over the next ones, added up to a stream: the end of a transposed
convolution, and of an inverse transform."""

from __future__ import annotations

from torch import Tensor

from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton
from streamenc_kernels.overlap_add.definition import overlap_add_torch

# The kernel counts in 32 bits.
MAX_NUMBERS = (1 << 31) - 1


def overlap_add(
    pieces: Tensor,
    state: Tensor | None,
    bias: Tensor | None,
    stride: int,
    *,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Adds pieces that begin `stride` apart, and what earlier ones reach into them.

    pieces          (batch, time, channels, size), in any order in memory; size is the stride, or
                    twice that.
    state           (batch, channels, size - stride), what is still to come of earlier pieces; None
                    where there is none.
    bias            (channels,), added to each number of the result, not to the state; or None.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Returns (batch, channels, time * stride), and the state behind it: on a GPU part of `pieces`.
    Raises ValueError for shapes that do not fit, RuntimeError for a choice that cannot run.
    """
    _check(pieces, state, bias, stride)
    if adds_fused(pieces, pieces.numel(), implementation):
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.overlap_add.triton import add

        return add(pieces, state, bias, stride)
    return overlap_add_torch(pieces, state, bias, stride)


def adds_fused(like: Tensor, numbers: int, implementation: Implementation | None = None) -> bool:
    """Whether `overlap_add` runs as one kernel on so many numbers like these.

    Raises RuntimeError for a choice that cannot run.
    """

    def cannot() -> str:
        if not like.is_floating_point():
            return f"the pieces are {like.dtype}"
        if numbers > MAX_NUMBERS:
            return f"{numbers} numbers; it counts to {MAX_NUMBERS}"
        return cannot_triton(like.device)

    return takes_triton("overlap_add", like.device, implementation, cannot)


def _check(pieces: Tensor, state: Tensor | None, bias: Tensor | None, stride: int) -> None:
    batch, _, channels, size = pieces.shape
    if size not in (stride, 2 * stride):
        raise ValueError(f"pieces of {size} at a stride of {stride}; wanted once or twice that")
    if state is not None and state.shape != (batch, channels, size - stride):
        wanted = (batch, channels, size - stride)
        raise ValueError(f"a state {tuple(state.shape)}; wanted {wanted}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"a bias {tuple(bias.shape)}; wanted ({channels},)")
