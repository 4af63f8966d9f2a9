"""The Triton kernel of `fused_linear`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamenc_kernels.fused_linear.definition import Activation, RowNorm

# So many inputs are multiplied at once, and so many of a row are summed at once for its norm,
# whatever the tile: with them a result's last bits would change.
DEPTH, WIDE = 64, 128


class Tile(NamedTuple):
    """Rows x outputs of a program; loads run stages - 1 ahead."""

    rows: int
    outputs: int
    stages: int
    warps: int

    def constants(
        self,
        inputs: int,
        *,
        norm: str,
        shifted: bool,
        activation: str,
        biased: bool,
        residual: bool,
    ) -> dict[str, int | bool | str]:
        """What a layer is compiled for."""
        return {
            "NORM": norm,
            "SHIFTED": shifted,
            "ACTIVATION": activation,
            "BIASED": biased,
            "RESIDUAL": residual,
            "FEWER": inputs % DEPTH != 0,
            "ROWS": self.rows,
            "OUTPUTS": self.outputs,
            "DEPTH": DEPTH,
            "WIDE": WIDE,
            "STAGES": self.stages,
        }

    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "enable_fp_fusion": True}


# For few rows as many programs as can be, for many as few readings as can be. Both stay below the
# 64 rows from which newer tensor cores multiply by other instructions, with other last bits.
FEW, MANY, MANY_GATED = Tile(16, 8, 8, 4), Tile(32, 64, 3, 4), Tile(32, 16, 3, 4)
MANY_ROWS = 64


def apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: RowNorm | None,
    activation: Activation | None,
    residual: Tensor | None,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """As `fused_linear`.

    tile  None takes the one for so many rows; it changes no bit of the result.
    """
    inputs = x.shape[-1]
    outputs = weight.shape[0] // (1 + (activation == "swiglu"))
    vectors = x.reshape(-1, inputs).contiguous()
    rows = vectors.shape[0]
    y = x.new_empty(*x.shape[:-1], outputs)
    if not y.numel():
        return y
    if tile is None:
        many = MANY_GATED if activation == "swiglu" else MANY
        tile = many if rows >= MANY_ROWS else FEW
    # Triton launches on the current device.
    with torch.cuda.device_of(y):
        fused_linear_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs))](
            vectors,
            weight,
            y if bias is None else bias,
            y if norm is None else norm.weight,
            y if norm is None or norm.bias is None else norm.bias,
            y if residual is None else residual.reshape(-1, outputs).contiguous(),
            y,
            rows,
            inputs,
            outputs,
            0.0 if norm is None else norm.eps,
            **tile.constants(
                inputs,
                norm="" if norm is None else norm.kind,
                shifted=norm is not None and norm.bias is not None,
                activation=activation or "",
                biased=bias is not None,
                residual=residual is not None,
            ),
            **tile.options(),
        )
    return y


@triton.jit
def _norm(x, inputs, eps, NORM: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """What is taken off each row, and what it is then multiplied by.

    x  (ROWS, 1) addresses of their first numbers.
    """
    wide = tl.arange(0, WIDE)[None, :]
    mean = tl.zeros((ROWS,), tl.float32)
    if NORM == "layer":
        sums = tl.zeros((ROWS, WIDE), tl.float32)
        for begin in range(0, inputs, WIDE):
            sums += tl.load(x + begin + wide, mask=begin + wide < inputs, other=0.0)
        mean = tl.sum(sums, axis=1) / inputs
    squares = tl.zeros((ROWS, WIDE), tl.float32)
    for begin in range(0, inputs, WIDE):
        there = begin + wide < inputs
        left = tl.load(x + begin + wide, mask=there, other=0.0) - mean[:, None]
        squares += tl.where(there, left * left, 0.0)
    return mean, 1 / tl.sqrt(tl.sum(squares, axis=1) / inputs + eps)


@triton.jit(do_not_specialize=["rows", "eps"])
def fused_linear_kernel(
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    residual,
    y,
    rows,
    inputs,
    outputs,
    eps,
    NORM: tl.constexpr,
    SHIFTED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    FEWER: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A tile of the result, all inputs one part after the other."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    here = tl.minimum(rows - start, ROWS).to(tl.int32)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    # Beyond the last ones they come again, and are not written.
    row = tl.minimum(tl.arange(0, ROWS), here - 1)
    column = tl.minimum(output, outputs - 1)
    there = (tl.arange(0, ROWS) < here)[:, None] & (output < outputs)[None, :]
    vector = x + start * inputs + row[:, None] * inputs
    if NORM != "":
        mean, factor = _norm(vector, inputs, eps, NORM, ROWS, WIDE)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    up = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for begin in tl.range(0, inputs, DEPTH, num_stages=STAGES):
        depth = begin + tl.arange(0, DEPTH)
        at = column[None, :] * inputs + depth[:, None]
        if FEWER:
            some = depth < inputs
            left = tl.load(vector + depth[None, :], mask=some[None, :], other=0.0)
            right = tl.load(weight + at, mask=some[:, None], other=0.0)
        else:
            left = tl.load(vector + depth[None, :])
            right = tl.load(weight + at)
        if NORM != "":
            scale = tl.load(norm_weight + depth, mask=depth < inputs, other=0.0)
            left = (left - mean[:, None]) * factor[:, None] * scale[None, :]
        if SHIFTED:
            left += tl.load(norm_bias + depth, mask=depth < inputs, other=0.0)[None, :]
        total = tl.dot(left, right, total, input_precision="tf32x3")
        if ACTIVATION == "swiglu":
            if FEWER:
                right = tl.load(weight + outputs * inputs + at, mask=some[:, None], other=0.0)
            else:
                right = tl.load(weight + outputs * inputs + at)
            up = tl.dot(left, right, up, input_precision="tf32x3")
    if BIASED:
        total += tl.load(bias + column)[None, :]
    if ACTIVATION == "gelu":
        total = 0.5 * total * (1 + tl.erf(total * 0.7071067811865476))
    if ACTIVATION == "swiglu":
        if BIASED:
            up += tl.load(bias + outputs + column)[None, :]
        total = total / (1 + tl.exp(-total)) * up
    to = start * outputs + row[:, None] * outputs + column[None, :]
    if RESIDUAL:
        total += tl.load(residual + to)
    tl.store(y + to, total, mask=there)
