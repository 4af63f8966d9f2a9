"""The README and the pages of docs are true: code, commands, links, names, and the tree."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

import streamenc
from streamenc.cli.facts.meanings import class_options
from streamenc.cli.main import app
from streamenc.io import MEDIA_KINDS, SINKS, SOURCES
from streamenc.models.families import FAMILIES, LISTED
from streamenc.registry import family_module
from tests.support.manual.pages import DOCS, PAGES, README, ROOT, blocks, included, name_of

README_LINES = 150
FOLDERS = ("streamenc", "kernels", "bench", "examples")
CAPTION = re.compile(r"^(?P<indent> *)(?P<name>\S+)( +(?P<caption>\S.*))?$")
# What the variables of the examples are.
OWNERS = {
    "streamenc": streamenc,
    "codec": streamenc.Codec,
    "spec": streamenc.spec.StreamSpec,
    "stream": streamenc.Stream,
    "engine": streamenc.Engine,
    "session": streamenc.Session,
    "pipeline": streamenc.Pipeline,
}


# --- the tree


def tree() -> dict[str, str]:
    """Path -> caption of each line of the layout; folders end with a slash."""
    text = (DOCS / "contribute" / "house.md").read_text(encoding="utf-8")
    _, heading, rest = text.partition("\n## Layout\n")
    assert heading, "docs/contribute/house.md lost its Layout"
    found: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in rest.split("```")[1].strip("\n").splitlines():
        match = CAPTION.match(line)
        assert match, f"not `name  caption`: {line!r}"
        indent = len(match["indent"])
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = (folders[-1][1] if folders else "") + match["name"]
        assert path not in found, f"{path} is there twice"
        found[path] = match["caption"] or ""
        if path.endswith("/"):
            folders.append((indent, path))
    return found


def holds_something(path: Path) -> bool:
    if path.name != "__init__.py":
        return True
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def sources() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if holds_something(path)
    }


def test_the_tree_has_every_source_file() -> None:
    missing = sources() - tree().keys()
    assert not missing, f"name these in the Layout of house.md, with a caption: {sorted(missing)}"


def test_the_tree_names_nothing_that_is_gone() -> None:
    gone = [path for path in tree() if not (ROOT / path).exists()]
    assert not gone, f"the Layout of house.md names what is not there: {gone}"


def test_each_file_has_one_caption() -> None:
    bare = [path for path, caption in tree().items() if not caption and not path.endswith("/")]
    assert not bare
    captions = [caption for caption in tree().values() if caption]
    assert len(set(captions)) == len(captions)


# --- Python

PYTHON = [
    pytest.param(block, id=f"{name_of(page)}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "python"))
    if not included(block)
]


@pytest.mark.parametrize("block", PYTHON)
def test_every_python_block_compiles_and_its_names_exist(block: str) -> None:
    parsed = ast.parse(block)
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("streamenc"):
            assert node.module is not None
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("streamenc"):
                    import_module(alias.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = OWNERS.get(node.value.id)
            known = owner is None or hasattr(owner, node.attr) or _in_init(owner, node.attr)
            assert known, f"{node.value.id} has no {node.attr}"


def _in_init(owner: object, name: str) -> bool:
    """Whether a class sets such an attribute when it is made."""
    return isinstance(owner, type) and name in owner.__init__.__code__.co_names


def test_the_readme_shows_how_to_encode_and_to_stream() -> None:
    block = blocks(README, "python")[0]
    for used in ("streamenc.load(", "codec.encode(", "codec.stream(", "stream.push(", ".flush("):
        assert used in block


# --- the command line

COMMANDS = sorted(
    {
        part.strip()
        for page in PAGES
        for block in blocks(page, "", "sh")
        for line in block.splitlines()
        for part in re.split(r"(?<!\S)\|(?!\S)", line.partition("  #")[0])
        if re.match(r"streamenc [a-z]", part.strip())
    }
)


def test_every_command_is_shown() -> None:
    given = {command.split()[1] for command in COMMANDS}
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert given == known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    """As typer reads it, without running it. An unknown option or too many words raise."""
    _, name, *words = shlex.split(command)
    group = typer.main.get_command(app)
    parsed = group.commands[name].make_context(name, words)  # type: ignore[attr-defined]
    assert parsed.params is not None


# --- names and links

LINKS = [
    pytest.param(page, target, id=f"{name_of(page)}-{target}")
    for page in PAGES
    for target in sorted(
        set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")))
    )
]
SPOKEN = sorted(
    {
        (name_of(page), path)
        for page in PAGES
        for path in re.findall(
            r"`((?:examples|docs|tests|streamenc|kernels|bench)/[\w./]+\.\w+)`",
            page.read_text(encoding="utf-8"),
        )
    }
)
INCLUDED = sorted(
    {path for page in PAGES for block in blocks(page, "python", "toml") for path in included(block)}
)


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_every_link_leads_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists()


@pytest.mark.parametrize(("page", "path"), SPOKEN)
def test_every_file_that_a_page_speaks_of_is_there(page: str, path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", INCLUDED)
def test_every_file_that_is_shown_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_the_site_has_every_page() -> None:
    named = re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(named) == sorted(pages)


def test_the_readme_is_short() -> None:
    lines = len(README.read_text(encoding="utf-8").splitlines())
    assert lines <= README_LINES, f"{lines} lines; what is longer belongs into a page of docs"


@pytest.mark.parametrize("key", sorted({*SOURCES, *SINKS}))
def test_every_scheme_and_ending_is_in_the_table_of_inputs_and_outputs(key: str) -> None:
    text = (DOCS / "io" / "index.md").read_text(encoding="utf-8")
    assert re.search(rf"`{re.escape(key)}:?`", text)


@pytest.mark.parametrize("end", ["inputs", "outputs"])
def test_every_option_of_inputs_and_outputs_is_on_their_pages(end: str) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "io").glob("*.md"))
    table = {**SOURCES, **MEDIA_KINDS} if end == "inputs" else SINKS
    missing = [
        (key, option.name)
        for key, entry in table.items()
        for option in class_options(entry.load(), {})
        if not re.search(rf"`{option.name}[`=]|[?&]{option.name}=", text)
    ]
    assert not missing


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_option_of_a_family_is_on_a_page_of_models(family: str) -> None:
    pages = (DOCS / "models").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    names = list(inspect.signature(family_module(family).load).parameters)[3:]
    missing = [n for n in names if n != "options" and not re.search(rf"`{n}[`=]|{n}=", text)]
    assert not missing


@pytest.mark.parametrize("family", sorted({listed.family for listed in LISTED.values()}))
def test_a_listed_model_of_every_family_is_in_the_table_of_models(family: str) -> None:
    text = (DOCS / "models" / "index.md").read_text(encoding="utf-8")
    names = [name for name, listed in LISTED.items() if listed.family == family]
    assert any(f"`{name}`" in text for name in names), f"none of {names} is there"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "api" / "streamenc" / "index.html").exists()
