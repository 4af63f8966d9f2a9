"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "voice.ipynb"


def test_the_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("IPython")
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict[str, Any] = {}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        # As a notebook has it: `await` stands anywhere.
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile("".join(cell["source"]), f"cell {number}", "exec", flags=flags)
        if code.co_flags & inspect.CO_COROUTINE:
            coroutine = eval(code, names)
            asyncio.run(coroutine)
        else:
            exec(code, names)
    printed = capsys.readouterr().out
    assert "7,080 codes, all equal; 6 kbit/s" in printed and "no code is missing" in printed
