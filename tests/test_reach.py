"""`reach` says the truth: each output depends on the inputs that it names, and on no others."""

from __future__ import annotations

import pytest
import torch

from streamenc.models.model import Model
from tests.support import zoo
from tests.support.reach import measured_reach, without_windows

# Of models that remember everything, so many hops are measured.
HOPS = 6
# Louder by so much, sound lifts the floor of Whisper's log-mel above all else.
LOUD = 1e6


def hops_to_measure(model: Model) -> int:
    """Enough for the last outputs to have all of their past within the stream."""
    field = model.spec.receptive_field
    return HOPS if field is None else 2 + -(-field // model.spec.hop)


@pytest.mark.parametrize("case", zoo.CASES, ids="-".join)
def test_outputs_depend_on_what_reach_says(case: tuple[str, str]) -> None:
    model = without_windows(zoo.model(*case))
    steps = model.steps
    length = steps.lead + hops_to_measure(model) * steps.hop
    count = steps.outputs(length)
    # The first of all, those around the first step's end, and the last.
    near = {0, 1, steps.lead_out - 1, steps.lead_out, count - steps.hop_out, count - 2, count - 1}
    items = sorted(near & set(range(count)))
    signal = zoo.signal(model, length)
    found = measured_reach(model, signal, items)
    for item, (first, last) in zip(items, found, strict=True):
        expected = model.reach(item, item)
        if case[0].startswith("whisper") and isinstance(signal, torch.Tensor):
            # Of all that the floor depends on, only the loudest has a gradient.
            start = expected[0] or 0
            loud = signal.clone()
            loud[..., start : start + 160] *= LOUD
            ((first, other),) = measured_reach(model, loud, [item])
            assert other <= expected[1]
        assert (first, last) == (expected[0] or 0, expected[1]), f"output {item}"


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
