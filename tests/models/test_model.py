"""What tells one model from another: its weights, and every number that it was configured with."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import streamenc
from streamenc.codec import Codec
from streamenc.errors import SnapshotError, StreamencError
from streamenc.models.families import FAMILIES
from streamenc.models.model import Model
from streamenc.spec import Port, StreamSpec
from streamenc.stream import Stream
from tests.support import zoo

assert FAMILIES.keys() == {zoo.row(name).family for name, _ in [*zoo.CONFIGURED, *zoo.ASKED]}


def load(row: zoo.Row, folder: Path, **options: Any) -> Codec:
    part = "both" if len(row.sides) == 2 else "encoder"
    where = row.load or str(folder)
    return streamenc.load(where, part=part, **{**row.options, **options})


def sides(codec: Codec) -> list[Model]:
    return [codec.encoder, codec.decoder] if codec.has_decoder else [codec.encoder]


def check(ours: Codec, again: Codec, theirs: Codec) -> None:
    differ = 0
    for one, same, another in zip(sides(ours), sides(again), sides(theirs), strict=True):
        tensors = another.state_dict()
        assert all(torch.equal(tensors[name], value) for name, value in one.state_dict().items())
        assert one.fingerprint() == same.fingerprint()
        differ += one.fingerprint() != another.fingerprint()
    assert differ, "two models that compute different things count as one"


@pytest.mark.parametrize(("name", "change"), zoo.CONFIGURED)
def test_another_number_in_the_config_is_another_model(name, change, tmp_path):
    row = zoo.row(name)
    assert row.save is not None
    row.save(tmp_path)
    ours, again = load(row, tmp_path), load(row, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    check(ours, again, load(row, tmp_path))


@pytest.mark.parametrize(("name", "options"), zoo.ASKED)
def test_another_option_is_another_model(name, options, tmp_path):
    row = zoo.row(name)
    if row.save is not None:
        row.save(tmp_path)
    check(load(row, tmp_path), load(row, tmp_path), load(row, tmp_path, **options))


def others(value: Any) -> list[Any]:
    """Values of the same type as one in a config, or of one like it."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, value // 2]
    if isinstance(value, float):
        return [value * 3, value + 1]
    if isinstance(value, str):
        return [other for other in PLACES if other != value]
    return []


# What configs say in words.
PLACES = ("reflect", "constant", "replicate", "group", "layer", "basic", "bottleneck", "gelu_new")


def outputs(codec: Codec) -> list[Any]:
    """What each side makes of one signal; None where it takes none of that."""
    made = []
    for model in sides(codec):
        spec = model.spec
        x = zoo.signal(model, spec.lead + 3 * spec.hop)
        stream = Stream(model)
        made.append([*raw(stream.push(x)), *raw(stream.flush())])
    return made


def raw(signal: Any) -> list[torch.Tensor]:
    return [signal] if isinstance(signal, torch.Tensor) else [signal.codes, signal.scale]


@pytest.mark.slow
# Of nano's numbers all but its rate are in the shapes of tensors.
@pytest.mark.parametrize("name", sorted({name for name, _ in zoo.CONFIGURED} - {"nano"}))
def test_what_computes_something_else_is_another_model(name, tmp_path):
    """Any number in a config is changed: other outputs of equal weights have another print."""
    row = zoo.row(name)
    assert row.save is not None
    row.save(tmp_path)
    ours, path = load(row, tmp_path), tmp_path / "config.json"
    expected, config = outputs(ours), json.loads(path.read_text())
    compared = 0
    for key in config:
        for value in others(config[key]):
            path.write_text(json.dumps({**config, key: value}))
            try:
                theirs = load(row, tmp_path)
            except StreamencError:
                continue
            for one, another, was, now in zip(
                sides(ours), sides(theirs), expected, outputs(theirs), strict=True
            ):
                tensors = zip(was, now, strict=True)
                differ = any(a.shape != b.shape or not torch.equal(a, b) for a, b in tensors)
                if differ:
                    assert one.fingerprint() != another.fingerprint(), f"{key}: {value}"
                    compared += 1
    assert compared, "no number of the config changes the output"


def test_another_preparation_is_another_model(tmp_path):
    row = zoo.row("vit")
    zoo.save_vit()(tmp_path)
    ours, again = load(row, tmp_path), load(row, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.4}))
    check(ours, again, load(row, tmp_path))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_snapshots_of_another_configuration_are_refused(side, tmp_path):
    zoo.save_mimi(tmp_path)
    ours = getattr(streamenc.load(tmp_path), side)
    config = json.loads((tmp_path / "config.json").read_text())
    zoo.rope_theta(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = getattr(streamenc.load(tmp_path), side)
    stream = Stream(ours)
    stream.push(zoo.signal(ours, ours.spec.lead))
    with pytest.raises(SnapshotError, match="model"):
        Stream(theirs).restore(stream.snapshot())


class Told(Model):
    """A model that is told something, and keeps it."""

    def __init__(self, told: Any) -> None:
        super().__init__()
        port = Port("audio", Fraction(8000), 1)
        self.spec = StreamSpec("told", port, port, 1, 1, 1, 1, "offline")
        self.told = told


def test_what_begins_with_an_underscore_is_not_told():
    ours, theirs = Told(1), Told(1)
    theirs._kept = object()
    assert ours.fingerprint() == theirs.fingerprint()
    assert ours.fingerprint() == Told(1.0).fingerprint() != Told(1.5).fingerprint()
    assert Told((1, 2)).fingerprint() != Told((1, (2,))).fingerprint()


@pytest.mark.parametrize("told", [object(), (1, len), Told])
def test_what_cannot_be_told_apart_is_refused(told):
    with pytest.raises(TypeError, match=r"Told\.told is a .*underscore"):
        Told(told).fingerprint()
