"""Pipelines from TOML: what they build, and what they say when they cannot."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import pytest

import streamenc
from streamenc import io
from streamenc.engine.engine import Engine
from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import BlockingSource
from streamenc.io.reading import read_file
from streamenc.pipeline.builder import Pipeline
from tests.support.media import write_wav
from tests.support.pipes import until

CLIP = Path(__file__).parents[2] / "examples" / "data" / "speech.flac"


def write(folder: Path, text: str) -> Path:
    path = folder / "pipeline.toml"
    path.write_text(text)
    return path


def test_a_tee_a_merge_and_two_encoders(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"""
        deadline_ms = 500

        [nodes.clip]
        source = "{CLIP}"

        [nodes.fine]
        encode = "mel"
        after = "clip"

        [nodes.whisper]
        encode = "mel:whisper"
        after = "clip"
        capacity = 8

        [nodes.both]
        merge = ["fine", "whisper"]

        [nodes.record]
        sink = "{tmp_path}/both.arrows"
        after = "both"

        [nodes.only]
        sink = "{tmp_path}/fine.arrows"
        after = "fine"
        """,
    )
    with Pipeline.from_toml(path) as pipeline:
        report = pipeline.graph.run_blocking(handle_signals=False)
    assert report.outcome == "ended" and report.dropped == 0 and report.lost == 0
    info, frames = read_file(str(tmp_path / "both.arrows"))
    assert info.kind == "mux" and [t.model for t in info.tracks] == ["mel", "mel:whisper"]
    starts = [float(frame.pts * info.track(frame.track).time_base) for frame in frames]
    assert starts == sorted(starts)
    for track in (0, 1):
        seqs = [frame.seq for frame in frames if frame.track == track]
        assert seqs == list(range(len(seqs))) and seqs
    alone = read_file(str(tmp_path / "fine.arrows"))[1]
    assert [f.pts for f in alone] == [f.pts for f in frames if f.track == 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no .nodes.NAME. tables"),
        ("x = 1", "unknown .'x'."),
        ("nodes = 3", "no .nodes.NAME. tables"),
        ("[nodes.a]\nsauce = 'mic:'", "exactly one of source"),
        ("[nodes.a]\nsource = 'x.wav'\nsink = 'y.arrows'", "exactly one of"),
        ("[nodes.a]\nsink = '-'", "lacks `after`"),
        ("[nodes.a]\nsource = 3", "node 'a': 'source' must be a string; got 3"),
        ("[nodes.a]\nsource = 'x.wav'\ncolour = 1", "unknown .'colour'.*realtime"),
        ("[nodes.a\n", "no TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        Pipeline.from_toml(write(tmp_path, text))


def test_a_node_that_nobody_made(tmp_path: Path) -> None:
    text = f"[nodes.a]\nsource = '{CLIP}'\n[nodes.b]\nsink = 'null:'\nafter = 'c'"
    with (
        Pipeline.from_toml(write(tmp_path, text)) as pipeline,
        pytest.raises(FitError, match="'c' -> 'b'"),
    ):
        pipeline.graph.run_blocking(handle_signals=False)


def test_nodes_that_do_not_fit(tmp_path: Path) -> None:
    text = f"""
    [nodes.clip]
    source = "{CLIP}"
    [nodes.out]
    encode = "mel"
    after = "clip"
    [nodes.again]
    encode = "mel"
    after = "out"
    [nodes.nothing]
    sink = "null:"
    after = "again"
    """
    with (
        Pipeline.from_toml(write(tmp_path, text)) as pipeline,
        pytest.raises(FitError, match="'out' -> 'again.resample'"),
    ):
        pipeline.graph.run_blocking(handle_signals=False)


GRAPH = """
[nodes.a]
source = "examples/data/speech.flac"
{a}
[nodes.b]
encode = "mel"
after = "a"
{b}
[nodes.c]
sink = "null:"
after = "b"
{c}
"""


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"a": "realtime = 'yes'"}, "node 'a': 'realtime' must be true or false; got 'yes'"),
        ({"a": "realtime = 1"}, "pipeline.toml: node 'a': 'realtime' must be true or false; got 1"),
        ({"a": "options = 3"}, "node 'a': 'options' must be a table; got 3"),
        ({"b": "codebooks = '8'"}, "node 'b': 'codebooks' must be a whole number; got '8'"),
        ({"b": "codebooks = true"}, "'codebooks' must be a whole number; got True"),
        ({"b": "hops = 2.5"}, "'hops' must be a whole number; got 2.5"),
        ({"b": "conceal_ms = 'x'"}, "'conceal_ms' must be a number; got 'x'"),
        ({"c": "[nodes.m]\nmerge = ['b', 1]"}, r"'merge\[1\]' must be a string; got 1"),
        ({"b": "hops = 0"}, "node 'b': 'hops' must be a whole number >= 1; got 0"),
        ({"b": "conceal_ms = true"}, "'conceal_ms' must be a number; got True"),
        ({"b": "conceal_ms = 1e5"}, "'conceal_ms' must be a number <= 10000.0; got 100000.0"),
        ({"b": "capacity = 1.0"}, "'capacity' must be a whole number; got 1.0"),
        ({"c": "policy = 'best'"}, "must be one of block, drop_oldest, latest; got 'best'"),
        ({"c": "[nodes.r]\nresample = 8000\nafter = 'a'\nchannels = 3"}, "one of 1, 2; got 3"),
        ({"a": "options = {colour = 1}"}, "pipeline.toml: node 'a': .*colour"),
        (
            {"c": "[nodes.m]\nmerge = ['b']\nmax_wait_ms = inf"},
            "node 'm': merge 'm' got max_wait_ms=inf",
        ),
        ({"c": "[nodes.m]\nmerge = ['b']\nmax_wait_ms = -1"}, "a number >= 0.0; got -1"),
    ],
)
def test_values_have_their_types(tables: dict[str, str], words: str, tmp_path: Path) -> None:
    text = GRAPH.format(**{"a": "", "b": "", "c": "", **tables})
    with pytest.raises(UsageError, match=words):
        Pipeline.from_toml(write(tmp_path, text))


@pytest.mark.parametrize("key", ["deadline_ms", "max_age_ms"])
@pytest.mark.parametrize("value", ["'x'", "nan", "inf", "0", "true"])
def test_a_deadline_is_a_number_above_zero(key: str, value: str, tmp_path: Path) -> None:
    text = f"{key} = {value}\n" + GRAPH.format(a="", b="", c="")
    with pytest.raises(UsageError, match=key):
        Pipeline.from_toml(write(tmp_path, text))


def test_a_bound_in_time_holds_for_all_nodes_or_for_those_of_one(tmp_path: Path) -> None:
    text = "max_age_ms = 2000\n" + GRAPH.format(
        a="realtime = true", b="max_age_ms = 900", c="max_age_ms = 1000"
    )
    with Pipeline.from_toml(write(tmp_path, text)) as pipeline:
        anyio.run(partial(stopped_soon, pipeline.graph))
        ages = {edge.name: edge.max_age_ms for edge in pipeline.graph.report().edges}
    assert ages == {
        "a.file -> a": None,  # a file waits
        "a -> b.resample": 900,
        "b.resample -> b.chunk": 900,
        "b.chunk -> b": 900,
        "b -> c": 1000,
    }
    text = GRAPH.format(a="", b="", c="max_age_ms = 1000")
    with (
        Pipeline.from_toml(write(tmp_path, text)) as pipeline,
        pytest.raises(FitError, match="max_age_ms=1000 may lose"),
    ):
        pipeline.graph.run_blocking(handle_signals=False)


def test_it_runs_with_and_without_an_event_loop(tmp_path: Path) -> None:
    path = write(tmp_path, GRAPH.format(a="", b="", c=""))
    with Pipeline.from_toml(path) as pipeline:
        assert pipeline.run_blocking().outcome == "ended"
    with Pipeline.from_toml(path) as pipeline:
        assert anyio.run(pipeline.run).outcome == "ended"


async def stopped_soon(graph: Graph) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(graph.run)
        await until(lambda: graph.report()["c"].frames_in > 0)
        graph.stop()


@pytest.mark.parametrize("source_first", [True, False])
@pytest.mark.parametrize("realtime", [True, False])
def test_a_live_source_makes_steps_of_one_hop(
    source_first: bool, realtime: bool, tmp_path: Path
) -> None:
    """In whatever order the tables stand."""
    clip = write_wav(tmp_path / "clip.wav", np.zeros((1, 7_200)), 24_000)
    source = f"[nodes.clip]\nsource = '{clip}'\nrealtime = {str(realtime).lower()}\n"
    rest = "[nodes.mel]\nencode = 'mel'\nafter = 'clip'\n"
    rest += f"[nodes.out]\nsink = '{tmp_path}/out.arrows'\nafter = 'mel'\n"
    with Pipeline.from_toml(
        write(tmp_path, source + rest if source_first else rest + source)
    ) as pipeline:
        pipeline.graph.run_blocking(handle_signals=False)
    _, frames = read_file(str(tmp_path / "out.arrows"))
    assert sum(frame.data.shape[-1] for frame in frames) == 31
    assert (len(frames) > 25) == realtime


@pytest.mark.parametrize(
    ("target", "realtime", "live"),
    [
        (str(CLIP), False, False),
        (f"{CLIP}?stream=0", False, False),
        (str(CLIP), True, True),
        ("-", False, True),
        ("pcm:-?rate=16000", False, True),
        ("mic:", False, True),
        ("http://127.0.0.1:9/radio", False, True),
        ("zmq+tcp://127.0.0.1:9?mode=credit", False, True),
    ],
)
def test_only_files_are_read_in_large_steps(target: str, realtime: bool, live: bool) -> None:
    with Pipeline() as pipeline:
        pipeline.source("in", target, realtime=realtime)
        assert pipeline.live == live


@pytest.mark.parametrize("realtime", [True, False])
def test_models_of_live_sources_are_warm_before_these_are_opened(
    realtime: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_wav(tmp_path / "clip.wav", np.zeros((1, 3_200)), 16_000)
    codec, happened = streamenc.load("nano", part="encoder"), []
    warm = Engine.warm

    async def watched(self: Engine, model: object, **how: object) -> None:
        happened.append(how)
        await warm(self, codec.encoder, **how)

    monkeypatch.setattr(Engine, "warm", watched)
    with Pipeline() as pipeline:
        source = pipeline.source("in", str(clip), realtime=realtime)
        for name, codebooks in (("few", 2), ("some", 4)):
            codes = pipeline.encode(name, codec, source, codebooks=codebooks)
            pipeline.sink(f"{name}.out", lambda frame: happened.append(frame.pts), codes)
        pipeline.run_blocking(handle_signals=False)
        assert pipeline.devices == ["cpu"]
    if realtime:
        assert happened[0] == {"codebooks": 4, "sessions": 2}
    assert sum(isinstance(each, dict) for each in happened) == realtime


class Tape(BlockingSource):
    """Somebody's own source, which says nothing of itself but what the graph must know."""

    def __init__(self, address: str, replayed: str = "") -> None:
        self.replayed = bool(replayed)

    def open_blocking(self) -> StreamInfo:
        raise AssertionError("not opened here")

    def read(self) -> Frame | None:
        return None


@pytest.mark.parametrize("replayed", [True, False])
def test_a_source_says_itself_whether_it_is_replayed(
    replayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(io.SOURCES, "tape", io.Entry(f"{__name__}:Tape"))
    with Pipeline() as pipeline:
        pipeline.source("in", "tape:" + "?replayed=1" * replayed)
        assert pipeline.live != replayed
        (source,) = pipeline.sources
        assert (source.address, source.duration_seconds, source.broken) == ("", None, "")


@pytest.mark.parametrize("ending", ["wav", "pcm", "arrows", "ecdc"])
def test_only_a_regular_file_is_replayed(ending: str, tmp_path: Path) -> None:
    file, fifo = tmp_path / f"file.{ending}", tmp_path / f"fifo.{ending}"
    file.touch()
    os.mkfifo(fifo)
    assert io.source(str(file)).replayed and not io.source(str(fifo)).replayed
    if ending == "wav":
        assert io.source(f"file://{file}").replayed
