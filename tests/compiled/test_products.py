"""Products, convolutions and what stands in their epilogues, against the layers' own steps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("numba", reason="compiled steps need numba")

from streamenc.errors import CannotLower
from streamenc.layers.attention.sliding import Transformer
from streamenc.layers.conv.causal import CausalConv1d, CausalConvTranspose1d
from streamenc.layers.conv.unit import ResidualUnit
from streamenc.layers.streamed import Chain
from tests.support.lowered import assert_same_step, lowered, prepare, random_weights

PRECISIONS = ("float32", "int16")
# Processors without AVX-512: two vectors where a tile there has one.
HASWELL = "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+cx8,+f16c,+fma,+fsgsbase,+fxsr,+lzcnt,+mmx,"
HASWELL += "+movbe,+popcnt,+sahf,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave"


def started(layer, channels, positions, lanes=3, seed=1):
    """A state in mid-stream, of other signals in each lane, and the next input."""
    generator = torch.Generator().manual_seed(seed)
    prepare(layer)
    x = torch.randn(lanes, channels, 3 * positions, generator=generator)
    with torch.inference_mode():
        _, state = layer.step(x[..., : 2 * positions], None)
    return x[..., 2 * positions :].contiguous(), state


def check(layer, channels, positions, **how):
    random_weights(layer)
    x, state = started(layer, channels, positions)
    assert_same_step(layer, x, state, **how)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "outputs"),
    [
        (1, 64, 7, 1, 100),  # the first of a codec, many rows
        (64, 1, 3, 1, 96),  # and the last
        (3, 4, 5, 1, 7),
        (32, 130, 4, 2, 1),  # two panels and two outputs
        (32, 31, 4, 2, 3),
        (128, 96, 1, 1, 8),
        (64, 64, 16, 8, 13),
        (64, 32, 3, 1, 50),  # half a panel
        (64, 200, 3, 1, 67),
    ],
)
def test_a_convolution(channels, out, kernel, stride, outputs, precision):
    layer = CausalConv1d(channels, out, kernel, stride, pad_mode="replicate")
    check(layer, channels, stride * outputs, precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("channels", "out", "stride", "kernels", "positions"),
    [
        (32, 16, 8, 2, 1),
        (96, 48, 5, 2, 2),
        (64, 32, 4, 2, 60),
        (48, 40, 3, 1, 5),
        (16, 80, 2, 2, 9),
    ],
)
def test_a_transposed_convolution(channels, out, stride, kernels, positions, precision):
    layer = CausalConvTranspose1d(channels, out, kernels * stride, stride)
    check(layer, channels, positions, precision=precision)


@pytest.mark.parametrize("positions", [1, 2, 11])
def test_a_transposed_convolution_of_each_channel(positions):
    check(CausalConvTranspose1d(24, 24, 4, 2, groups=24, bias=False), 24, positions)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("positions", "shortcut"), [(3, False), (60, False), (5, True)])
def test_a_residual_unit_between_others(positions, shortcut, precision):
    """What goes raw to a residual and behind an ELU to the next convolution lies in two places."""
    width = 40
    unit = ResidualUnit(
        CausalConv1d(width, 20, 3, elu=True),
        CausalConv1d(20, width, 1, elu=True),
        CausalConv1d(width, width, 1) if shortcut else None,
    )
    last = CausalConvTranspose1d(width, 24, 6, 3)
    chain = Chain([CausalConv1d(width, width, 3), unit, nn.ELU(), last])
    check(chain, width, positions, precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scaled": False, "final": True},
        {"biases": ("in_proj", "out_proj", "linear1", "linear2")},
        {"norm": "rms", "head_dim": 12},
    ],
)
def test_a_transformer_past_its_window(how, precision):
    layer = Transformer(32, 2, 70, 2, 9, **how)
    random_weights(layer)
    prepare(layer)
    x = torch.randn(3, 32, 60, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        _, state = layer.step(x[..., :4], None)
        for start in range(4, 60, 2):
            piece = x[..., start : start + 2].contiguous()
            assert_same_step(layer, piece, state, precision=precision)
            _, state = layer.step(piece, state)


def test_rounding_changes_torch_along():
    """The weights of the layer are what the program computes with."""
    layer = CausalConv1d(64, 64, 3)
    random_weights(layer)
    before = layer.weight.clone()
    x, state = started(layer, 64, 5)
    lowered(layer, x, state, precision="int16")
    apart = (layer.weight - before).abs().flatten(1).amax(dim=1)
    step = before.abs().flatten(1).amax(dim=1) / (127 * 256)
    assert (apart > 0).all() and (apart <= 0.51 * step).all()


def test_what_has_no_instructions_is_named():
    for layer, words in (
        (CausalConv1d(8, 8, 3, dilation=2), "gaps"),
        (Chain([nn.Tanh()]), "Tanh"),
        (CausalConvTranspose1d(8, 8, 3, 2), "3 by 2"),
    ):
        random_weights(layer)
        x, state = started(layer, 8, 4)
        with pytest.raises(CannotLower, match=words):
            lowered(layer, x, state)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other features")
def test_on_a_processor_without_avx512(tmp_path):
    """Tiles of another shape; the same tests as here."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": HASWELL,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "STREAMENC_TESTS": "fast",
    }
    shapes = "from streamenc_kernels.compiled.products import WIDE; assert not WIDE"
    subprocess.run([sys.executable, "-c", shapes], env=environment, check=True, timeout=300)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*tests, __file__], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-3000:]
