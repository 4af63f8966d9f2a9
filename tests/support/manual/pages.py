"""The README and the pages of docs, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """What stands between the fences that open with one of these languages, "" for none."""
    fences = re.split(r"^ *```(.*)$\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [fences[i + 1] for i in range(1, len(fences), 4) if fences[i] in languages]


def included(block: str) -> list[str]:
    """The files that a block takes its text from."""
    return re.findall(r'^--8<-- "(.+)"$', block, re.MULTILINE)


def commands(block: str) -> list[str]:
    """The lines of a shell block, without their comments."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = (re.split(r"(?:^|\s)#\s", line)[0].strip() for line in joined.splitlines())
    return [line for line in lines if line]
