"""The docstrings that the API reference shows are in the dialect that it reads: Google's."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import streamenc
from tests.support.manual.pages import DOCS, ROOT

# `name  Meaning`, and `Raises Error where`, as modules have them that no reference shows.
OTHER = re.compile(r'^ *\w+(?:, \w+)* {2,}[A-Z"(]', re.MULTILINE)
Defined = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def shown() -> dict[Path, set[str]]:
    """The modules of the reference, and what it shows of each; "" for all."""
    named = [
        found
        for page in (DOCS / "api").glob("*.md")
        for found in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    named += [f"{module}.{name}" for name, module in streamenc._HOMES.items()]
    found: dict[Path, set[str]] = {}
    for each in named:
        module, inside = each, ""
        while (file := file_of(module)) is None:
            module, _, inside = module.rpartition(".")
        found.setdefault(file, set()).add(inside)
    return found


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)


def public(body: list[ast.stmt]) -> list[Defined]:
    return [node for node in body if isinstance(node, Defined) and not node.name.startswith("_")]


SHOWN = shown()


def test_the_reference_shows_something() -> None:
    assert len(SHOWN) > 30


@pytest.mark.parametrize("file", sorted(SHOWN), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_docstrings_have_sections(file: Path) -> None:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node in public(body):
        if SHOWN[file] & {"", node.name}:
            members = public(node.body) if isinstance(node, ast.ClassDef) else []
            for each in (node, *members):
                wrong = OTHER.search(ast.get_docstring(each) or "")
                assert not wrong, f"{node.name}.{each.name}: {wrong[0]!r} belongs under `Args:`"
