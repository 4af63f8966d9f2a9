"""An engine for the tests of nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamenc.engine.engine import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine
