"""Residual units of SEANet, and convolutions with an ELU before them."""

from __future__ import annotations

from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from streamenc import state as states
from streamenc.layers.conv import causal
from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.conv.unit import ResidualUnit
from streamenc.layers.streamed import Chain, Residual, Streamed
from streamenc.models.seanet import Seanet, seanet_encoder
from tests.support.compare import assert_close, poisoned_memory
from tests.support.interpreter import needs_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]
FLOAT = torch.float32


def filled(layer: Streamed, dtype: torch.dtype = torch.float64) -> Streamed:
    layer = layer.to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return layer


def stepped(layer: Streamed, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[states.State]]:
    outputs, following, state, at = [], [], None, 0
    for size in [*sizes, x.shape[-1] - sum(sizes)]:
        last = at + size == x.shape[-1]
        y, state = layer.step(x[..., at : at + size], state, end=last)
        outputs.append(y)
        following.append(states.clone(state))
        at += size
    return torch.cat(outputs, dim=-1), following


def assert_same(ours: tuple[Tensor, list], theirs: tuple[Tensor, list]) -> None:
    torch.testing.assert_close(ours[0], theirs[0])
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert states.form(a) == states.form(b)
        for x, y in zip(states.leaves(a), states.leaves(b), strict=True):
            torch.testing.assert_close(x, y)


def activated(*sizes: int, **options: object) -> tuple[Streamed, Streamed]:
    """The convolution with its ELU, and an ELU and a convolution of the same numbers."""
    ours = filled(CausalConv1d(*sizes, elu=True, **options))
    theirs = Chain([nn.ELU(), CausalConv1d(*sizes, **options)]).double().requires_grad_(False)
    theirs.layers[1].load_state_dict(ours.state_dict())
    return Chain([ours]), theirs


@pytest.fixture(params=["operators", "op"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a CPU, and as where a kernel takes it all; here its definition does."""
    if request.param == "op":
        monkeypatch.setattr(causal, "fuses_conv", lambda x, weight: True)
    return request.param


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(7, 1, 1), (3, 1, 2), (8, 4, 1), (1, 1, 1), (4, 4, 1)]
)
@pytest.mark.parametrize("length", [37, 40])
def test_elu_within_is_elu_before(path, mode, kernel, stride, dilation, length):
    ours, theirs = activated(5, 6, kernel, stride, dilation=dilation, pad_mode=mode)
    x = torch.randn(2, 5, length, dtype=torch.float64)
    assert_same(stepped(ours, x, [12, 4, 8]), stepped(theirs, x, [12, 4, 8]))


@pytest.mark.parametrize("shortcut", [False, True])
def test_a_unit_is_the_residual_of_its_layers(path, shortcut):
    def convs(elu: bool) -> tuple[CausalConv1d, CausalConv1d, CausalConv1d | None]:
        first = CausalConv1d(6, 3, 3, dilation=2, elu=elu)
        beside = CausalConv1d(6, 6, 1) if shortcut else None
        return first, CausalConv1d(3, 6, 1, elu=elu), beside

    unit = filled(ResidualUnit(*convs(True)))
    first, second, beside = convs(False)
    plain = Residual(Chain([nn.ELU(), first, nn.ELU(), second]), beside).double()
    plain.requires_grad_(False).load_state_dict(unit.state_dict())
    assert (unit.steps, unit.reach(7, 9)) == (plain.steps, plain.reach(7, 9))
    x = torch.randn(2, 6, 29, dtype=torch.float64)
    ours, theirs = stepped(unit, x, [7, 1, 3]), stepped(plain, x, [7, 1, 3])
    assert_same(ours, theirs)
    if path == "operators":
        assert torch.equal(ours[0], theirs[0])


def by_kernels(model: Streamed, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[states.State]]:
    """Streamed with each convolution as a Triton kernel."""
    by_kernel = partial(causal.causal_conv, implementation="triton")
    with (
        mock.patch.object(causal, "fuses_conv", lambda x, weight: True),
        mock.patch.object(causal, "causal_conv", by_kernel),
    ):
        return stepped(model, x, sizes)


@needs_triton
@pytest.mark.parametrize(
    "shape",
    [
        {"pad_mode": "reflect", "conv_shortcut": True},
        pytest.param({"dilation_base": 3, "residual_layers": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_encoder_by_kernels(shape, interpreted):
    model = filled(seanet_encoder(Seanet(1, 6, 4, (4, 3), **shape)), FLOAT)
    for parameter in model.parameters():
        parameter.mul_(parameter[0].numel() ** -0.5)
    x = torch.randn(2, 1, 12 * 6 + 5, generator=torch.Generator().manual_seed(1))
    sizes = [12 * 4, 12]
    ours, theirs = interpreted(by_kernels, model, x, sizes), stepped(model, x, sizes)
    assert_close(ours[0], theirs[0], 1e-6)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert states.form(a) == states.form(b)
        for kept, wanted in zip(states.leaves(a), states.leaves(b), strict=True):
            assert_close(kept, wanted, 1e-6)


def test_what_a_state_was_stays():
    """A step leaves the state alone that it goes on from."""
    layer = filled(CausalConv1d(3, 4, 5, elu=True))
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    _, state = layer.step(x, None)
    before = states.clone(state)
    layer.step(x[..., :2], state)
    assert torch.equal(state, before)
