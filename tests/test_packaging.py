"""What the wheel and the source distribution hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"streamenc": ROOT, "streamenc_kernels": ROOT / "kernels"}
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # which building changes
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo-output")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, made of a copy of the tree."""
    folder = tmp_path_factory.mktemp("built")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def kept(folder: Path) -> set[str]:
    """Paths of the files there, relative to the repository, without what Python leaves behind."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_wheel_holds_both_packages_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(wheel.read(metadata).decode())
    wanted = set()
    for package, root in PACKAGES.items():
        prefix = root.relative_to(ROOT).as_posix()
        wanted |= {
            name.removeprefix(f"{prefix}/")
            for name in kept(root / package)
            if name.endswith((".py", "py.typed")) or "/weights/" in name
        }
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert {"streamenc/py.typed", "streamenc_kernels/py.typed"} < wanted
    assert any(name.endswith(".safetensors") for name in wanted)
    assert fields["License-Expression"] == "MIT AND CC-BY-SA-4.0"
    urls = dict(each.split(", ") for each in fields.get_all("Project-URL") or [])
    assert {"Repository", "Documentation", "Changelog"} < urls.keys()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_source_distribution_holds_what_one_works_with(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("streamenc", "kernels", "bench", "docs", "examples", "tests"):
        missing = kept(ROOT / folder) - names
        assert not {name for name in missing if "egg-info" not in name}, missing
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"):
        assert name in names
    assert not {name for name in names if "__pycache__" in name or name.endswith(".pyc")}
