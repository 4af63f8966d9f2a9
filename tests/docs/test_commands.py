"""Every command in the README and docs is run, in a folder with a short clip and small models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamenc.cli import serving
from streamenc.serve.processes import supervisor
from streamenc.serve.processes.supervisor import Supervisor
from tests.serve.conftest import engine_address, serve, served
from tests.support.broker import MOSQUITTO, Broker
from tests.support.manual.devices import plug
from tests.support.manual.pages import PAGES, blocks, commands, name_of
from tests.support.manual.shell import Done
from tests.support.manual.stage import Stage
from tests.support.profile import FULL

__all__ = ["engine_address", "serve", "served"]  # fixtures

pytest.importorskip("transformers", reason="makes the small models")

# What is not run, by how a line begins, and why.
NOT_RUN = {
    "pip ": "installs packages",
    "make ": "is the whole suite, or the demo, which have targets of their own in CI",
    "streamenc --install-completion": "changes the files of a shell",
    "python -m build": "builds the packages, as tests/test_packaging.py does",
    "python -m bench": "measures for minutes; tests/bench runs it on models that are small",
    "python -m tests.campaign": "attacks for minutes; tests/campaign has a short form of each part",
    "PYTHONPATH=": "measures on a GPU; tests/bench runs it without figures",
    ".venv/bin/python -m pytest": "is this very suite",
    "python examples/": "is run in tests/examples",
    "serve run ": "wants a cluster of Ray; tests/serve/cluster runs what it starts",
    "streamenc tokenize s3://bucket/speech/ /shared/tokens": "wants a cluster of Ray, which "
    "tests/bulk/cluster starts",
    "streamenc encode 'rtsp://viewer:": "wants a camera; tests/cli/test_secrets.py has addresses "
    "with secrets of all schemes",
    "streamenc listen 'wss://host/": "wants a server with TLS; tests/cli/test_secrets.py as well",
    "streamenc encode text+mqtt:": "waits for messages; tests/io/network/text sends some",
}
OURS = re.compile(r"^curl |(?:^|\| )streamenc [-a-z]")
# Commands that the full profile alone runs: of each kind, a quicker one is always run.
SLOW = re.compile(
    r"streamenc (?:export|verify (?!kyutai/mimi$)|inspect .*--original|\w+ .*--dtype|models$)"
)


def why_not(line: str) -> str:
    return next((reason for begin, reason in NOT_RUN.items() if line.startswith(begin)), "")


def runs(line: str) -> bool:
    """Whether a line is a command that is run."""
    return bool(OURS.search(line)) and not why_not(line) and (FULL or not SLOW.match(line))


def marks(lines: list[str]) -> list[pytest.MarkDecorator]:
    text = "\n".join(lines)
    return [pytest.mark.process] if "mqtt://" in text or "curl " in text else []


def once(lines: list[str], seen: set[str]) -> list[str]:
    """What no earlier block had; the others' outputs are there, see GIVEN of the stage."""
    new = [line for line in lines if not runs(line) or line not in seen]
    seen.update(lines)
    return new


_SEEN: set[str] = set()
BLOCKS = [
    pytest.param(lines, id=f"{name_of(page)}-{i}", marks=marks(lines))
    for page in PAGES
    for i, block in enumerate(blocks(page, "", "sh"))
    if any(map(runs, lines := once(commands(block), _SEEN)))
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if MOSQUITTO is None:
        yield ""
        return
    there = Broker(tmp_path_factory.mktemp("broker"))
    there.start()
    yield there.url("").rstrip("/")
    there.kill()


@pytest.mark.parametrize("lines", BLOCKS)
def test_each_command_runs(
    lines: list[str],
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    text = "\n".join(lines)
    broker = request.getfixturevalue("broker") if "mqtt://" in text else ""
    if "mqtt://" in text and not broker:
        pytest.skip("there is no mosquitto")
    asks = any(f"{scheme}://127.0.0.1:8765" in text for scheme in ("http", "ws"))
    served = request.getfixturevalue("served").http.removeprefix("http://") if asks else ""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMENC_BACKEND", "torch")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    stage = Stage(tmp_path, kept, broker, served)
    plug(monkeypatch, tmp_path / "clip.mp4")
    _start_nothing(monkeypatch)
    names: dict[str, str] = {}
    for line in lines:
        for name, value in names.items():
            line = line.replace(f"${name}", value)
        if given := re.fullmatch(r"(\w+)=(\S+)", line):
            names[given[1]] = given[2]
        elif line.startswith("curl "):
            _in_a_shell(stage.said(line), tmp_path)
        elif runs(line):
            stage.run(line, _check)


def _check(words: list[str], done: Done) -> None:
    assert done.code == 0, f"{words}: {done.error}{done.out.decode(errors='replace')}"
    assert "Traceback" not in done.error


def _start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` and `engine` come as far as to what they would start: their own tests start it."""

    async def no_processes(self: Supervisor) -> int:
        return 0

    monkeypatch.setattr(Supervisor, "run", no_processes)
    monkeypatch.setattr(supervisor, "all_devices", lambda: ["cpu"])
    monkeypatch.setattr(serving, "_until_interrupted", lambda *_: None)


def _in_a_shell(line: str, place: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    done = subprocess.run(
        line.replace("curl ", "curl -sS --fail-with-body ", 1),
        shell=True,
        cwd=place,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{line}: {done.stdout!r} {done.stderr!r}"


def test_what_is_not_run_is_there_and_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for page in PAGES for block in blocks(page, "", "sh") for line in commands(block)]
    with capsys.disabled():
        for begin, reason in NOT_RUN.items():
            assert any(line.startswith(begin) for line in lines), f"no line begins with {begin!r}"
            if os.environ.get("CI"):
                print(f"not run: {begin}... {reason}")
