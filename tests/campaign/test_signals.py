"""Ctrl-C in the midst of a command's imports, and of a file that plays like a microphone."""

from __future__ import annotations

import subprocess
from random import Random

import pytest

from tests.campaign.signals import SCENES, one

assert subprocess  # what is started here are processes, as conftest looks for
BY_NAME = {scene.name: scene for scene in SCENES}


@pytest.mark.parametrize("seed", [1, 2])
def test_ctrl_c_in_the_midst_of_imports_leaves_no_traceback(seed: int) -> None:
    row = one(BY_NAME["--version"], Random(seed))
    assert not row["faults"], row


def test_two_interrupts_at_once_are_one() -> None:
    row = one(BY_NAME["encode, twice"], Random(1))
    assert not row["faults"], row
