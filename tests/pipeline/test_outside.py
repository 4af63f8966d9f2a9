"""Nodes, sources and sinks from outside, in Python and in pipeline files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import streamenc
from streamenc import io
from streamenc.errors import UsageError
from streamenc.graph.node import AsyncTransform
from streamenc.nodes.named import named_node
from streamenc.pipeline.builder import Pipeline
from tests.support.outside import ENDS, NODES, OWN, Install, afresh, install, own

__all__ = ["afresh", "install", "own"]


def run(pipeline: Pipeline) -> None:
    assert pipeline.graph.run_blocking().outcome == "ended"


@pytest.mark.usefixtures("own")
def test_a_source_a_node_and_a_sink_in_a_pipeline(install: Install) -> None:
    points = {"io": {"tone": "own_model.tone:Tone"}, "nodes": {"gain": "own_model.gain:Gain"}}
    install("own-model", points, outside=ENDS)
    streamenc.register("io", "loudest", "outside:Both")
    with Pipeline() as pipeline:
        tone = pipeline.source("tone", "tone:440?seconds=0.5")
        louder = pipeline.node("louder", "gain", tone, options={"gain_db": "3"})
        pipeline.node("softer", "own_model.gain:Gain", louder, options={"gain_db": -9})
        pipeline.sink("out", "loudest:here?start=0.1", "softer")
        run(pipeline)
        sink = sys.modules["outside"].Loudest.last
        assert sink.address == "here"
        assert sink.loudest == pytest.approx(0.5 * 10 ** (-6 / 20), rel=1e-3)


@pytest.mark.usefixtures("own")
def test_a_pipeline_file_with_all_of_them(install: Install) -> None:
    points = {
        "models": {"own": "own_model.encoder"},
        "io": {"tone": "own_model.tone:Tone"},
        "nodes": {"gain": "own_model.gain:Gain"},
    }
    install("own-model", points)
    with Pipeline.from_toml(OWN / "louder.toml") as pipeline:
        run(pipeline)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ('node = "gian"', "no node is called 'gian'; known are gain, and any class as package"),
        (
            'node = "gain"\noptions = {db = 3}',
            "no option 'db'; it has gain_db; see `streamenc help",
        ),
        ('node = "gain"\noptions = {gain_db = "x"}', "option 'gain_db' must be a number"),
        (
            'node = "gain"\nhops = 3',
            "has unknown .'hops'.; a node knows after, capacity, max_age_ms, options",
        ),
        ('node = "own_model.tone:Tone"', "is no class of Transform or AsyncTransform"),
        ('node = "nowhere:Node"', "Python finds no module nowhere"),
        ('node = "outside:Softer"', "lacks the options by_db"),
        ("node = 3", "'node' must be a string; got 3"),
    ],
)
def test_what_is_wrong_with_a_node(install: Install, tmp_path: Path, keys: str, what: str) -> None:
    install("own-model", {"nodes": {"gain": "own_model.gain:Gain"}}, outside=NODES)
    file = tmp_path / "graph.toml"
    file.write_text(f'[nodes.in]\nsource = "test:bars"\n[nodes.own]\nafter = "in"\n{keys}\n')
    with pytest.raises(UsageError, match=rf"(?s)graph.toml: node 'own'.*{what}"):
        Pipeline.from_toml(file)


@pytest.mark.usefixtures("own")
def test_a_node_that_awaits_and_takes_any_option(install: Install) -> None:
    install("other", {}, outside=NODES)
    late = named_node("outside:Late", {"any": 3})
    assert isinstance(late, AsyncTransform) and late.anything == {"any": 3}  # type: ignore[attr-defined]
    softer = named_node("outside:Softer", {"by_db": 6})
    assert softer.factor < 1  # type: ignore[union-attr]


@pytest.mark.usefixtures("own")
def test_what_a_source_from_outside_says_of_itself(install: Install) -> None:
    points = {
        "io": {"both": "outside:Both", ".tone": "outside:Both", "tone": "own_model.tone:Tone"}
    }
    install("own-model", points, outside=ENDS)
    assert io.source_entry("tone:440").kind == "audio" and not io.source_entry("tone:1").device
    assert io.sink_entry("both:").device and io.sink_entry("both:").kind == ""
    assert io.source("a/loud.TONE").address == "a/loud.TONE"
    with pytest.raises(UsageError, match="gives audio, but video was wanted"):
        io.source("tone:440", kind="video")
    with pytest.raises(UsageError, match="'tone:1.x=2' has no option 'x'; it has seconds; see"):
        io.source("tone:1?x=2")
    with pytest.raises(
        UsageError, match="unknown scheme 'tone:' in output .* known are -, both, mqtt"
    ):
        io.sink("tone:440")  # it is a source alone
    with pytest.raises(UsageError, match=r"known file endings are .*\.raw, \.tone, \.wav"):
        io.sink("a.unknown")
    with pytest.raises(UsageError, match="known are .*, test, text, .*, tone, "):
        io.source("tome:440")


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("outside:Wrong", "its kind is 'sound'; wanted one of audio, video, av"),
        ("own_model.encoder", "neither a class of Source or Sink, nor has it one as `source`"),
        ("own_model.gain:Gain", "neither a class of Source or Sink"),
        ("nowhere:Tone", "Python finds no module nowhere"),
    ],
)
def test_a_broken_source_leaves_the_others(
    install: Install, caplog: pytest.LogCaptureFixture, path: str, what: str
) -> None:
    points = {"io": {"bad": path, "tone": "own_model.tone:Tone"}}
    install("own-model", points, outside=ENDS)
    assert list(io.from_outside("input")) == ["tone"]
    assert "'bad' of own-model 0.1 cannot be used" in caplog.text and what in caplog.text
    assert type(io.source("tone:440")).__name__ == "Tone"
    with pytest.raises(UsageError, match=f"'bad' of own-model 0.1 cannot be used.*{what}"):
        io.source("bad:1")


def test_schemes_of_the_house_win(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("own-model", {"io": {"mic": "outside", "https": "outside", ".arrows": "outside"}})
    assert io.from_outside("input") == {} == io.from_outside("output")
    assert caplog.text.count("is not used: streamenc's own has that name") == 3
    with pytest.raises(UsageError, match="'mic' is streamenc's own among io"):
        streamenc.register("io", "mic", object())


def test_nothing_is_imported_before_it_is_needed(install: Install) -> None:
    points = {"io": {"bad": "outside", ".bad": "outside"}, "nodes": {"bad": "outside"}}
    install("bad-model", {**points, "models": {"bad": "outside"}}, outside="raise SystemExit")
    io.source("talk.flac")
    io.sink("tokens.arrows")
    streamenc.load("nano", part="encoder")
    assert "outside" not in sys.modules
