"""What `streamenc models` says."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import import_module

import pytest

from streamenc.cli.facts.modelfacts import facts_of
from streamenc.models.families import FAMILIES, LISTED, WITHOUT_WEIGHTS
from streamenc.registry import published_spec
from tests.support.program import Done


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_of_every_family_says_what_it_means(family: str) -> None:
    facts = facts_of(family)
    known = list(inspect.signature(import_module(FAMILIES[family]).load).parameters)[3:]
    if known != ["options"]:
        assert [option.name for option in facts.options] == known
    assert all(option.meaning for option in facts.options), facts.options
    assert facts.caption and (facts.spec is None) == (family not in LISTED)
    assert all(LISTED[name].family == family for name in facts.models)
    assert facts.layouts or family in WITHOUT_WEIGHTS


def test_the_table(call: Callable[..., Done]) -> None:
    done = call("models")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert set(LISTED) < set(lines)
    assert lines["kyutai/mimi"].split()[1:8] == [
        "offline", "80", "ms", "24000", "Hz", "x1", "12.5/s"
    ]  # fmt: skip
    assert lines["ai-forever/FRIDA"].split()[4:8] == ["texts", "1", "a", "text"]


def test_the_table_for_programs(call: Callable[..., Done]) -> None:
    models = json.loads(call("models", "--json").out)
    assert [model["name"] for model in models] == list(LISTED)
    for model in models:
        spec = published_spec(model["name"])
        assert model["equality"] == spec.equality and model["note"] == spec.note
        assert model["latency_ms"] == 1000 * spec.latency_seconds
        assert model["output"]["rate"] == float(spec.output.rate)
    assert models[list(LISTED).index("kyutai/mimi")]["codebooks"] == 32


def test_one_model(call: Callable[..., Done]) -> None:
    out = call("models", "kyutai/mimi").out
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert rows["codebooks"].strip() == "32x2048"
    assert rows["latency"].startswith("80 ms") and rows["delay"].strip() == "0 ms"
    assert rows["output"].strip() == "codes, 12.5 frames a second"
    assert rows["equality"].strip() == "offline"
    assert rows["layouts"].startswith("the transformers folder")
    assert rows["tail"].split()[:2] == ["text", "moshi"]
    assert "It has no options." in call("models", "nano").out


def test_options_of_a_preset_have_its_defaults() -> None:
    generic, whisper = (
        {option.name: option.default for option in facts_of(name).options}
        for name in ("mel", "mel:whisper")
    )
    assert (generic["rate"], whisper["rate"]) == (24_000, 16_000)
    assert generic.keys() == whisper.keys()


def test_a_family_for_programs(call: Callable[..., Done]) -> None:
    family = json.loads(call("models", "vit", "--json").out)
    assert family["models"] == ["google/vit-base-patch16-224"]
    (rate,) = [option for option in family["options"] if option["name"] == "rate"]
    assert isinstance(rate["default"], int | float | str)


@pytest.mark.parametrize(
    ("name", "near"),
    [("encodec_24khz", "facebook/encodec_24khz"), ("kyutai/mimmi", "kyutai/mimi"), ("", "all")],
)
def test_an_unknown_model_names_near_ones(call: Callable[..., Done], name: str, near: str) -> None:
    done = call("models", name)
    assert done.code == 2 and near in done.error


def test_an_unknown_option_says_where_to_look(call: Callable[..., Done]) -> None:
    done = call("encode", "x.wav", "x.arrows", "--set", "tail=1")
    assert done.code == 2 and "see `streamenc models nano`" in done.error
