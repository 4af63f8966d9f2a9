"""Triton kernels on the CPU, in a process of their own.

TRITON_INTERPRET has to be set before Triton is imported, and in this process others may have
imported it already (torch.export does).
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls a function of a module there: interpreted(function, *arguments)."""
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    ) as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            return pool.submit(function, *arguments).result(timeout=100)

        yield call


def _begin() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.simplefilter("error")
    # A GPU is silent about infinities.
    np.seterr(invalid="ignore", over="ignore")
    torch.set_num_threads(1)
    # Memory that nobody has written holds NaN, and numbers that are no index.
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
