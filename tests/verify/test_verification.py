"""Ours beside the published implementations, as `streamenc verify` compares them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import streamenc
from streamenc.cli.main import main
from streamenc.models.families import FAMILIES
from streamenc.verify.published import PEERS
from streamenc.verify.verification import Verification, verify
from tests.support import zoo

pytestmark = pytest.mark.reference

# Families whose published implementation is no package, or none that is called over whole clips.
WITHOUT = {"nano", "mel", "moss-audio-tokenizer", "salmonn"}
# Those that come as a folder of modules, which is not installed for the tests.
FOLDERS = {"of_speech:beats"}
FIRST = {row.family: row for row in reversed(zoo.ROWS)}
SECONDS = 0.2
# Longer than a tenth of a second, so that no frame comes out of that.
LONG_WINDOW = ("--set", "centred=false", "--set", "n_fft=8192")


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.verify.clips.IMAGE_PIXELS", 64)


def verified(row: zoo.Row, folder: Path, **more: Any) -> Verification:
    assert row.save is not None
    row.save(folder)
    part = "both" if len(row.sides) == 2 else "encoder"
    codec = streamenc.load(folder, part=part, **row.options, **more)
    return verify(codec, codec.family, str(folder), seconds=SECONDS, options=row.options)


def test_every_family_says_whether_it_has_one() -> None:
    assert PEERS.keys() | WITHOUT == FAMILIES.keys() and not PEERS.keys() & WITHOUT


@pytest.mark.parametrize("peer", sorted(set(PEERS.values()) - FOLDERS))
def test_nothing_differs_on_random_weights(peer: str, tmp_path: Path) -> None:
    rows = [row for row in zoo.ROWS if PEERS.get(row.family) == peer]
    for row in rows:  # some ask for outputs that the published implementation is not asked for
        folder = tmp_path / row.name
        folder.mkdir()
        found = verified(row, folder)
        if not found.absent:
            break
    if "is not installed" in found.absent:
        pytest.skip(found.absent)
    assert not found.absent and found.equal, found
    assert found.findings[0].verdict == "equal" and len(found.findings) > len(row.sides)


def test_float64_leaves_no_rounding(tmp_path: Path) -> None:
    found = verified(FIRST["encodec"], tmp_path, dtype=torch.float64)
    assert [finding.verdict for finding in found.findings] == ["equal"] * 5
    assert max(finding.difference for finding in found.findings) < 1e-6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save = FIRST["encodec"].save
    assert save is not None
    save(tmp_path)
    return tmp_path


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_the_command_tells_and_writes(folder: Path, tmp_path: Path, capsys: Any) -> None:
    written = tmp_path / "found.json"
    assert call("verify", folder, "--seconds", SECONDS, "--json", written) == 0
    table = capsys.readouterr().out
    assert "0.2 s of sound" in table and "transformers" in table and "differs" not in table
    found = json.loads(written.read_text())
    assert found["equal"] and found["package"].startswith("transformers ")
    assert found["versions"]["streamenc"] == streamenc.__version__ and found["machine"]
    assert {finding["of"] for finding in found["findings"]} == {"codes", "latents", "audio"}
    assert call("verify", folder, "--json", written) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_difference_is_found_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The published implementation reads other weights than ours."""
    codec = streamenc.load(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    changed = next(name for name in sorted(tensors) if "encoder" in name and "lstm" in name)
    save_file({**tensors, changed: 1.5 * tensors[changed]}, path, {"format": "pt"})
    found = verify(codec, "encodec", str(folder), seconds=SECONDS)
    differ = {
        (finding.what, finding.of)
        for finding in found.findings
        if not finding.allowed >= finding.difference
    }
    assert ("encode", "latents") in differ and not found.equal
    monkeypatch.setattr("streamenc.registry.load", lambda *_, **__: codec)
    assert call("verify", folder, "--seconds", SECONDS) == 1
    assert "differs" in capsys.readouterr().out


def test_what_is_missing_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformers", None)
        assert call("verify", folder, "--seconds", SECONDS) == 0
    said = capsys.readouterr().out
    assert "transformers is not installed: pip install transformers" in said
    (folder / "config.json").write_text('{"model_type": "encodec", "hidden_size": "wide"}')
    codec = zoo.codec("encodec", torch.float32)
    found = verify(codec, "encodec", str(folder), seconds=SECONDS)
    assert found.absent.startswith("it does not load: ") and len(found.findings) == 2
    found = verify(codec, "encodec", str(folder / "model.safetensors"), seconds=SECONDS)
    assert "reads folders with a config.json" in found.absent
    assert call("verify", "mel", "--seconds", 0.1, *LONG_WINDOW) == 2
    assert "nothing to compare; take a longer clip" in " ".join(capsys.readouterr().err.split())
    assert call("verify", "mel", "--clip", folder / "none.wav") == 2
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in zoo.ROWS if row.family in PEERS])
def test_nothing_differs_in_any_row(name: str, tmp_path: Path) -> None:
    assert verified(zoo.row(name), tmp_path).equal
