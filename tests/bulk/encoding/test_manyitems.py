"""Many items at once: the rows of each alone, in order, and bounded."""

from __future__ import annotations

import numpy as np
import pytest

from streamenc.bulk.encoding import manyitems
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.items import Fault, Item, Local
from tests.bulk.encoding.conftest import write_sound


def same(ours, theirs):
    """Rows of the same items: codes to the last one, features to rounding."""
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other), (one, other)
        if isinstance(one, Fault):
            assert one == other
            continue
        told = [(row.key, row.n_samples, row.rate, row.flags) for row in (one, other)]
        assert told[0] == told[1]
        for mine, alone in zip(one.tokens, other.tokens, strict=True):
            assert mine.data.dtype == alone.data.dtype
            assert mine.gaps == alone.gaps
            if mine.data.dtype.kind == "f":
                np.testing.assert_allclose(mine.data, alone.data, rtol=0, atol=1e-4)
            else:
                assert np.array_equal(mine.data, alone.data), one.key
            if alone.scales is not None:
                np.testing.assert_allclose(mine.scales, alone.scales, rtol=1e-5)


@pytest.mark.parametrize("model", ["nano", "mel", "mimi", "encodec", "encodec-48k", "dac"])
def test_lanes_give_the_codes_of_each_item_alone(model, job_of, sounds, tmp_path):
    alone, lanes = Tokenizer(job_of(model), tmp_path), Tokenizer(job_of(model), tmp_path, lanes=3)
    same(lanes.rows(sounds), alone.rows(sounds))


@pytest.mark.parametrize("layout", ["flat", "delay"])
def test_layouts_are_those_of_each_item_alone(layout, job_of, sounds, tmp_path):
    job = job_of("nano", layout=layout)
    alone, lanes = Tokenizer(job, tmp_path), Tokenizer(job, tmp_path, lanes=4)
    same(lanes.rows(sounds), alone.rows(sounds))


def test_models_of_several_rates_in_one_pass(job_of, sounds, tmp_path):
    job = job_of("nano", "mimi", "mel")
    alone, lanes = Tokenizer(job, tmp_path), Tokenizer(job, tmp_path, lanes=3)
    same(lanes.rows(sounds), alone.rows(sounds))


def test_one_model_in_lanes_and_one_alone(job_of, sounds, tmp_path, monkeypatch):
    job = job_of("nano", "mel")
    alone = Tokenizer(job, tmp_path)
    monkeypatch.setattr(
        "streamenc.bulk.encoding.tokenizer.in_lanes", lambda model: model.spec.name != "mel"
    )
    lanes = Tokenizer(job, tmp_path, lanes=3)
    same(lanes.rows(sounds), alone.rows(sounds))


def test_bad_items_are_faults_in_their_places(job_of, sounds, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("no sound at all")
    short = Item("cut", sounds[0].media, 0.1, 20.0)
    none = Fault("none", "input", "it says nothing")
    items = [Item("text", Local(str(text))), sounds[2], none, short, sounds[5]]
    alone = Tokenizer(job_of("nano"), tmp_path)
    lanes = Tokenizer(job_of("nano"), tmp_path, lanes=2)
    rows = list(lanes.rows(items))
    same(rows, alone.rows(items))
    assert [isinstance(row, Fault) for row in rows] == [True, False, True, True, False]


def test_of_several_models_the_one_that_failed_is_named(job_of, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr("streamenc.bulk.encoding.modelpass.MAX_TOKEN_BYTES", 60_000)
    job = job_of("nano", "mel")
    for lanes in (0, 2):
        rows = list(Tokenizer(job, tmp_path, lanes=lanes).rows(sounds[4:7]))
        assert [isinstance(row, Fault) for row in rows] == [False, True, False]
        assert rows[1].reason.startswith("mel: its tokens have more than")


def test_rows_that_wait_for_a_long_item_are_bounded(job_of, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(manyitems, "WAITING_ROWS", 5)
    long = write_sound(tmp_path / "long.wav", 20.0)
    taken = []

    def items():
        for number in range(40):
            taken.append(number)
            yield sounds[1] if number else long

    lanes = Tokenizer(job_of("nano"), tmp_path, lanes=3)
    rows = lanes.rows(items())
    assert next(rows).key == "long"
    assert len(taken) <= 1 + 5 + 2
    assert [row.key for row in rows] == ["1"] * 39


def test_lanes_are_free_once_nobody_reads_on(job_of, sounds, tmp_path):
    lanes = Tokenizer(job_of("nano"), tmp_path, lanes=3)
    rows = lanes.rows(sounds)
    next(rows)
    rows.close()
    same(lanes.rows(sounds), Tokenizer(job_of("nano"), tmp_path).rows(sounds))
