"""The command line, and scripts, in this process, which has torch already."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from streamenc.cli.main import main


class Done(NamedTuple):
    """How a program ended: its exit code, standard output and standard error."""

    code: int
    out: str
    error: str


def streamenc(*arguments: object) -> Done:
    """`streamenc ARGUMENTS`."""
    return _run(main, "streamenc", *arguments)


def script(path: Path, *arguments: object) -> Done:
    """`python PATH ARGUMENTS`."""

    def run() -> None:
        with mock.patch.object(sys, "path", [str(path.parent), *sys.path]), _without(beside):
            runpy.run_path(str(path), run_name="__main__")

    beside = {file.stem for file in path.parent.glob("*.py")}
    return _run(run, path, *arguments)


@contextlib.contextmanager
def _without(names: set[str]) -> Iterator[None]:
    """`sys.modules` without modules of these names, inside and afterwards but for those of before:
    another folder of scripts has a `model.py` too."""
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _run(program: Callable[[], object], *argv: object) -> Done:
    out, error, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", list(map(str, argv))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")  # as a program has it: others' warnings do not end it
        try:
            program()
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            code = 1 if isinstance(ended.code, str) else ended.code or 0
    return Done(code, out.getvalue(), error.getvalue())
