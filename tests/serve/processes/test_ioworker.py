"""An I/O process by itself."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from streamenc.serve.processes.ioworker import AccessLog


def test_it_needs_no_torch() -> None:
    program = "import streamenc.serve.processes.ioworker, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_it_ends_where_nobody_started_it() -> None:
    """Without a supervisor, that is: nothing comes on standard input."""
    module = "streamenc.serve.processes.ioworker"
    done = subprocess.run(
        [sys.executable, "-m", module], stdin=subprocess.DEVNULL, capture_output=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_log_without_queries(caplog: pytest.LogCaptureFixture) -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello", 202)

    client = TestClient(AccessLog(Starlette(routes=[Route("/hello/{name}", hello)])))
    assert client.get("/hello/a?token=secret").status_code == 202
    assert not caplog.records
    with caplog.at_level(logging.INFO, "streamenc.access"):
        client.get("/hello/a%0Ab%1B?token=secret", headers={"Authorization": "Bearer secret"})
    (line,) = caplog.messages
    assert r"testclient GET '/hello/a\nb\x1b' 202, 0." in line and "secret" not in line
