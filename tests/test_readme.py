"""The README is true: its tree, its commands, its code and its links."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

import streamenc
from streamenc.cli.main import app
from streamenc.stream import Stream

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("streamenc", "kernels", "bench", "examples")
CAPTION = re.compile(r"^(?P<indent> *)(?P<name>\S+)( +(?P<caption>\S.*))?$")


def blocks(language: str) -> list[str]:
    """What stands between the fences that open with this language, or with none."""
    fences = re.split(r"^```(.*)$\n", README, flags=re.MULTILINE)
    return [fences[i + 1] for i in range(1, len(fences), 4) if fences[i] == language]


def tree() -> dict[str, str]:
    """Path -> caption of each line of the layout; folders end with a slash."""
    _, heading, rest = README.partition("\n## Layout\n")
    assert heading, "the README lost its Layout"
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
    assert not missing, f"name these in the README's Layout, with a caption: {sorted(missing)}"


def test_the_tree_names_nothing_that_is_gone() -> None:
    gone = [path for path in tree() if not (ROOT / path).exists()]
    assert not gone, f"the README's Layout names what is not there: {gone}"


def test_each_file_has_one_caption() -> None:
    bare = [path for path, caption in tree().items() if not caption and not path.endswith("/")]
    assert not bare
    captions = [caption for caption in tree().values() if caption]
    assert len(set(captions)) == len(captions)


def test_the_first_python_block_compiles_and_its_names_exist() -> None:
    names = {"streamenc": streamenc, "codec": streamenc.Codec, "stream": Stream}
    parsed = ast.parse(blocks("python")[0])
    used = [
        (node.value.id, node.attr)
        for node in ast.walk(parsed)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    assert {owner for owner, _ in used} == names.keys()
    for owner, attribute in used:
        assert hasattr(names[owner], attribute), f"{owner}.{attribute}"


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_compiles(block: str) -> None:
    compile(block, "README.md", "exec")


COMMANDS = [
    part.strip()
    for block in blocks("")
    for line in block.splitlines()
    for part in re.split(r"(?<!\S)\|(?!\S)", line.partition("  #")[0])
    if part.strip().startswith("streamenc ")
]


def test_there_are_commands() -> None:
    given = {command.split()[1] for command in COMMANDS}
    commands = {"encode", "decode", "listen", "run", "inspect", "models", "devices", "export"}
    assert given == commands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    """As typer reads it, without running it. An unknown option or too many words raise."""
    _, name, *words = shlex.split(command)
    group = typer.main.get_command(app)
    parsed = group.commands[name].make_context(name, words)  # type: ignore[attr-defined]
    assert parsed.params is not None


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:examples|docs|tests|streamenc)/[\w./]+\.\w+)`", README)))
)
def test_every_file_that_it_speaks_of_is_there(path: str) -> None:
    assert (ROOT / path).exists()
