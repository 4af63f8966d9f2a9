"""What comes from outside: found by entry point, by path and by register; and what is broken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save as to_safetensors

import streamenc
from streamenc import io, plugins, registry
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.errors import CheckpointError, FitError, UsageError
from streamenc.graph.node import AsyncTransform
from streamenc.nodes.named import named_node
from streamenc.pipeline.builder import Pipeline, listed_decoder

Install = Callable[..., Path]
OWN = Path(__file__).parents[1] / "examples" / "own_model"


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing registered, nothing remembered of what is installed, and no module left behind."""
    monkeypatch.setattr(plugins, "_registered", {group: {} for group in plugins._own})
    before = set(sys.modules)
    plugins._installed.cache_clear()
    yield
    plugins._installed.cache_clear()
    for module in set(sys.modules) - before:
        if module.split(".")[0] in ("own_model", "outside", "other"):
            del sys.modules[module]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("own-model", {"models": {"own": "outside"}}, outside="code")`: a package with entry
    points and modules, as an installer leaves it on Python's path."""

    def installed(name: str, points: dict[str, dict[str, str]], **modules: str) -> Path:
        folder = tmp_path / name
        metadata = folder / f"{name.replace('-', '_')}-0.1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        lines = [
            line
            for group, entries in points.items()
            for line in (f"[streamenc.{group}]", *(f"{k} = {v}" for k, v in entries.items()))
        ]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for module, code in modules.items():
            (folder / f"{module}.py").write_text(dedent(code))
        monkeypatch.syspath_prepend(folder)
        plugins._installed.cache_clear()
        return folder

    return installed


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's folder on Python's path, not installed."""
    monkeypatch.syspath_prepend(OWN)


WITH_WEIGHTS = """
    from own_model.encoder import OwnEncoder, published_spec

    LISTED = {"someone/own": ("", "features")}

    def recognises(checkpoint):
        return "own.weight" in checkpoint

    def load(name, checkpoint, part):
        encoder = OwnEncoder()
        for weight in encoder.parameters():
            weight.data.fill_(float(checkpoint.get("own.weight")[0]))
        return encoder, None
"""


def write_weights(folder: Path) -> Path:
    path = folder / "own.safetensors"
    path.write_bytes(to_safetensors({"own.weight": torch.tensor([0.25])}))
    return path


# --- models


@pytest.mark.usefixtures("own")
def test_a_model_by_its_path() -> None:
    codec = streamenc.load("own_model.encoder:load", seed="3")
    assert codec.name == "own_model.encoder:load" and codec.spec.name == "own"
    assert codec.encode(torch.zeros(1, 1, 16_000)).shape == (1, 32, 50)
    other = streamenc.load("own_model.encoder:load", seed=4)
    assert codec.encoder.fingerprint() != other.encoder.fingerprint()
    with pytest.raises(UsageError, match="has no option 'tail'; it has seed"):
        streamenc.load("own_model.encoder:load", tail=1)
    with pytest.raises(UsageError, match="'seed' must be a whole number"):
        streamenc.load("own_model.encoder:load", seed="many")


@pytest.mark.usefixtures("own")
def test_a_model_by_entry_point_is_a_family_like_any_other(install: Install) -> None:
    install("own-model", {"models": {"own": "own_model.encoder"}})
    assert registry.families()[-1] == "own" and "own_model.encoder" not in sys.modules
    codec = streamenc.load("own", seed=3)
    by_path = streamenc.load("own_model.encoder:load", seed=3)
    assert codec.encoder.fingerprint() == by_path.encoder.fingerprint()
    assert registry.published_spec("own") == codec.spec
    assert registry.listed_models()["own"].family == "own"
    with pytest.raises(UsageError, match="own has no option 'tail'; it has seed"):
        streamenc.load("own", tail=1)


@pytest.mark.usefixtures("own")
def test_a_model_that_a_program_registers() -> None:
    from own_model import encoder

    streamenc.register("models", "mine", encoder)
    assert streamenc.load("mine").spec == encoder.published_spec("")
    streamenc.register("models", "mine", "own_model.encoder")  # again: it is replaced
    assert streamenc.load("mine", seed=1).name == "mine"
    streamenc.register("models", "bare", encoder.load)
    assert streamenc.load("bare", seed=1).spec.name == "own"


@pytest.mark.usefixtures("own")
def test_a_model_with_weights_is_recognised(install: Install, tmp_path: Path) -> None:
    install("own-model", {"models": {"heavy": "outside"}}, outside=WITH_WEIGHTS)
    weights = write_weights(tmp_path)
    assert registry.family_of(open_checkpoint(str(weights))) == "heavy"
    names = (str(weights), f"heavy:{weights}", f"outside:load:{weights}")
    first, *others = (streamenc.load(name).encoder.fingerprint() for name in names)
    assert set(others) == {first}
    with pytest.raises(UsageError, match="'heavy' is a family; name its weights: heavy:PATH"):
        streamenc.load("heavy")


def test_an_unknown_checkpoint_names_families_from_outside(
    install: Install, own: None, tmp_path: Path
) -> None:
    install("own-model", {"models": {"heavy": "outside"}}, outside=WITH_WEIGHTS)
    path = tmp_path / "strange.safetensors"
    path.write_bytes(to_safetensors({"strange": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"encodec, heavy, hubert"):
        streamenc.load(path)
    with pytest.raises(UsageError, match=r"no family; known are .*taesd, heavy"):
        registry.family_module("nothing")


@pytest.mark.parametrize(
    ("loaded", "what"),
    [
        ("lambda name, checkpoint, part: 3", "loaded 3; wanted"),
        ("lambda name, checkpoint, part: (None, 'decoder')", "each a streamenc.models.model.Model"),
        ("lambda name, checkpoint, part: (None, None)", "and one of them at least"),
        ("3", "3 is no family; wanted a module or an object with load"),
        ("type('Encoder', (), {})", "is no family"),
    ],
)
def test_what_is_no_model(install: Install, loaded: str, what: str) -> None:
    install("other", {}, other=f"load = {loaded}")
    with pytest.raises(UsageError, match=what):
        streamenc.load("other:load")


# --- what is broken


@pytest.mark.usefixtures("own")
def test_a_broken_one_says_whose_it_is_and_leaves_the_others(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install("bad-model", {"models": {"bad": "other", "gone": "nowhere.at_all"}}, other="1 / 0")
    install("own-model", {"models": {"heavy": "outside"}}, outside=WITH_WEIGHTS)
    assert streamenc.load(write_weights(tmp_path)).spec.name == "own"
    assert "someone/own" in registry.listed_models()
    assert "'bad' of bad-model 0.1 cannot be used: ZeroDivisionError" in caplog.text
    assert "Python finds no module nowhere; install" in caplog.text
    with pytest.raises(UsageError, match="'bad' of bad-model 0.1 cannot be used: ZeroDivision"):
        streamenc.load("bad")


def test_a_module_that_is_not_there_is_told_from_one_that_it_lacks(install: Install) -> None:
    install("other", {}, other="import nowhere_else")
    for name, what in (
        ("other:load", "ModuleNotFoundError: No module named 'nowhere_else'"),
        ("another:load", "Python finds no module another; install the package"),
        ("json:nothing", "AttributeError: module 'json' has no attribute 'nothing'"),
    ):
        with pytest.raises(UsageError, match=f"'{name}' of this name cannot be used: {what}"):
            streamenc.load(name)


@pytest.mark.parametrize("table", ["['own']", "{'own': 'caption'}"])
def test_a_table_of_models_that_is_none(
    install: Install, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    code = f"def load(name, checkpoint, part): ...\nLISTED = {table}"
    install("own-model", {"models": {"own": "outside"}}, outside=code)
    assert registry.listed_models() == registry.LISTED
    assert "wanted name -> (variant, caption)" in caplog.text


# --- names


@pytest.mark.usefixtures("own")
def test_names_of_the_house_win(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("own-model", {"models": {"mimi": "outside", "nano": "outside", "b ad": "x"}})
    assert not plugins.known("models")
    assert "'mimi' of own-model 0.1 is not used: streamenc's own has that name" in caplog.text
    assert streamenc.load("nano").spec.name == "nano"
    with pytest.raises(UsageError, match="'mimi' is streamenc's own among models"):
        streamenc.register("models", "mimi", SimpleNamespace())


def test_a_listed_name_of_the_house_wins(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
        LISTED = {"kyutai/mimi": ("", "mine"), "kyutai/other": ("", "mine")}
        def load(name, checkpoint, part): ...
        def published_spec(variant): ...
    """
    install("own-model", {"models": {"own": "outside"}}, outside=code)
    listed = registry.listed_models()
    assert listed["kyutai/mimi"].family == "mimi" and listed["kyutai/other"].family == "own"
    assert "'kyutai/mimi' of own-model 0.1 is not listed" in caplog.text


def test_of_two_packages_the_first_counts(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("b-model", {"models": {"own": "b"}})
    install("a-model", {"models": {"own": "a"}})
    assert plugins.known("models")["own"].origin == "a-model 0.1"
    assert "that of a-model 0.1 has that name; say b for it" in caplog.text


@pytest.mark.parametrize(
    ("group", "name", "what"),
    [
        ("model", "own", "a group is one of models, nodes, io; got 'model'"),
        ("models", "own:one", "cannot be a name of models"),
        ("models", "", "cannot be a name of models"),
        ("io", "x", "cannot be a name of io"),
        ("io", "Tone", "cannot be a name of io"),
    ],
)
def test_what_cannot_be_registered(group: str, name: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        streamenc.register(group, name, object())  # type: ignore[arg-type]


# --- safety


@pytest.mark.parametrize("name", ["other:load", "other", "own", "json:load"])
def test_a_stream_never_names_what_is_imported(install: Install, name: str) -> None:
    install("own-model", {"models": {"own": "other"}}, other="raise SystemExit('imported')")
    with pytest.raises(FitError, match="none of the listed models"):
        listed_decoder(name)
    assert "other" not in sys.modules


def test_a_checkpoint_never_names_what_is_imported(install: Install, tmp_path: Path) -> None:
    install("other", {}, other="raise SystemExit('imported')")
    (tmp_path / "config.json").write_text('{"model_type": "other:load"}')
    (tmp_path / "model.safetensors").write_bytes(to_safetensors({"strange": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="its config says 'other:load'"):
        streamenc.load(tmp_path)
    assert "other" not in sys.modules


def test_a_path_that_is_there_is_no_module(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("other", {}, other="raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other:load").mkdir()
    with pytest.raises(CheckpointError):
        streamenc.load("other:load")


# --- nodes, sources and sinks

NODES = """
    from own_model.gain import Gain
    from streamenc.graph.node import AsyncTransform

    class Softer(Gain):
        def __init__(self, by_db):
            super().__init__(-by_db)

    class Late(AsyncTransform):
        def __init__(self, **anything):
            self.anything = anything
        async def open(self, info):
            return info
        async def push(self, frame):
            return [frame]
"""
ENDS = """
    from streamenc import FitError, Sink
    from own_model.tone import Tone

    class Loudest(Sink):
        '''Only remembers the loudest sample.

        start  Where it begins.
        '''
        device = True

        def __init__(self, address, start=0):
            self.address, self.loudest = address, float(start)
            Loudest.last = self
        async def open(self, info):
            if info.kind != "audio":
                raise FitError("audio alone")
        async def write(self, frame):
            self.loudest = max(self.loudest, float(abs(frame.data).max()))

    class File(Tone):
        def __init__(self, path):
            super().__init__("440")
            self.address = path

    class Both:
        source, sink = File, Loudest

    class Wrong(Tone):
        kind = "sound"
"""


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
        ('node = "gain"\nhops = 3', "has unknown .'hops'.; a node knows after, capacity, options"),
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
    with pytest.raises(UsageError, match=r"known file endings are .*\.ogg, \.opus, \.tone, \.wav"):
        io.sink("a.unknown")
    with pytest.raises(UsageError, match="known are .*, test, tone, "):
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
