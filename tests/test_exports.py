"""What `import streamenc` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import streamenc


def test_every_name_is_there() -> None:
    for name in streamenc.__all__:
        assert getattr(streamenc, name) is not None
    assert dir(streamenc) == sorted(streamenc.__all__)
    assert streamenc.__version__[0].isdigit()


def test_each_name_is_the_one_of_its_module() -> None:
    for name, module in streamenc._HOMES.items():
        assert getattr(streamenc, name).__module__ == module
    assert {*streamenc._HOMES, "__version__"} == set(streamenc.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'streamenc' has no attribute 'nothing'"):
        _ = streamenc.nothing


def test_a_star_import() -> None:
    names: dict[str, object] = {}
    exec("from streamenc import *", names)
    assert set(streamenc.__all__) <= names.keys()


@pytest.mark.parametrize(
    "module", ["streamenc", "streamenc.graph.graph", "streamenc.io", "streamenc.cli.main"]
)
def test_what_needs_no_torch_imports_none(module: str) -> None:
    code = f"import {module}, sys; print('torch' in sys.modules, 'av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
