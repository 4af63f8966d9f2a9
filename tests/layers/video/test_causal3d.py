"""Convolutions over video: step by step they give what they give at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch.nn.functional as F

from streamenc.layers.streamed import Streamed
from streamenc.layers.video import causal3d
from streamenc.layers.video.causal3d import (
    CausalConv3d,
    ChannelNorm,
    Downsample,
    Factorised,
    FrameConv,
    FrameNorm,
    TemporalConv,
    Upsample,
    VideoResidual,
)
from tests.support.compare import assert_close, poisoned_memory
from tests.support.videolayers import assert_steps_equal_the_whole, frames, made

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

# A layer over 6 channels, and how many frames its steps take after the first one.
LAYERS: dict[str, tuple[Callable[[], Streamed], int]] = {
    "conv": (lambda: TemporalConv(6, 4), 1),
    "strided": (lambda: TemporalConv(6, 4, stride=2), 2),
    "factorised": (lambda: Factorised(6, 4), 1),
    "whole": (lambda: CausalConv3d(6, 4), 1),
    "whole strided": (lambda: CausalConv3d(6, 4, stride=2, repeated=True), 2),
    "residual": (lambda: VideoResidual(6, 4, FrameNorm, Factorised), 1),
    "whole residual": (lambda: VideoResidual(6, 4, ChannelNorm, CausalConv3d), 1),
    "images": (lambda: VideoResidual(6, 4, partial(FrameNorm, groups=2), FrameConv), 1),
    "down": (lambda: Downsample(6, space=True, time=True), 2),
    "down in time": (lambda: Downsample(6, space=False, time=True), 2),
    "up": (lambda: Upsample(6, space=True, time=True), 1),
    "up in space": (lambda: Upsample(6, space=True, time=False), 1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("steps", [[1] * 30, [3, 1, 7, 19]])
def test_steps_equal_the_whole(name, steps):
    make, unit = LAYERS[name]
    assert_steps_equal_the_whole(made(make), [1, *(unit * step for step in steps)])


def test_a_single_frame_is_not_doubled():
    x = frames(1)
    assert made(LAYERS["up"][0])(x).shape == (2, 1, 6, 8, 16)
    assert made(LAYERS["down"][0])(x).shape == (2, 1, 6, 2, 4)
    assert made(LAYERS["up"][0])(frames(4)).shape[1] == 7


def test_stride_two_halves_an_even_size():
    conv = FrameConv(6, 3, 3, stride=2).double()
    conv.weight.data.normal_()
    conv.bias.data.normal_()
    x = frames(2, batch=1)
    wanted = F.conv2d(F.pad(x[0], (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    assert_close(conv(x)[0].detach(), wanted.detach(), 1e-12)


@pytest.mark.parametrize("one_by_one", [0, 1 << 30])
@pytest.mark.parametrize("stride", [1, 2])
def test_whole_kernels_are_a_convolution_behind_two_frames(monkeypatch, one_by_one, stride):
    monkeypatch.setattr(causal3d, "ONE_BY_ONE", one_by_one)
    conv = made(lambda: CausalConv3d(6, 4, stride=stride))
    x = frames(7)
    padded = F.pad(x.transpose(1, 2), (1, 1, 1, 1, 2, 0))
    weight = conv.weight.transpose(1, 2)
    assert_close(conv(x), F.conv3d(padded, weight, conv.bias, stride).transpose(1, 2), 1e-12)
    repeated = made(lambda: CausalConv3d(6, 4, stride=stride, repeated=True))
    padded[:, :, :2] = padded[:, :, 2:3]
    wanted = F.conv3d(padded, weight, conv.bias, stride).transpose(1, 2)
    assert_close(repeated(x), wanted, 1e-12)
