"""What comes from outside: found by entry point, by path and by register; and what is broken."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
import torch
from safetensors.torch import save as to_safetensors

import streamenc
from streamenc import plugins, registry
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.errors import CheckpointError, FitError, UsageError
from streamenc.io.files.recording import RecordingSink
from streamenc.io.reading import read_file
from streamenc.pipeline.builder import listed_decoder
from tests.support import program
from tests.support.outside import Install, afresh, install, own

__all__ = ["afresh", "install", "own"]

CLIP = Path(__file__).parents[1] / "examples" / "data" / "speech.flac"
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
    with pytest.raises(CheckpointError, match=r"encodec, heavy, h"):
        streamenc.load(path)
    with pytest.raises(UsageError, match=r"no family; known are nano, .*, heavy$"):
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
        with pytest.raises(UsageError, match=f"'{name}' cannot be used: {what}"):
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
    assert "it lists 'kyutai/mimi', which is the name of another model" in caplog.text


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


def test_a_recording_never_names_what_is_imported(install: Install, tmp_path: Path) -> None:
    install("other", {}, other="raise SystemExit('imported')")
    codes, named = tmp_path / "codes.arrows", tmp_path / "named.arrows"
    assert program.streamenc("encode", CLIP, codes, "-q").code == 0
    info, frames = read_file(str(codes))

    async def write() -> None:
        sink = RecordingSink(str(named))
        await sink.open(replace(info, model="other:load"))
        for frame in frames:
            await sink.write(frame)
        await sink.aclose()

    anyio.run(write)
    done = program.streamenc("decode", named, tmp_path / "talk.wav")
    assert done.code == 2 and "none of the listed models" in done.error
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
