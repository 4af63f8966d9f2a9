"""The package of examples/own_model, installed as its users install it, and used by its names.

Without an installation tests/cli/test_outside.py does the same, and runs the example's own proof.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streamenc.io.reading import read_file
from tests.support.outside import OWN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with own-model in it; nothing is fetched."""
    folder = tmp_path_factory.mktemp("installed")
    tree = shutil.copytree(OWN, folder / "tree")  # which building changes
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline]
    done = subprocess.run(
        [*command, "--target", str(folder / "packages"), str(tree)],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return folder / "packages"


def streamenc(installed: Path, *arguments: str | Path) -> str:
    path = os.pathsep.join(filter(None, (str(installed), *sys.path)))
    done = subprocess.run(
        [sys.executable, "-m", "streamenc", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "own-model" not in done.stderr, done.stderr
    return done.stdout


def test_its_model_is_listed_and_encodes(installed: Path, tmp_path: Path) -> None:
    (line,) = (line for line in streamenc(installed, "models").splitlines() if "own" in line[:4])
    assert line.split()[:2] == ["own", "offline"]
    tokens = tmp_path / "tokens.arrows"
    streamenc(installed, "encode", "tone:440?seconds=2", tokens, "-q", "-m", "own")
    info, frames = read_file(str(tokens))
    assert info.model == "own" and sum(frame.data.shape[1] for frame in frames) == 100


def test_its_node_and_source_are_in_help_and_run(installed: Path) -> None:
    found = {tuple(line.split()[:2]) for line in streamenc(installed, "help").splitlines()}
    assert {("gain", "node"), ("tone:", "source")} <= found
    streamenc(installed, "run", "-q", installed.parent / "tree" / "louder.toml")
