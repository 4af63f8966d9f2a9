"""Which implementation of an op runs, and why not the Triton kernel."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch

Implementation: TypeAlias = Literal["torch", "triton"]

# The kernels are compiled and their resources checked from here on.
LEAST_CAPABILITY = (8, 0)

_log = logging.getLogger("streamenc_kernels")


def takes_triton(
    op: str,
    device: torch.device,
    implementation: Implementation | None,
    cannot: Callable[[], str],
) -> bool:
    """Whether the Triton kernel of `op` runs on tensors of `device`, or the torch code.

    implementation  An explicit choice; None takes the kernel on a GPU where `cannot` gives no
                    reason, and logs each reason once.
    cannot          Why the kernel cannot run; "" where it can.
    Raises RuntimeError where "triton" is chosen and cannot run.
    """
    if implementation is None:
        if device.type == "cpu":
            return False
        reason = cannot()
        if reason:
            _note(op, reason)
        return not reason
    if implementation == "torch":
        return False
    if implementation != "triton":
        raise ValueError(f"implementation {implementation!r}; wanted 'torch', 'triton' or None")
    reason = cannot()
    if reason:
        raise RuntimeError(f"{op} cannot run as a Triton kernel: {reason}")
    return True


def cannot_triton(device: torch.device) -> str:
    """Why no Triton kernel can run on tensors of `device`; "" where one can."""
    if torch.compiler.is_dynamo_compiling():
        return "the step is being traced"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "the tensors are on the CPU and TRITON_INTERPRET=1 is not set"
        return _missing("triton")
    if device.type != "cuda":
        return f"the tensors are on {device}"
    return _cannot_launch(device.index if device.index is not None else -1)


def _note(op: str, reason: str) -> None:
    # A traced step must not meet the cache.
    if not torch.compiler.is_dynamo_compiling():
        _note_once(op, reason)


@functools.cache
def _note_once(op: str, reason: str) -> None:
    _log.warning("%s runs as torch operators, not as a Triton kernel: %s", op, reason)


@functools.cache
def _missing(package: str) -> str:
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


@functools.cache
def _cannot_launch(index: int) -> str:
    """What does not change while the process runs; an index of -1 is the current device."""
    if torch.version.cuda is None:
        return "this torch is not built for CUDA"
    if _missing("triton"):
        return _missing("triton")
    capability = torch.cuda.get_device_capability(None if index < 0 else index)
    if capability < LEAST_CAPABILITY:
        wanted = ".".join(map(str, LEAST_CAPABILITY))
        return f"compute capability {'.'.join(map(str, capability))}; wanted {wanted} or more"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, and there is no gcc or clang"
    return ""
