"""`reach` says the truth: each output depends on the inputs that it names, and on no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from streamenc.layers.attention.chunked import ChunkedTransformer
from streamenc.layers.attention.conformer import ConformerBlock
from streamenc.layers.attention.lookahead import LookaheadTransformer
from streamenc.layers.attention.sliding import Transformer
from streamenc.layers.conv.causal import CausalConv1d, CausalConvTranspose1d, ValidConv1d
from streamenc.layers.conv.centred import CentredConv1d, CentredConvTranspose1d
from streamenc.layers.norm import RunningNorm
from streamenc.layers.positions import PositionalConv
from streamenc.layers.streamed import Chain, Residual, Streamed
from streamenc.models.model import Model
from tests.support import references, zoo
from tests.support.reach import measured_reach, without_windows

# Of models that remember everything, so many hops are measured.
HOPS = 6
# Louder by so much, sound lifts the floor of Whisper's log-mel above all else.
LOUD = 1e6


def hops_to_measure(model: Model) -> int:
    """Enough for the last outputs to have all of their past within the stream."""
    field = model.spec.receptive_field
    return HOPS if field is None else 2 + -(-field // model.spec.hop)


# Tokens have no gradients; tests/test_equality.py puts other texts in their places.
WITH_GRADIENTS = [case for case in zoo.CASES if zoo.row(case[0]).family not in zoo.OF_TEXT]


@pytest.mark.parametrize("case", WITH_GRADIENTS, ids="-".join)
def test_outputs_depend_on_what_reach_says(case: tuple[str, str]) -> None:
    model = without_windows(zoo.model(*case))
    steps = model.steps
    length = steps.lead + hops_to_measure(model) * steps.hop
    count = steps.outputs(length)
    # The first of all, those around the first step's end, and the last.
    near = {0, 1, steps.lead_out - 1, steps.lead_out, count - steps.hop_out, count - 2, count - 1}
    items = sorted(near & set(range(count)))
    signal = zoo.signal(model, length)
    found = measured_reach(model, model.before(signal), items)
    for item, (first, last) in zip(items, found, strict=True):
        expected = model.reach(item, item)
        if case[0].startswith(("whisper", "qwen3-asr")) and isinstance(signal, torch.Tensor):
            # Of all that the floor depends on, only the loudest has a gradient.
            start = expected[0] or 0
            loud = signal.clone()
            loud[..., start : start + 160] *= LOUD
            ((first, other),) = measured_reach(model, loud, [item])
            assert other <= expected[1]
        assert (first, last) == (expected[0] or 0, expected[1]), f"output {item}"


LAYERS: dict[str, Callable[[], Streamed]] = {
    "zeros": lambda: CausalConv1d(2, 3, 4, 2, dilation=3),
    "replicated": lambda: CausalConv1d(2, 3, 5, 2, pad_mode="replicate"),
    "reflected": lambda: CausalConv1d(2, 3, 4, 2, dilation=3, pad_mode="reflect"),
    "valid": lambda: ValidConv1d(2, 3, 5, 3),
    "valid behind zeros": lambda: ValidConv1d(2, 3, 5, 2, before=4),
    "transposed": lambda: CausalConvTranspose1d(2, 3, 5, 2),
    "shortcut": lambda: Residual(
        Chain([CausalConv1d(2, 2, 3), CausalConv1d(2, 2, 3, dilation=2)]),
        CausalConv1d(2, 2, 9, pad_mode="reflect"),
    ),
    "centred": lambda: CentredConv1d(2, 3, 10, 5, padding=3),
    "centred, transposed": lambda: CentredConvTranspose1d(2, 3, 10, 5, padding=3),
    "waiting shortcut": lambda: Residual(Chain([CentredConv1d(2, 2, 7), CentredConv1d(2, 2, 7)])),
    "up and down": lambda: Chain(
        [CausalConvTranspose1d(2, 2, 6, 3), nn.ELU(), CausalConv1d(2, 2, 4, 2, pad_mode="reflect")]
    ),
    "forgetting": lambda: RunningNorm(2, 4, first=7, memory=4),
    "remembering": lambda: RunningNorm(2, 4, first=7, memory=5),
    "cut positions": lambda: PositionalConv(2, 8, 1, 3),
    "waiting positions": lambda: PositionalConv(2, 8, 1, None),
    "look-ahead by layers": lambda: ChunkedTransformer(4, 2, 8, 3, 2, left=1, ahead=2),
    "look-ahead": lambda: ChunkedTransformer(4, 2, 8, 2, 3, left=1, lookahead=2),
    "outputs of several layers": lambda: ChunkedTransformer(
        4, 2, 8, 3, 2, left=2, ahead=2, outputs=(0, 1)
    ),
    "windows with look-ahead": lambda: LookaheadTransformer(4, 2, 8, [(3, 2), (0, 0), (2, 1)]),
    "conformer": lambda: ConformerBlock(4, 2, 8, 3, left=1, kernel=5, bias=True, conv_bias=True),
    "sliding": lambda: Transformer(4, 2, 8, 2, 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_say_what_they_see(name: str) -> None:
    layer = LAYERS[name]().double()
    references.randomise(layer)
    steps = layer.steps
    length = steps.lead + -(-30 // steps.hop) * steps.hop
    channels = (
        4 if isinstance(layer, ConformerBlock) or "Transformer" in type(layer).__name__ else 2
    )
    x = torch.randn(1, channels, length, generator=torch.Generator().manual_seed(3)).double()
    items = range(steps.outputs(length))
    expected = [layer.reach(item, item) for item in items]
    # At the start a dilated kernel may miss item 0 by less than its dilation.
    gap = layer.dilation if isinstance(layer, CausalConv1d) else 1
    for found, (first, last) in zip(measured_reach(layer, x, items), expected, strict=True):
        assert found[1] == last
        assert found[0] == first if first else found[0] in range(gap)


@pytest.mark.parametrize("case", zoo.CASES, ids="-".join)
def test_what_an_output_depends_on_is_there_when_it_comes(case: tuple[str, str]) -> None:
    model = zoo.model(*case)
    steps = model.steps
    for item in range(steps.lead_out + 3 * steps.hop_out):
        assert model.reach(item, item)[1] < steps.inputs(item + 1)


@pytest.mark.parametrize("case", zoo.CASES, ids="-".join)
def test_the_reach_of_several_outputs_is_that_of_all(case: tuple[str, str]) -> None:
    model = zoo.model(*case)
    count = model.steps.lead_out + 2 * model.steps.hop_out
    each = [model.reach(item, item) for item in range(count)]
    for start in range(0, count, max(1, count // 7)):
        for stop in range(start, count, max(1, count // 5)):
            firsts = [first for first, _ in each[start : stop + 1]]
            first = None if None in firsts else min(f for f in firsts if f is not None)
            last = max(last for _, last in each[start : stop + 1])
            found = model.reach(start, stop)
            assert (found[0] or 0, found[1]) == (first or 0, last)
