"""Lanes of one model: gaps, and what a GPU's batches do."""

from __future__ import annotations

import numpy as np
import pytest

from streamenc.bulk.encoding.modellanes import ModelLanes, in_lanes
from streamenc.bulk.encoding.modelpass import ModelPass
from streamenc.bulk.tokenizejob import ModelAsk
from streamenc.errors import InputError
from tests.support import zoo

ASK = ModelAsk(name="")


def sound(samples, seed):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (1, samples)).astype(np.float32)


def lanes_of(codec, count=3, **how):
    return ModelLanes(codec, ASK, "books", count, **how)


def run_to_the_end(lanes, passes):
    for each in passes:
        each.end()
    while lanes.run(passes):
        pass
    assert all(each.done for each in passes)
    nothing = np.zeros((lanes.model.spec.output.channels, 0))
    return [each.finish(nothing) for each in passes]


@pytest.mark.parametrize("name", ["mimi", "mel"])
def test_behind_a_gap_the_model_starts_anew(name):
    codec = zoo.codec(name)
    lanes = lanes_of(codec)
    pieces = [(sound(3000, 1), False), (sound(700, 2), True), (sound(5000, 3), True)]
    ours, alone = lanes.new_pass(), ModelPass(codec, ASK, "books")
    for data, anew in pieces:
        ours.push(data, anew)
        alone.push(data, anew)
    (made,) = run_to_the_end(lanes, [ours])
    other = alone.finish(np.zeros((codec.spec.output.channels, 0)))
    np.testing.assert_allclose(made.data, other.data, rtol=0, atol=1e-9)
    assert made.gaps == other.gaps
    assert len(made.gaps) == 2


def test_a_gpu_gives_an_item_the_same_whoever_its_neighbours_are():
    codec = zoo.codec("wav2vec2")
    lengths = (40_000, 20_000, 33_333)

    def made(which):
        lanes = lanes_of(codec, by_index=True)
        passes = [lanes.new_pass() for _ in which]
        for each, number in zip(passes, which, strict=True):
            each.push(sound(lengths[number], number))
        return [tokens.data for tokens in run_to_the_end(lanes, passes)]

    alone = ModelPass(codec, ASK, "books")
    alone.push(sound(lengths[0], 0))
    whole = alone.finish(np.zeros((codec.spec.output.channels, 0))).data
    (single,), (first, *_), (*_, last) = made([0]), made([0, 1, 2]), made([1, 2, 0])
    np.testing.assert_allclose(single, whole, rtol=0, atol=1e-6)
    assert np.array_equal(single, first)
    assert np.array_equal(single, last)


def test_more_items_than_lanes_wait_for_one():
    codec = zoo.codec("mimi")
    lanes = lanes_of(codec, 2)
    passes = [lanes.new_pass() for _ in range(5)]
    for number, each in enumerate(passes):
        each.push(sound(40_000 + 500 * number, number))
    for number, made in enumerate(run_to_the_end(lanes, passes)):
        alone = ModelPass(codec, ASK, "books")
        alone.push(sound(40_000 + 500 * number, number))
        assert np.array_equal(made.data, alone.finish(made.data[:, :0]).data)


def test_samples_that_no_model_takes():
    each = lanes_of(zoo.codec("mimi")).new_pass()
    with pytest.raises(InputError, match="not finite"):
        each.push(np.full((1, 100), np.nan, np.float32))
    with pytest.raises(InputError, match="up to 1000"):
        each.push(np.full((1, 100), 1000, np.float32))


def test_which_models_go_in_lanes():
    assert in_lanes(zoo.model("mimi", "encoder"))
    assert in_lanes(zoo.model("encodec-48k", "encoder"))
    assert not in_lanes(zoo.model("vit", "encoder"))
