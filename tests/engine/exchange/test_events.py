"""The way to a GPU and back: what the host waits for, with stand-ins for torch.cuda's events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from streamenc.engine.exchange import staging
from streamenc.engine.exchange.staging import Staging, Timing
from tests.support import zoo

# Not the worker's current one.
SECOND = torch.device("cuda:1")


class Event:
    """That of a stream; `log` has what was recorded and waited for."""

    log: list[tuple[str, Any]] = []

    def __init__(self, *, enable_timing: bool = False, blocking: bool = False) -> None:
        assert blocking  # else the worker would spin, and hold up the event loops
        self.timed = enable_timing

    def record(self, stream: Any = None) -> None:
        self.log.append(("record", stream))

    def synchronize(self) -> None:
        self.log.append(("wait", None))

    def elapsed_time(self, other: Event) -> float:
        assert self.timed and other.timed
        return 1.5


@pytest.fixture
def log() -> Iterator[list[tuple[str, Any]]]:
    """What happens to events, in order."""
    stream = mock.patch.object(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    with mock.patch.object(torch.cuda, "Event", Event), stream:
        Event.log = []
        yield Event.log


RECORDED, WAITED = ("record", "stream of cuda:1"), ("wait", None)


def test_a_step_is_timed_on_its_models_device(log):
    with Timing(SECOND) as timing:
        pass
    assert log == [RECORDED, RECORDED, WAITED]
    assert timing.duration_ns == 1_500_000


def test_outputs_are_waited_for_on_their_device(log, monkeypatch):
    """An event of another device would have happened before the copy ends."""
    model = zoo.model("nano", "encoder")
    with FakeTensorMode():
        codes = torch.zeros(2, 8, 1, dtype=torch.int64, device=SECOND)

    def copied(tensor: Tensor) -> Tensor:
        log.append(("copy", tensor.device))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(staging, "_copied_back", copied)
    given = Staging(model).to_host(codes)
    assert isinstance(given, np.ndarray) and given.shape == (2, 8, 1)
    assert log == [("copy", SECOND), RECORDED, WAITED]


def test_pinned_memory_is_not_written_before_it_was_read(log, monkeypatch):
    """Two copies in a row, with no step between that was waited for."""
    stage, empty = Staging(zoo.model("nano", "encoder", torch.float32)), torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *size, pin_memory=False, **more: empty(*size, **more)
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        stage._like = torch.zeros(1, device=SECOND)
        for count in (2, 2, 64):
            x = stage.to_device(np.zeros((count, 1, 480), np.float32))
            assert x.device == SECOND and x.shape == (count, 1, 480)
    assert log == [RECORDED, WAITED, RECORDED, WAITED, RECORDED]
