"""The transformer over a sliding window, against torch's attention with an explicit mask."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc import state as states
from streamenc.layers.attention import sliding
from streamenc.layers.attention.sliding import Transformer
from streamenc.layers.linear import Linear
from streamenc_kernels import rotary, rotate
from tests.support.compare import assert_close, poisoned_memory
from tests.support.interpreter import needs_triton
from tests.support.launches import FakeGpu

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

WIDTH, HEADS, WINDOW = 20, 5, 7


def transformer(dtype: torch.dtype = torch.float64, max_step: int = 3, **form: Any) -> Transformer:
    layer = Transformer(WIDTH, HEADS, 123, 2, WINDOW, max_step=max_step, **form)
    layer = layer.to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        scale = 1.0 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return layer


def noise(batch: int, time: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, WIDTH, time, generator=generator, dtype=dtype)


def definition(layer: Transformer, x: Tensor) -> Tensor:
    """All positions at once; each sees itself and the WINDOW - 1 before it."""
    x = x.transpose(1, 2)
    batch, time, _ = x.shape
    at = torch.arange(time)
    age = at[:, None] - at[None]
    mask = (age >= 0) & (age < layer.ring.window)
    pair = torch.arange(layer.head_dim // 2, dtype=torch.float64)
    angle = at[:, None] * 10_000.0 ** (-2 * pair / layer.head_dim)
    # As complex numbers: pairs (i, i + head_dim / 2) turn by the angle.
    turn = torch.polar(torch.ones_like(angle), angle)

    def turned(v: Tensor) -> Tensor:
        first, second = v.double().chunk(2, dim=-1)
        pairs = torch.complex(first, second) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1).to(v.dtype)

    def normed(v: Tensor, norm: torch.nn.Module) -> Tensor:
        if isinstance(norm, torch.nn.Identity):
            return v
        if isinstance(norm, torch.nn.LayerNorm):
            return F.layer_norm(v, (WIDTH,), norm.weight, norm.bias, norm.eps)
        return norm.weight * v / (v.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()

    def linear(v: Tensor, projection: Linear) -> Tensor:
        return F.linear(v, projection.weight, projection.bias)

    for block in layer.layers:
        scales = [1.0 if scale is None else scale for scale in (block.scale1, block.scale2)]
        q, k, v = (
            part.view(batch, time, HEADS, -1).transpose(1, 2)
            for part in linear(normed(x, block.norm1), block.in_proj).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, mask)
        x = x + scales[0] * linear(y.transpose(1, 2).reshape(batch, time, -1), block.out_proj)
        h = linear(normed(x, block.norm2), block.linear1)
        h = F.silu(h[..., :123]) * h[..., 123:] if block.gated else F.gelu(h)
        x = x + scales[1] * linear(h, block.linear2)
    return normed(x, layer.norm).transpose(1, 2)


def stepped(layer: Transformer, x: Tensor, sizes: list[int]) -> Tensor:
    outputs, state, at = [], None, 0
    while at < x.shape[-1]:
        size = sizes[len(outputs) % len(sizes)]
        y, state = layer.step(x[..., at : at + size], state)
        outputs.append(y)
        at += size
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize(
    "sizes",
    [[1], [2], [3], [3, 1, 2], [4], [5, 1], [1, 40, 2], [123], [100, 3], [7, 8, 9, 3]],
    ids=str,
)
def test_steps_of_any_length_past_the_ring(sizes):
    """Up to max_step = 3 in place, beyond it in blocks; the ring of nine goes round many times."""
    layer, x = transformer(), noise(2, 123)
    assert layer.ring.slots == 9
    assert_close(stepped(layer, x, sizes), definition(layer, x), 1e-11)


@pytest.mark.parametrize(
    "form",
    [
        {"norm": "rms"},
        {"gated": True},
        {"scaled": False},
        {"final": True},
        {"head_dim": 6},
        {"biases": ("in_proj", "linear2")},
        {
            "norm": "rms",
            "gated": True,
            "scaled": False,
            "final": True,
            "head_dim": 2,
            "biases": ("in_proj", "out_proj", "linear1", "linear2"),
        },
    ],
    ids=str,
)
def test_other_forms(form, monkeypatch):
    layer, x = transformer(**form), noise(2, 40)
    expected = definition(layer, x)
    assert_close(layer(x), expected, 1e-11)
    assert_close(stepped(layer, x, [3, 1, 5, 2]), expected, 1e-11)
    # As on a GPU, where products add to their output.
    names, given = list(layer.state_dict()), x.clone()
    for block in layer.layers:
        block.fold()
    with torch.no_grad():
        assert_close(stepped(layer, x, [3, 1, 5, 2]), expected, 1e-11)
        assert_close(stepped(layer, x[:1, :, :1], [1]), expected[:1, :, :1], 1e-11)
    # As there where products come with what stands around them.
    monkeypatch.setattr(sliding, "fuses_linear", lambda x, weight: True)
    with torch.no_grad():
        assert_close(stepped(layer, x, [3, 1, 5, 2]), expected, 1e-11)
        assert_close(stepped(layer, x[:1, :, :1], [1]), expected[:1, :, :1], 1e-11)
        assert_close(layer(x), expected, 1e-11)
    assert torch.equal(x, given) and list(layer.state_dict()) == names


def test_scales_are_folded_on_a_gpu_only(monkeypatch):
    """A step of two layers: each adds twice, and scales nothing."""
    monkeypatch.setattr(sliding, "fuses_linear", lambda x, weight: False)
    layer, gpu = transformer(torch.float32), FakeGpu()
    for block in layer.layers:
        block.prepare()
        assert not block.folded
    placed, x = gpu.module(layer), gpu.empty(noise(3, 2, dtype=torch.float32))
    (_, state), _ = gpu.trace(lambda: placed.step(x, None))
    _, launches = gpu.trace(lambda: placed.step(x, state))
    assert launches["addmm_"] == 4 and launches["mul"] < 4


@needs_triton
def test_a_layer_is_five_launches_on_a_gpu():
    layer, gpu = transformer(torch.float32), FakeGpu()
    placed, x = gpu.module(layer), gpu.empty(noise(3, 2, dtype=torch.float32))
    (_, state), _ = gpu.trace(lambda: placed.step(x, None))
    _, launches = gpu.trace(lambda: placed.step(x, state))
    assert launches["fused_linear_kernel"] == 8 and launches["ring_attention_kernel"] == 2
    assert launches.total() <= 10 + 3, launches


@pytest.mark.parametrize("time", [1, 2, 6, 7, 8, 63, 64, 65, 123])
def test_offline(time):
    layer, x = transformer(), noise(3, time)
    assert_close(layer(x), definition(layer, x), 1e-11)


def test_float32():
    layer, x = transformer(torch.float32), noise(2, 123, dtype=torch.float32)
    assert_close(stepped(layer, x, [2]), definition(layer, x), 1e-5)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_lanes_at_different_positions(size):
    """Lanes that joined at other times, in one batch: each as if alone."""
    layer = transformer()
    ages = [0, 5, 31]
    signals = [noise(1, age + size, seed=age) for age in ages]
    alone = []
    for x, age in zip(signals, ages, strict=True):
        state = layer.step(x[..., :age], None)[1] if age else empty_state(layer)
        alone.append(state)
    together = states.allocate(alone[0], len(ages))
    for index, state in enumerate(alone):
        states.put_lane(together, index, state)
    assert together[0].tolist() == ages
    y, following = layer.step(torch.cat([x[..., -size:] for x in signals]), together)
    for index, (x, age) in enumerate(zip(signals, ages, strict=True)):
        assert_close(y[index : index + 1], definition(layer, x)[..., age:], 1e-11)
    assert following[0].tolist() == [age + size for age in ages]


def empty_state(layer: Transformer) -> states.State:
    state = layer.step(noise(1, 1), None)[1]
    return states.map_state(torch.zeros_like, state)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_idle_lanes_may_be_written_ahead(size):
    """A lane that was not committed goes on as if nothing had happened, however often it idled."""
    layer, x = transformer(), noise(2, 60)
    _, pool = layer.step(x[..., :20], None)
    pool = states.clone(pool)
    active = torch.tensor([True, False])
    for start in range(20, 20 + 5 * size, size):
        _, new = layer.step(x[..., start : start + size], pool)
        states.commit(pool, new, active)
    assert pool[0].tolist() == [20 + 5 * size, 20]
    y, _ = layer.step(x[..., 20 : 20 + size], pool)
    assert_close(y[1:], definition(layer, x[1:, :, : 20 + size])[..., 20:], 1e-11)


def test_a_short_step_writes_its_ring_in_place_and_a_long_one_does_not():
    layer = transformer()
    _, state = layer.step(noise(1, 10), None)
    _, after = layer.step(noise(1, 3), state)
    assert after[1][0] is state[1][0] and after[0] is not state[0]
    before = states.clone(after)
    _, longer = layer.step(noise(1, 4), after)
    for old, kept in zip(states.leaves(before), states.leaves(after), strict=True):
        assert torch.equal(old, kept)
    assert longer[1][0] is not after[1][0]


def test_rotary_angles_stay_exact_for_hours():
    """After ten hours at 25 positions a second; float32 angles would be off by hundredths."""
    position = 25 * 36_000
    cos, sin = rotary(torch.tensor([[position]]), 8, 10_000.0, torch.float32)
    for pair in range(4):
        angle = math.fmod(position * 10_000.0 ** (-pair / 4), 2 * math.pi)
        assert abs(cos[0, 0, 0, pair].item() - math.cos(angle)) < 1e-6
        assert abs(sin[0, 0, 0, pair].item() - math.sin(angle)) < 1e-6
    x = torch.randn(1, 1, 1, 8)
    assert_close(rotate(x, cos, sin).norm(), x.norm(), 1e-6)


class Step(torch.nn.Module):
    def __init__(self, layer: Transformer, traced: list[bool]) -> None:
        super().__init__()
        self.layer, self.traced = layer, traced

    def forward(self, x: Tensor, state: states.State) -> tuple[Tensor, states.State]:
        self.traced.append(torch.compiler.is_compiling())
        return self.layer.step(x, state)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_step_can_be_exported(size):
    layer, traced = transformer(torch.float32), []
    _, state = layer.step(noise(2, 20, dtype=torch.float32), None)
    x = noise(2, size, seed=2, dtype=torch.float32)
    exported = torch.export.export(Step(layer, traced), (x, states.clone(state)))
    assert traced and all(traced)  # which is how the op knows that its kernel may not run
    y, after = exported.module()(x, states.clone(state))
    expected, following = layer.step(x, state)
    assert torch.equal(y, expected)
    for ours, theirs in zip(states.leaves(after), states.leaves(following), strict=True):
        assert torch.equal(ours, theirs)


def by_kernel(sizes: list[int]) -> Tensor:
    """In the interpreter's process, where the layer is made to choose the kernel."""
    op = import_module("streamenc_kernels.ring_attention")
    with mock.patch.object(op, "takes_triton", lambda op, device, chosen, cannot: not cannot()):
        return stepped(transformer(torch.float32), noise(2, 20, dtype=torch.float32), sizes)


@needs_triton
@pytest.mark.parametrize("sizes", [[3, 1], [5, 2]], ids=str)
def test_steps_through_the_kernel(interpreted, sizes):
    """Short steps by the kernel, long ones in blocks, on one ring."""
    x = noise(2, 20, dtype=torch.float32)
    expected = definition(transformer(torch.float32), x)
    assert_close(interpreted(by_kernel, sizes), expected, 1e-5)
