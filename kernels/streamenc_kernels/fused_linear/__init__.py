"""A linear layer with what stands around it in a transformer: a norm before it, an activation and
the residual stream behind it."""

from __future__ import annotations

from torch import Tensor

from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton
from streamenc_kernels.fused_linear.definition import Activation, RowNorm, fused_linear_torch

# The kernel counts within the weight in 32 bits.
MAX_NUMBERS = 2**31 - 1
# It loads so many bytes at once.
ALIGNMENT = 16


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: RowNorm | None = None,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    implementation: Implementation | None = None,
) -> Tensor:
    """residual + activation(norm(x) @ weight.T + bias); but for the product, what is given of it.

    x               (..., in).
    weight          (out, in); of "swiglu" (2 * out, in), the gate's rows over the others.
    bias            (out,), or (2 * out,).
    residual        (..., out).
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Returns (..., out), a tensor of its own. By the kernel a row's result does not depend, to the
    last bit, on how many rows are computed with it.
    Raises ValueError for shapes that do not fit, RuntimeError for a choice that cannot run.
    """
    _check(x, weight, bias, norm, activation, residual)
    if takes_triton("fused_linear", x.device, implementation, lambda: cannot_fuse(x, weight)):
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.fused_linear.triton import apply

        return apply(x, weight, bias, norm, activation, residual)
    return fused_linear_torch(x, weight, bias, norm, activation, residual)


def fuses_linear(like: Tensor, weight: Tensor) -> bool:
    """Whether `fused_linear` runs as one kernel on vectors like these, and by itself."""
    return takes_triton("fused_linear", like.device, None, lambda: cannot_fuse(like, weight))


def cannot_fuse(x: Tensor, weight: Tensor) -> str:
    """Why the Triton kernel cannot run; "" where it can."""
    return cannot_triton(x.device) or _misfit(x, weight)


def _misfit(x: Tensor, weight: Tensor) -> str:
    # A product of bfloat16 is what the general product is fastest at.
    if x.dtype.itemsize != 4 or x.dtype != weight.dtype:
        return f"x is {x.dtype} and the weight {weight.dtype}; it takes float32"
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    if weight.numel() > MAX_NUMBERS:
        return f"{weight.numel()} numbers in the weight; it counts to {MAX_NUMBERS}"
    if weight.data_ptr() % ALIGNMENT:
        return f"the weight begins at no multiple of {ALIGNMENT} bytes"
    return ""


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: RowNorm | None,
    activation: Activation | None,
    residual: Tensor | None,
) -> None:
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit: wanted (..., in) and "
            "(out, in)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"a bias {tuple(bias.shape)}; wanted ({weight.shape[0]},)")
    if activation == "swiglu" and weight.shape[0] % 2:
        raise ValueError(f"{weight.shape[0]} outputs; swiglu takes an even number")
    if norm is not None and norm.weight.shape != x.shape[-1:]:
        raise ValueError(f"a norm of {tuple(norm.weight.shape)}; wanted ({x.shape[-1]},)")
    wanted = (*x.shape[:-1], weight.shape[0] // (1 + (activation == "swiglu")))
    if residual is not None and residual.shape != wanted:
        raise ValueError(f"a residual {tuple(residual.shape)}; wanted {wanted}")
