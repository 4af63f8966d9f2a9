"""The command line in this process: what it prints, and the code that it exits with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamenc.cli.main import main
from tests.support.program import Done


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`call("encode", ...)` is `streamenc encode ...`."""

    def called(*arguments: str | Path) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return called
