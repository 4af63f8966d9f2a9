"""The table of models: which family a checkpoint is of, and what a loader is called with."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from streamenc import registry
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.errors import UsageError
from streamenc.models.families import FAMILIES, LISTED, WITHOUT_WEIGHTS, Listed
from streamenc.registry import family_of, load, published_spec
from tests.support import zoo


def serve(monkeypatch: pytest.MonkeyPatch, modules: dict[str, SimpleNamespace]) -> None:
    """Puts doubles in the place of the families' modules."""
    monkeypatch.setattr(registry, "FAMILIES", {family: family for family in modules})
    monkeypatch.setattr(registry, "import_module", modules.__getitem__)


def test_of_families_that_recognise_the_same_the_first_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yes = SimpleNamespace(recognises=lambda checkpoint: True)
    checkpoint = SimpleNamespace(config={}, name="weights", beside=False)
    for start in range(8):
        names = [f"family{(start + i) % 8}" for i in range(8)]
        serve(monkeypatch, dict.fromkeys(names, yes))
        assert family_of(checkpoint) == names[0]  # type: ignore[arg-type]


def test_the_family_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "from types import SimpleNamespace as N; from streamenc import registry; "
        "registry.import_module = lambda name: N(recognises=lambda c: 'wav2vec2' in name); "
        "print(registry.family_of(N(config={}, name='w', beside=False)))"
    )
    for seed in range(4):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == "wav2vec2\n", done.stderr


def test_a_type_error_of_a_loader_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, checkpoint: object, part: str, *, rate: int = 1) -> None:
        dict(rate).update(1)  # type: ignore[call-overload]

    def misled(name: str, checkpoint: object, part: str, *, rate: int = 1) -> None:
        open_checkpoint(name, rate=rate)  # type: ignore[call-arg]

    monkeypatch.setattr(registry, "WITHOUT_WEIGHTS", {"one"})
    for loader in (broken, misled):
        serve(monkeypatch, {"one": SimpleNamespace(load=loader)})
        with pytest.raises(TypeError):
            load("one", rate=2)


def test_an_unknown_option_is_told_before_the_loader_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one(name: str, checkpoint: object, part: str, *, rate: int = 1, exact: int = 0) -> None:
        pytest.fail("it was called")

    def none(name: str, checkpoint: object, part: str) -> None:
        pytest.fail("it was called")

    monkeypatch.setattr(registry, "WITHOUT_WEIGHTS", {"one", "none"})
    serve(monkeypatch, {"one": SimpleNamespace(load=one), "none": SimpleNamespace(load=none)})
    with pytest.raises(UsageError, match="one has no option 'tail'; it has rate, exact"):
        load("one", rate=2, tail="moshi")
    with pytest.raises(UsageError, match="one has no option 'checkpoint'; it has rate, exact"):
        load("one", checkpoint="mine")
    with pytest.raises(UsageError, match="none has no option 'rate'; it has none"):
        load("none", rate=2)


def test_every_listed_model_is_of_a_family_and_has_a_spec() -> None:
    for name, listed in LISTED.items():
        assert listed.family in FAMILIES and listed.caption
        published_spec(name)
    assert published_spec("facebook/hubert-base-ls960").name == "hubert"
    assert published_spec("facebook/wav2vec2-base").name == "wav2vec2"


def test_a_spec_is_of_the_tables_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LISTED, "someone/not-a-mimi", Listed("vqgan", "", "images"))
    assert published_spec("someone/not-a-mimi").name == "vqgan"


@pytest.mark.parametrize("name", ["someone/codec", "openai/whisper", "mel:thin", ""])
def test_a_name_that_is_not_listed_has_no_spec(name: str) -> None:
    with pytest.raises(UsageError, match="not among the listed models"):
        published_spec(name)


# Its tensors alone do not tell how many blocks of which kind there are.
TOLD_BY_CONFIG = {"dcae"}
LAYOUTS = {row.save: row for row in reversed(zoo.ROWS) if row.save is not None}


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("row", LAYOUTS.values(), ids=lambda row: row.name)
def test_a_layout_is_recognised_by_its_family_alone(row: zoo.Row, tmp_path: Path) -> None:
    """Also of a file by itself, without a config beside it."""
    assert row.save is not None
    row.save(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    own = FAMILIES[row.family]
    modules = dict.fromkeys(FAMILIES[family] for family in FAMILIES.keys() - WITHOUT_WEIGHTS)
    assert [name for name in modules if import_module(name).recognises(checkpoint)] == [own]
    checkpoint.config, checkpoint.preprocessor = {}, {}
    left = [name for name in modules if import_module(name).recognises(checkpoint)]
    assert left == ([] if row.family in TOLD_BY_CONFIG else [own])


def gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """A machine of such GPUs, and a torch that was built for some."""
    there = {
        "is_available": lambda: bool(capabilities),
        "device_count": lambda: len(capabilities),
        "get_device_name": lambda index: f"NVIDIA {index}",
        "mem_get_info": lambda index: (0, 80 << 30),
        "get_device_capability": lambda index: capabilities[index],
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90a", "compute_100"],
    }
    for name, function in there.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize(
    ("capabilities", "taken"),
    [
        ((), "cpu"),
        (((8, 0),), "cuda:0"),
        (((8, 9),), "cuda:0"),
        (((9, 0), (8, 0)), "cuda:0"),
        (((12, 0),), "cuda:0"),  # from what is compiled there
        (((6, 1),), "cpu"),
        (((7, 0), (8, 6)), "cuda:1"),
    ],
)
def test_auto_takes_the_first_gpu_that_torch_was_built_for(monkeypatch, capabilities, taken):
    gpus(monkeypatch, *capabilities)
    assert registry.device_of("auto") == torch.device(taken)
    assert str(registry.device_of("cpu")) == "cpu"
    found = registry.compute_devices()
    assert [each.name for each in found][-1] == "cpu" and len(found) == len(capabilities) + 1
    assert next(each.name for each in found if not each.cannot) == taken
    if capabilities == ((6, 1),):
        assert found[0].cannot == "this torch was not built for its compute capability, 6.1"
        assert found[0].description == "NVIDIA 0, 80 GiB"
        assert registry.device_of("cuda") == torch.device("cuda")  # whoever asks for it gets it


def test_onnx_steps_run_on_the_cpu_whatever_auto_would_take(monkeypatch):
    def refused(backend, precision, where, dtype):
        raise UsageError(f"on {where}")

    gpus(monkeypatch, (9, 0))
    monkeypatch.setattr(registry, "_backend", refused)
    with pytest.raises(UsageError, match="on cpu"):
        load("nano", part="encoder", device="auto", backend="onnx")
