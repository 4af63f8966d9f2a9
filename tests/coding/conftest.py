"""An engine for the tests of nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from streamenc.engine.engine import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    """With one thread: two of a small step wait for each other on a machine that is in use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Engine() as engine:
        yield engine
    torch.set_num_threads(threads)
