"""causal_conv against torch's convolution in float64, as its definition and as Triton kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc import state as states
from streamenc_kernels import cannot_convolve, causal_conv, causal_conv_torch
from tests.support.compare import assert_close
from tests.support.interpreter import needs_triton
from tests.support.launches import FakeGpu

FLOAT = torch.float32
Result = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Case:
    """One convolution of `length` new inputs."""

    channels: int
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    length: int = 2
    elu: bool = False
    residual: bool = False
    bias: bool = True
    depthwise: bool = False

    @property
    def context(self) -> int:
        return (self.kernel - 1) * self.dilation + 1 - self.stride

    def inputs(self, lanes: int, dtype: torch.dtype = FLOAT) -> dict[str, Any]:
        """The arguments of `causal_conv`."""
        generator = torch.Generator().manual_seed(self.channels)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        times = self.length // self.stride
        each = 1 if self.depthwise else self.channels
        weight = noise(self.outputs, each, self.kernel)
        return {
            "x": noise(lanes, self.channels, self.length),
            "state": noise(lanes, self.channels, self.context) if self.context else None,
            "weight": weight * (each * self.kernel) ** -0.5,
            "bias": noise(self.outputs) if self.bias else None,
            "stride": self.stride,
            "dilation": self.dilation,
            "elu": self.elu,
            "residual": noise(lanes, self.outputs, times) if self.residual else None,
        }


# What the models have, with fewer channels, and odd ones.
MIMI = [
    Case(1, 64, 7, length=72),
    Case(24, 12, 3, length=96, elu=True),
    Case(12, 24, 1, length=96, elu=True, residual=True),
    Case(16, 132, 10, 5, length=480, elu=True),  # several tiles of outputs
    Case(48, 80, 12, 6, length=96, elu=True),  # few, in chunks
    Case(64, 32, 1, length=16, elu=True, residual=True),
    Case(70, 40, 16, 8, length=16, elu=True),
    Case(40, 20, 4, 2, bias=False),
]
MORE = [
    Case(8, 8, 3, dilation=2, length=40, elu=True),
    Case(6, 6, 1, length=80),
    Case(64, 16, 4, 4, length=8),  # strides that do not overlap
    Case(123, 5, 5, 1, 3, length=7, elu=True, residual=True),
    Case(5, 123, 7, length=123, elu=True),
    Case(3, 2, 8, 2, length=2, elu=True),  # shorter than what is remembered
    Case(192, 192, 7, length=8, depthwise=True),
    Case(37, 37, 3, 1, 2, length=5, elu=True, residual=True, bias=False, depthwise=True),
    Case(5, 5, 4, 2, length=246, depthwise=True),
]


def convolved(inputs: dict[str, Any]) -> Result:
    return causal_conv(**inputs, implementation="triton")


def reference(inputs: dict[str, Any]) -> Result:
    double = {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    return causal_conv_torch(**double)


def assert_convolves(result: Result, inputs: dict[str, Any], rel: float) -> None:
    y, following = reference(inputs)
    assert result[0].dtype == inputs["x"].dtype
    assert_close(result[0], y, rel)
    if following is None:
        assert result[1] is None
    else:
        assert_close(result[1], following, rel)


def named(case: Case) -> str:
    return f"{case.channels}to{case.outputs}k{case.kernel}s{case.stride}"


@pytest.mark.parametrize("case", [*MIMI, *MORE], ids=named)
def test_definition(case):
    inputs = case.inputs(2)
    result = causal_conv(**inputs)
    assert_convolves(result, inputs, 1e-6)
    whole = F.elu(inputs["x"]) if case.elu else inputs["x"]
    if case.context:
        whole = torch.cat((inputs["state"], whole), dim=-1)
        assert torch.equal(result[1], whole[..., -case.context :])
    groups = case.channels if case.depthwise else 1
    y = F.conv1d(whole, inputs["weight"], inputs["bias"], case.stride, 0, case.dilation, groups)
    assert torch.equal(result[0], y if inputs["residual"] is None else y + inputs["residual"])


@needs_triton
@pytest.mark.parametrize("case", [*MIMI, *MORE], ids=named)
def test_kernel(case, interpreted):
    inputs = case.inputs(3)
    result = interpreted(convolved, inputs)
    assert_convolves(result, inputs, 1e-6)
    if case.context and not case.elu:
        assert torch.equal(result[1], reference(inputs)[1].float())


@needs_triton
@pytest.mark.parametrize("case", [MIMI[1], MIMI[6], MIMI[2]], ids=named)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_floats(case, dtype, rel, interpreted):
    inputs = case.inputs(2, dtype)
    y, following = interpreted(convolved, inputs)
    assert_convolves((y, following), inputs, rel)
    # Rounded as the definition rounds; the interpreter rounds bfloat16 towards zero.
    if following is not None and dtype == torch.float16:
        assert torch.equal(following, causal_conv_torch(**inputs)[1])


@needs_triton
@pytest.mark.parametrize(
    ("case", "lanes"),
    [
        (MIMI[6], 19),
        (MORE[3], 7),
        (MORE[6], 3),
        pytest.param(MIMI[1], 3, marks=pytest.mark.slow),
        pytest.param(MIMI[4], 19, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_lanes_do_not_depend_on_each_other(case, lanes, interpreted):
    """To the bit: a lane is computed alone as in any batch, at any place in it."""
    inputs = case.inputs(lanes)
    y, following = interpreted(convolved, inputs)
    for lane in (0, lanes // 2, lanes - 1):
        one = {
            name: value[lane : lane + 1] if name in ("x", "state", "residual") else value
            for name, value in inputs.items()
            if not (name == "residual" and value is None)
        }
        alone, then = interpreted(convolved, one)
        assert torch.equal(alone[0], y[lane])
        assert torch.equal(then[0], following[lane])


def strided(inputs: dict[str, Any]) -> tuple[Result, bool]:
    """x with time last in shape but not in memory, states as columns of wider rows, every second
    number of a residual; and whether the state stayed as it was."""
    x, state, residual = inputs["x"], inputs["state"], inputs["residual"]
    rows = torch.full((len(state), state[0].numel() + 24), float("nan"))
    rows[:, 8:-16] = state.flatten(1)
    spread = torch.full((*residual.shape, 2), float("nan"))
    spread[..., 0] = residual
    inputs |= {
        "x": x.transpose(1, 2).contiguous().transpose(1, 2),
        "state": rows[:, 8:-16].view(state.shape),
        "residual": spread[..., 0],
    }
    result = convolved(inputs)
    return result, torch.equal(inputs["state"], state)


@needs_triton
@pytest.mark.parametrize(
    "case",
    [
        Case(24, 12, 3, length=70, elu=True, residual=True),
        Case(40, 36, 16, 8, length=16, elu=True, residual=True),
        Case(40, 40, 5, 1, length=16, elu=True, residual=True, depthwise=True),
    ],
    ids=named,
)
def test_inputs_where_they_lie(case, interpreted):
    inputs = case.inputs(3)
    result, stayed = interpreted(strided, dict(inputs))
    assert stayed
    plain = interpreted(convolved, inputs)
    assert torch.equal(result[0], plain[0]) and torch.equal(result[1], plain[1])


@needs_triton
def test_idle_lanes_keep_their_state_to_the_bit(interpreted):
    inputs = MIMI[6].inputs(3)
    pool = inputs["state"].clone()
    _, following = interpreted(convolved, inputs)
    states.commit(pool, following, torch.tensor([True, False, True]))
    assert torch.equal(pool[1], inputs["state"][1])
    assert torch.equal(pool[0], following[0])


@needs_triton
def test_not_a_number_stays_with_its_lane(interpreted):
    inputs = MIMI[6].inputs(3)
    clean, _ = interpreted(convolved, inputs)
    inputs["x"][1] = float("nan")
    y, following = interpreted(convolved, inputs)
    assert y[1].isnan().all() and following[1].isnan().any()
    assert torch.equal(y[::2], clean[::2])


@needs_triton
def test_elu_is_exact_near_zero_and_far_away(interpreted):
    """Through a convolution that only passes it on."""
    magnitude = torch.logspace(-12, 2, 200)
    x = torch.cat((-magnitude, magnitude, torch.tensor([0.0, -0.5, -0.50001])))[None, None]
    inputs = {"x": x, "state": None, "weight": torch.ones(1, 1, 1), "elu": True}
    y, _ = interpreted(convolved, inputs)
    wanted = F.elu(x.double())
    torch.testing.assert_close(y.double(), wanted, rtol=3e-7, atol=0.0)


def tf32(x: Tensor) -> Tensor:
    """Rounded to 10 bits behind the first, ties away from zero, as cvt.rna.tf32 does."""
    return ((x.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(FLOAT)


@pytest.mark.parametrize("case", [Case(512, 8, 16, 8, length=16), Case(64, 32, 3, length=96)])
def test_three_products_of_tf32_are_near_float32(case):
    """What an interpreter does not show: it multiplies in float32. Here sums are float64, so that
    only what is left out counts."""
    inputs = case.inputs(2)
    whole, weight = torch.cat((inputs["state"], inputs["x"]), dim=-1), inputs["weight"]
    inputs["bias"] = None
    exact, _ = reference(inputs)

    def product(x: Tensor, w: Tensor) -> Tensor:
        return F.conv1d(x.double(), w.double(), None, case.stride, 0, case.dilation)

    x_high, w_high = tf32(whole), tf32(weight)
    x_low, w_low = tf32(whole - x_high), tf32(weight - w_high)
    one = product(x_high, w_high)
    three = one + product(x_high, w_low) + product(x_low, w_high)
    scale = exact.abs().max()
    assert (three - exact).abs().max() < 3e-7 * scale
    assert (one - exact).abs().max() > 1e-4 * scale


def on_gpu(call: Callable[[dict[str, Any]], Any], inputs: dict[str, Any]) -> Any:
    gpu = FakeGpu()
    placed = {
        name: gpu.empty(value) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
    return gpu.trace(lambda: call(placed))


@needs_triton
@pytest.mark.parametrize(("case", "sums"), [(MIMI[1], 0), (MIMI[5], 0), (MIMI[6], 1)], ids=str)
def test_launches(case, sums):
    """One, and another that adds up where few outputs have long windows."""
    (y, _), launches = on_gpu(lambda placed: causal_conv(**placed), case.inputs(70))
    assert y.shape == (70, case.outputs, case.length // case.stride)
    assert launches["causal_conv_kernel"] == 1 and launches["causal_conv_sum_kernel"] == sums
    assert launches.total() == 1 + sums


@needs_triton
def test_a_depthwise_one_is_one_launch():
    _, launches = on_gpu(lambda placed: causal_conv(**placed), MORE[6].inputs(70))
    assert dict(launches) == {"causal_depthwise_kernel": 1}


@needs_triton
def test_why_it_cannot_run():
    x, weight = torch.zeros(2, 3, 4), torch.zeros(5, 3, 2)

    def reason(x: Tensor, weight: Tensor, **state: Tensor) -> str:
        return on_gpu(lambda at: cannot_convolve(**at), {"x": x, "weight": weight, **state})[0]

    assert reason(x, weight) == ""
    assert "float64" in reason(x.double(), weight)
    assert "not contiguous" in reason(x, weight.transpose(0, 1))
    large = torch.empty(1, device="meta").expand(1 << 16, 3, 1 << 16)
    huge = large.as_strided(large.shape, (3 << 16, 1 << 16, 1))
    assert "it counts to" in reason(huge, weight)
    # Lanes' rows of 4 GB and 8 GB, of which the state is a few numbers.
    state = torch.empty(1, device="meta").expand(2, 3, 1)
    assert reason(x, weight, state=state.as_strided(state.shape, (1 << 30, 1, 1))) == ""
    far = state.as_strided(state.shape, (1 << 31, 1, 1))
    assert "it counts to" in reason(x, weight, state=far)
    assert "TRITON_INTERPRET" in cannot_convolve(x, weight)
    with pytest.raises(RuntimeError, match="causal_conv cannot run as a Triton kernel"):
        causal_conv(x, torch.zeros(2, 3, 1), weight, implementation="triton")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(2, 4, 4)}, r"x \(2, 4, 4\) and weight \(5, 3, 4\)"),
        ({"weight": torch.zeros(5, 1, 4)}, r"x \(2, 3, 4\) and weight \(5, 1, 4\)"),
        ({"x": torch.zeros(2, 3, 3)}, "3 inputs for a kernel of 4"),
        ({"stride": 5}, "kernels that touch"),
        ({"state": None}, r"a state of None; wanted \(2, 3, 2\)"),
        ({"state": torch.zeros(2, 3, 3)}, r"a state of \(2, 3, 3\)"),
        ({"bias": torch.zeros(4)}, r"a bias of \(4,\); wanted \(5,\)"),
        ({"residual": torch.zeros(2, 5, 4)}, r"a residual of .* wanted \(2, 5, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(change, said):
    inputs = Case(3, 5, 4, 2, length=4).inputs(2)
    with pytest.raises(ValueError, match=said):
        causal_conv(**(inputs | change))
