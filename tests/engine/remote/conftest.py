"""An engine with a door, in this process: what is served does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cpu.nothing import Nothing
from streamenc.codec import Codec
from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from tests.support import zoo

PLACES = 8


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(max_sessions=PLACES, max_wait_ms=1) as engine:
        yield engine


@pytest.fixture
def server(engine: Engine, tmp_path: Path) -> Iterator[EngineServer]:
    codecs = {name: zoo.codec(name) for name in ("nano", "encodec-48k")}
    codecs["nothing"] = Codec("nothing", Nothing(), None)
    with EngineServer(engine, codecs, f"ipc://{tmp_path}/engine") as server:
        yield server
