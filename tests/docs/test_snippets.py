"""Every piece of Python in the README and docs is run, page by page, in the order of the page."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import streamenc
import streamenc.client
from streamenc import threads
from tests.serve.conftest import engine_address, serve, served
from tests.support.manual.devices import plug
from tests.support.manual.pages import PAGES, blocks, included, name_of
from tests.support.manual.shell import published
from tests.support.manual.snippets import AFTER, BEFORE
from tests.support.manual.stage import Stage
from tests.support.outside import afresh, own
from tests.support.profile import FULL

pytest.importorskip("transformers", reason="makes the small models")
__all__ = ["afresh", "engine_address", "own", "serve", "served"]  # fixtures

# Pieces that are not run, by how they begin, and why.
NOT_RUN = {
    "from streamenc.bulk.cluster import": "wants a cluster of Ray; tests/bulk/cluster starts one",
    "import ray": "wants a cluster of Ray; tests/examples/test_batches.py runs an example",
    "from ray import serve": "wants a cluster of Ray; tests/serve/cluster starts one",
    "def step(self, x, state": "is the head of a method of one's own",
    'SOURCES["nats"]': "is a line of streamenc/io/__init__.py that is not there",
    "import torch\n\nfrom streamenc.testing": "is a test of one's own; tests/examples runs one",
}
SLOW = ('codec = streamenc.load("kyutai/mimi", backend="onnx")',)
# As a machine here has it: no GPU, no broker, one process.
INSTEAD = {
    'device="cuda"': 'device="cpu"',
    "mqtt://localhost/tokens": "zmq+tcp://127.0.0.1:5555",
    ", workers=4": ", workers=0",
    "num_workers=4": "num_workers=0",
}
# tests/field/test_tables.py runs these beside what they should give.
ELSEWHERE = ("docs/io/recordings.md",)


def pieces(page: Path) -> list[tuple[int, str]]:
    return [
        (number, block)
        for number, block in enumerate(blocks(page, "python"))
        if not included(block)
        and not block.startswith(tuple(NOT_RUN))
        and (FULL or not block.startswith(SLOW))
    ]


PYTHON = [
    pytest.param(page, id=name_of(page))
    for page in PAGES
    if pieces(page) and name_of(page) not in ELSEWHERE
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.mark.usefixtures("afresh", "own")
@pytest.mark.parametrize("page", PYTHON)
def test_each_piece_of_a_page_runs(
    page: Path,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    text = page.read_text(encoding="utf-8")
    asks = "streamenc.client.connect" in text
    host = request.getfixturevalue("served").http.removeprefix("http://") if asks else ""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMENC_BACKEND", "torch")
    stage = Stage(tmp_path, kept, served=host)
    plug(monkeypatch, tmp_path / "clip.mp4")
    names: dict[str, Any] = {"streamenc": streamenc}
    request.addfinalizer(lambda: threads.set_short_step_threads(1))
    with asyncio.Runner() as runner:
        for number, block in pieces(page):
            for there, here in INSTEAD.items():
                block = block.replace(there, here)
            stage.provide(block)
            where = name_of(page), number
            if where in BEFORE:
                BEFORE[where](names, stage)
            _run(stage.said(block), f"{where[0]}, {number}", names, stage, runner)
            if where in AFTER:
                runner.run(AFTER[where](names, stage))


def _run(
    code: str, where: str, names: dict[str, Any], stage: Stage, runner: asyncio.Runner
) -> None:
    """Code of which a line may `await`, as in a notebook."""
    compiled = compile(code, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    heard = re.search(r'^for .* in streamenc\.subscribe\("(zmq\+tcp:\S+)"\)', code, re.MULTILINE)
    if heard:
        stage.provide("tokens.arrows")
    recording = stage.place / "tokens.arrows"
    with published(heard[1], recording) if heard else nullcontext():
        if compiled.co_flags & inspect.CO_COROUTINE:

            async def body() -> None:
                await eval(compiled, names)

            runner.run(body())
        else:
            exec(compiled, names)


def test_what_is_not_run_is_there() -> None:
    all_of_them = [block for page in PAGES for block in blocks(page, "python")]
    for begin in NOT_RUN:
        assert any(block.startswith(begin) for block in all_of_them), begin
    for page, number in {*BEFORE, *AFTER}:
        assert page in {name_of(each) for each in PAGES}, (page, number)
