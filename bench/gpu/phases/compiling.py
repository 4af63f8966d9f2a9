"""All kernels that the later phases launch, compiled side by side into Triton's cache on disk.

One after the other, by the process that launches them first, would take most of its time. Here the
phases' own steps run, and each kernel that they would launch is compiled by another thread instead.
Nothing is launched, so what kernels would have written is 0, and means nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.gpu.phase import Phase, said
from bench.gpu.phases import convolutions, kernels
from bench.gpu.phases.models import CHECKED_CASES, HALVES, SMALL, Case
from bench.gpu.phases.steps import Steps
from bench.gpu.timing import collect, open_device

TABLE = "Kernels, compiled"
MOST_LANES, SMALL_BYTES = 512, 1 << 27


def run(phase: Phase) -> None:
    """The phase `compile`."""
    device = open_device(phase)
    parts: dict[str, Callable[[], Any]] = {}
    for case in (SMALL,) if phase.dry else (*CHECKED_CASES, *HALVES):
        parts[case.title] = lambda case=case: _steps(case, phase, device)  # type: ignore[misc]
    parts["kernels"] = lambda: _kernels(phase, device)
    parts["convolutions"] = lambda: _convolutions(phase, device)
    start = time.monotonic()
    with torch.inference_mode(), compiled_aside(device) as names:
        for title, part in parts.items():
            if not phase.allows(TABLE, title, 3):
                continue
            before = len(names)
            try:
                part()
            except Exception as error:  # what is not compiled here is compiled where it runs
                phase.write(TABLE, title, note=said(error))
            collect(device)
            phase.write(TABLE, title, note=f"{len(names) - before} launches asked for")
    spent = time.monotonic() - start
    which = ", ".join(sorted(set(names))) or "none here"
    phase.write(TABLE, "all", note=f"{spent:.1f} s, {len(names)} launches of {which}")


@contextmanager
def compiled_aside(device: torch.device) -> Iterator[list[str]]:
    """Within it, launches are compilations by other threads; at its end all are done.

    Gives the names of the kernels, one for each launch that was asked for. Where there is no GPU,
    all is as ever.
    """
    names: list[str] = []
    if device.type != "cuda":
        yield names
        return
    from triton.runtime._async_compile import AsyncCompileMode
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run

    def aside(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        names.append(function.__name__)
        return launch(function, *args, grid=grid, warmup=True, **options)

    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        stack.enter_context(AsyncCompileMode(threads, ignore_errors=True))
        stack.enter_context(patch.object(JITFunction, "run", aside))
        with torch.device("cpu"):
            torch.empty(0)  # such contexts note once which functions are torch's own
        # What kernels leave unwritten is read as indices and positions.
        for where, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch.Tensor, "new_empty"),
        ):
            stack.enter_context(patch.object(where, name, _zeroed(getattr(where, name))))
        yield names


def _zeroed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: make(*args, **options).zero_()


def _steps(case: Case, phase: Phase, device: torch.device) -> None:
    """Of few lanes and of many: what is compiled differs between those alone."""
    model = case.load(phase.folder, device)
    for count in (1, 3) if phase.dry else (1, 3, 64, MOST_LANES):
        Steps(case, model, count, graphed=False)(0)


def _kernels(phase: Phase, device: torch.device) -> None:
    how = kernels.implementation_on(device)
    for case in kernels.cases(small=phase.dry):
        case.ways(device, how)[kernels.KERNEL](0)()
        if case.nbytes < SMALL_BYTES:
            case.check(device, how)  # under masks, in bfloat16


def _convolutions(phase: Phase, device: torch.device) -> None:
    for conv in convolutions.mimi(3, small=phase.dry):
        convolutions.WAYS["the layer"](conv, conv.make(device, 0))
