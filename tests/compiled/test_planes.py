"""Products in matrix units beside the same in torch; on processors that have some."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("numba", reason="needs the extra cpu")
from streamenc.compiled.program import Program
from streamenc.compiled.stepplan import Plan
from streamenc.compiled.team import Team
from streamenc.compiled.weights import Weights
from streamenc.layers.linear import Linear
from streamenc_kernels.compiled.instruction import Kind
from streamenc_kernels.compiled.planes import units
from streamenc_kernels.compiled.planes.units import has_units
from tests.support.compare import assert_close
from tests.support.programs import ROUNDING, randomized

pytestmark = pytest.mark.skipif(not has_units(), reason="needs a processor with AMX")


def product(layer: Linear, x: Tensor, *, tiled: bool = True) -> Tensor:
    """x (lanes, rows, in); the layer's weight is rounded."""
    plan = Plan(Weights("int16"), (), 1)
    plan.finish(plan.linear(plan.input(x.shape[1], x.shape[2]), layer, activation="gelu"))
    assert (Kind.TILED in {each.kind for each in plan.instructions}) == tiled
    y, _ = Program(plan).step(x.transpose(1, 2).contiguous(), (), Team(), 1)
    return y.transpose(1, 2)


def made(inside: int, outputs: int, seed: int = 0) -> Linear:
    layer = Linear(inside, outputs, bias=True)
    randomized(layer, seed)
    return layer


@pytest.mark.parametrize(
    "lanes, rows, inside, outputs",
    [(1, 16, 64, 32), (2, 5, 70, 50), (3, 33, 200, 123), (1, 47, 65, 94)],
)
def test_is_the_product_with_the_same_weights(
    lanes: int, rows: int, inside: int, outputs: int
) -> None:
    layer = made(inside, outputs)
    x = torch.randn(lanes, rows, inside, generator=torch.Generator().manual_seed(1))
    ours = product(layer, x)
    theirs = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    assert_close(ours, theirs.float(), 1e-6)
    for lane in range(lanes):
        assert torch.equal(product(layer, x[lane : lane + 1]), ours[lane : lane + 1])


def test_rows_do_not_disturb_each_other() -> None:
    layer = made(100, 40)
    x = torch.randn(1, 20, 100, generator=torch.Generator().manual_seed(2))
    loud = x.clone()
    loud[:, 7] *= 1e6
    ours, beside = product(layer, x), product(layer, loud)
    rest = torch.arange(20) != 7
    assert torch.equal(ours[:, rest], beside[:, rest])


def test_one_large_number_costs_few_digits() -> None:
    layer = made(256, 64)
    x = torch.randn(1, 16, 256, generator=torch.Generator().manual_seed(3))
    x[..., 3] *= 100
    ours = product(layer, x)
    theirs = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    assert_close(ours, theirs.float(), ROUNDING)


def test_silence_is_the_bias() -> None:
    layer = made(64, 32)
    ours = product(layer, torch.zeros(1, 16, 64))
    assert_close(ours, F.gelu(layer.bias).expand(1, 16, -1).detach(), 1e-6)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible(odd: float) -> None:
    x = torch.randn(1, 8, 64)
    x[0, 3, 5] = odd
    ours = product(made(64, 32), x)
    assert ours[0, 3].isnan().all()
    assert ours[0, torch.arange(8) != 3].isfinite().all()


def test_weights_that_int16_does_not_hold_well_are_multiplied_as_they_are() -> None:
    layer = made(512, 64)
    with torch.no_grad():
        layer.weight[5] = 1e-5
        layer.weight[5, 0] = 1.0
    x = torch.randn(1, 16, 512, generator=torch.Generator().manual_seed(4))
    ours = product(layer, x, tiled=False)
    theirs = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    assert_close(ours, theirs.float(), ROUNDING)


def test_processors_without_units_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = made(128, 96)
    x = torch.randn(1, 16, 128, generator=torch.Generator().manual_seed(5))
    ours = product(layer, x)
    monkeypatch.setattr(units, "has_units", lambda: False)
    assert_close(product(layer, x, tiled=False), ours, ROUNDING)
