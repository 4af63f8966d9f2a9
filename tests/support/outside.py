"""Packages from outside, with entry points, as an installer leaves them on Python's path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from streamenc import plugins

Install = Callable[..., Path]
OWN = Path(__file__).parents[2] / "examples" / "own_model"


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing registered, nothing remembered of what is installed, and no module left behind."""
    monkeypatch.setattr(plugins, "_registered", {group: {} for group in plugins._own})
    monkeypatch.setattr(plugins, "_left_out", set())
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
