"""A stream in batches of 1, 8, 64 and 512: latents to rounding, and the codes that differ."""

from __future__ import annotations

import pytest
import torch

import streamenc
from streamenc.testing import BatchDifference, batch_differences, random_signal
from tests.support import zoo

SIZES = (1, 8, 64, 512)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_nano_among_512(side):
    model = getattr(streamenc.load("nano"), side)
    signals = random_signal(model, model.spec.lead + 3 * model.spec.hop, batch=SIZES[-1])
    found = batch_differences(model, signals, SIZES)
    print(found)
    assert [one.lanes for one in found] == [*SIZES]
    assert found[0] == BatchDifference(1, 0.0, 0, found[0].of)
    assert all(one.error <= 1e-5 for one in found)
    # A tie in a thousand codes may fall the other way.
    assert all(one.codes <= 1e-3 * one.of for one in found)


@pytest.mark.parametrize("name", ["mimi", "encodec", "hubert"])
def test_other_families_among_64(name):
    model = zoo.model(
        next(n for n in zoo.CASES if n[0].startswith(name))[0], "encoder", torch.float32
    )
    signals = random_signal(model, model.spec.lead + 3 * model.spec.hop, batch=64)
    for one in batch_differences(model, signals, SIZES[:3]):
        assert one.error <= 1e-5 and one.codes <= max(1, 1e-2 * one.of), one


def test_what_depends_on_the_neighbours_is_seen(monkeypatch):
    model = zoo.model("mimi", "encoder", torch.float32)
    step = type(model).step

    def mixing(self, x, state, *, end=False):
        y, after = step(self, x, state, end=end)
        return y + 1e-3 * (y.mean(dim=0, keepdim=True) - y), after

    monkeypatch.setattr(type(model), "step", mixing)
    signals = random_signal(model, model.spec.lead + model.spec.hop, batch=8)
    alone, among = batch_differences(model, signals, (1, 8))
    assert alone.error == 0 and among.error > 1e-5
