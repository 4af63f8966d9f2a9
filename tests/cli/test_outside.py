"""What the command line says of what comes from outside, and does with it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import streamenc
from streamenc.cli.facts.completion import complete_model, complete_sink, complete_source
from streamenc.errors import CheckpointError
from streamenc.io.reading import read_file
from tests.support import program
from tests.support.outside import ENDS, NODES, OWN, Install, afresh, install, own

__all__ = ["afresh", "install", "own"]

ALL = {
    "models": {"own": "own_model.encoder", "bare": "outside:bare"},
    "nodes": {"gain": "own_model.gain:Gain", "any": "outside:Late"},
    "io": {"tone": "own_model.tone:Tone", "loudest": "outside:Loudest", ".loud": "outside:Both"},
}
BROKEN = {group: {"bad": "other"} for group in ALL}
BARE = """
    class bare:
        '''bare, which lists no model.'''
        def load(name, checkpoint, part, **anything): ...
"""


@pytest.fixture
def all_of_them(install: Install, own: None) -> None:
    install("own-model", ALL, outside=dedent(NODES) + dedent(ENDS) + dedent(BARE))
    install("bad-model", BROKEN, other="1 / 0")


def rows(out: str) -> dict[str, list[str]]:
    return {words[0]: words for line in out.splitlines() if (words := line.split())}


@pytest.mark.usefixtures("all_of_them")
def test_the_table_of_models_has_those_from_outside(caplog: pytest.LogCaptureFixture) -> None:
    done = program.streamenc("models")
    assert done.code == 0
    found = rows(done.out)
    assert found["own"][1:5] == ["offline", "20", "ms", "16000"] and "kyutai/mimi" in found
    assert found["bare"][-5:] == "bare, which lists no model.".split()
    assert caplog.text.count("'bad' of bad-model 0.1 cannot be used: ZeroDivisionError") == 1
    for name in ("own", "own_model.encoder:load"):
        told = program.streamenc("models", name)
        assert told.code == 0 and rows(told.out)["seed"][-4:] == ["0", "Of", "the", "weights."]
    assert "It has no options." in program.streamenc("models", "bare").out
    assert "near are own" in program.streamenc("models", "owm").error
    assert "'bad' of bad-model 0.1 cannot be used" in program.streamenc("models", "bad").error
    assert "Python finds no module nowhere" in program.streamenc("models", "nowhere:load").error


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("promise", ["1 / 0", "return 3"])
def test_a_broken_promise_leaves_the_other_models(
    install: Install, caplog: pytest.LogCaptureFixture, promise: str
) -> None:
    code = f"""
        LISTED = {{"poor": ("", "captioned")}}
        def load(name, checkpoint, part): ...
        def recognises(checkpoint): return checkpoint.nothing
        def published_spec(variant): {promise}
    """
    install("own-model", {"models": {"own": "outside"}}, outside=code)
    found = rows(program.streamenc("models").out)
    assert "nano" in found and "poor" not in found
    assert "'own' of own-model 0.1 cannot be used: " in caplog.text
    with pytest.raises(CheckpointError):
        streamenc.load(OWN)
    assert program.streamenc("models", "poor").code == 2


@pytest.mark.usefixtures("all_of_them")
def test_help_has_those_from_outside(caplog: pytest.LogCaptureFixture) -> None:
    done = program.streamenc("help")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "tone: source A sine of half the full scale, as fast as it is wanted." in lines
    assert "loudest: sink Only remembers the loudest sample." in lines
    assert "gain node Makes sound louder or softer, and cuts off what would leave [-1, 1]." in lines
    assert {".loud source", ".loud sink"} <= {" ".join(line.split()[:2]) for line in lines}
    assert "bad-model" in caplog.text and len(caplog.records) == 1  # it is said once
    for word in ("gain", "own_model.gain:Gain"):
        told = program.streamenc("help", word).out
        assert f"{word} as a node." in told and rows(told)["gain_db"][1:3] == ["number", "6.0"]
        assert f'Example: node = "{word}"' in told
    told = program.streamenc("help", "tone:440").out
    assert "tone: as a source." in told and "as a sink" not in told
    assert rows(told)["seconds"][-2:] == ["How", "long."]
    assert "Example: streamenc encode tone: tokens.arrows" in told
    assert "Example: streamenc decode tokens.arrows loudest:" in (
        program.streamenc("help", "loudest").out
    )
    assert "is no class of Transform" in program.streamenc("help", "own_model.tone:Tone").error
    assert "near are tone:" in program.streamenc("help", "tome:440").error
    assert "mic: as a source" in program.streamenc("help", "mic:USB").out


@pytest.mark.usefixtures("all_of_them")
def test_devices_has_those_from_outside() -> None:
    out = program.streamenc("devices").out
    assert "sink loudest: Only remembers the loudest sample." in " ".join(out.split())
    assert "tone:" not in out


@pytest.mark.usefixtures("all_of_them")
def test_a_shell_offers_those_from_outside_without_an_import() -> None:
    assert complete_model("own") == ["own", "own:"]
    assert complete_source("ton") == complete_sink("ton") == ["tone:"]
    assert "own_model" not in sys.modules and "other" not in sys.modules


@pytest.mark.usefixtures("all_of_them")
def test_commands_with_all_of_them(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.arrows"
    for model in ("own", "own_model.encoder:load"):
        done = program.streamenc(
            *("encode", "tone:440?seconds=2", tokens, "-y", "-q", "-m", model, "--set", "seed=3")
        )
        assert done.code == 0, done.error
        info, frames = read_file(str(tokens))
        assert info.model == model and sum(f.data.shape[1] for f in frames) == 100
    done = program.streamenc("run", OWN / "louder.toml", "-q")
    assert done.code == 0, done.error


@pytest.mark.usefixtures("own")
def test_the_examples_own_proof() -> None:
    proof = runpy.run_path(str(OWN / "tests" / "test_own.py"))
    tests = [test for name, test in proof.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
