"""fused_linear against its parts in float64, as torch operators and as the Triton kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamenc_kernels import RowNorm, cannot_fuse, fused_linear
from streamenc_kernels.fused_linear.definition import fused_linear_torch
from tests.support.compare import poisoned_memory
from tests.support.interpreter import needs_triton

__all__ = ["poisoned_memory"]

PARTS = [
    {},
    {"norm": "layer"},
    {"norm": "rms", "bias": True},
    {"norm": "layer", "activation": "gelu"},
    {"norm": "rms", "activation": "swiglu", "bias": True, "residual": True},
    {"activation": "gelu", "bias": True},
    {"residual": True},
    {"bias": True, "residual": True},
]


def make(
    rows: int,
    inputs: int,
    outputs: int,
    *,
    norm: str | None = None,
    activation: str | None = None,
    bias: bool = False,
    residual: bool = False,
    shifted: bool | None = None,
) -> dict[str, Any]:
    """Vectors away from zero, as a residual stream has them, so that a mean counts."""
    generator = torch.Generator().manual_seed(rows + inputs + outputs)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    wide = outputs * (1 + (activation == "swiglu"))
    shifted = norm == "layer" if shifted is None else shifted
    eps = 1e-5
    return {
        "x": 2 * normal(rows, inputs) + 3,
        "weight": normal(wide, inputs) * inputs**-0.5,
        "bias": normal(wide) if bias else None,
        "norm": norm and RowNorm(norm, normal(inputs), normal(inputs) if shifted else None, eps),
        "activation": activation,
        "residual": normal(rows, outputs) if residual else None,
    }


def double(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.double()
    return RowNorm(*map(double, given)) if isinstance(given, RowNorm) else given


def by_parts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: RowNorm | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """Of the formulas, in float64."""
    if norm is not None:
        if norm.kind == "layer":
            x = x - x.mean(dim=-1, keepdim=True)
        x = x / (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        x = x if norm.bias is None else x + norm.bias
    y = x @ weight.T + (0 if bias is None else bias)
    if activation == "gelu":
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
    elif activation == "swiglu":
        gate, up = y.tensor_split(2, dim=-1)
        y = gate * torch.sigmoid(gate) * up
    return y + (0 if residual is None else residual)


def assert_right(y: Tensor, given: dict[str, Any]) -> None:
    expected = by_parts(**{name: double(value) for name, value in given.items()})
    assert y.shape == expected.shape and y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=2e-5)


def by_kernel(given: dict[str, Any], many: bool | None = None) -> Tensor:
    """In the interpreter's process: the tile is the kernel's own affair."""
    from streamenc_kernels.fused_linear import triton as module

    assert cannot_fuse(given["x"], given["weight"]) == ""
    if many is None:
        return fused_linear(**given, implementation="triton")
    return module.apply(**given, tile=module.MANY if many else module.FEW)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 8, 8), (1, 5, 7), (123, 64, 40)])
def test_the_definition_is_the_formulas(rows, inputs, outputs, parts):
    given = make(rows, inputs, outputs, **parts)
    assert_right(fused_linear(**given), given)


@needs_triton
class TestTriton:
    @pytest.mark.parametrize("parts", PARTS)
    @pytest.mark.parametrize(
        ("rows", "inputs", "outputs", "many"),
        [(2, 192, 40, False), (17, 70, 21, False), (70, 128, 96, True), (5, 3, 1, True)],
    )
    def test_is_the_formulas(self, interpreted, rows, inputs, outputs, many, parts):
        given = make(rows, inputs, outputs, **parts)
        assert_right(interpreted(by_kernel, given, many), given)

    @pytest.mark.parametrize("rows", [0, 3, 65])
    def test_takes_a_tile_by_itself(self, interpreted, rows):
        given = make(rows, 64, 24, norm="rms", activation="swiglu", shifted=True)
        assert_right(interpreted(by_kernel, given), given)

    def test_rows_that_lie_apart_and_in_more_axes(self, interpreted):
        given = make(6, 64, 24, norm="layer", residual=True)
        whole = interpreted(by_kernel, given)
        given["x"] = given["x"].T.contiguous().T.view(3, 2, 64)
        given["residual"] = given["residual"].view(3, 2, 24)
        assert torch.equal(interpreted(by_kernel, given), whole.view(3, 2, 24))

    def test_a_constant_row_has_no_variance_and_is_no_error(self, interpreted):
        given = make(2, 64, 24, norm="layer")
        given["x"][1] = 7.0
        assert_right(interpreted(by_kernel, given), given)

    def test_what_it_cannot_take(self, interpreted):
        x, weight = torch.zeros(3, 8), torch.zeros(6, 8)
        assert "takes float32" in interpreted(cannot_fuse, x.double(), weight.double())
        assert "takes float32" in interpreted(cannot_fuse, x.bfloat16(), weight.bfloat16())
        assert "takes float32" in interpreted(cannot_fuse, x, weight.half())
        assert "not contiguous" in interpreted(cannot_fuse, x, torch.zeros(8, 6).T)
        assert "16 bytes" in interpreted(_misaligned)


def _misaligned() -> str:
    return cannot_fuse(torch.zeros(3, 8), torch.zeros(49)[1:].view(6, 8))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"x": torch.zeros(3, 9)}, "do not fit"),
        ({"bias": torch.zeros(5)}, r"a bias \(5,\); wanted \(6,\)"),
        ({"residual": torch.zeros(3, 5)}, r"a residual \(3, 5\); wanted \(3, 6\)"),
        ({"norm": RowNorm("rms", torch.ones(6), None, 0.0)}, r"a norm of \(6,\); wanted \(8,\)"),
        ({"weight": torch.zeros(5, 8), "activation": "swiglu"}, "5 outputs; swiglu"),
    ],
)
def test_shapes_that_do_not_fit(wrong, says):
    with pytest.raises(ValueError, match=says):
        fused_linear(**{"x": torch.zeros(3, 8), "weight": torch.zeros(6, 8)} | wrong)


def test_the_definition_runs_on_the_cpu():
    given = make(5, 16, 8, norm="layer", activation="gelu")
    assert torch.equal(fused_linear(**given), fused_linear_torch(**given))
