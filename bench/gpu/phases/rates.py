"""What the device and its driver reach: copies, matrix products, launches, nodes of a graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from bench.gpu.phase import Phase
from bench.gpu.timing import (
    COPY,
    FLOAT32_RATE,
    SWITCHES,
    captured,
    float32_as,
    note_clocks,
    open_device,
    synchronize,
    times_ms,
)
from streamenc_kernels import FullFloat32

TABLE = "Rates of the device"
SECONDS = 0.4
NODES = 256
# Of a frame of Mimi.
SMALL_BYTES = 4 * 1920


# (name, work of a call, call, unit)
Rate = Callable[[str, float, Callable[[int], Any], str], None]


def run(phase: Phase) -> None:
    device = open_device(phase)
    _switches(phase)
    numbers, size = (1 << 12, 64) if phase.dry else (1 << 28, 8192)
    seconds = 0.0 if phase.dry else SECONDS

    def rate(name: str, work: float, call: Callable[[int], Any], unit: str) -> None:
        phase.rate(
            TABLE,
            name,
            lambda: 1e3 * work / median(times_ms(call, device, seconds, calls=20, warmup=3)),
            unit,
        )

    _copies(rate, numbers, device)
    products = {
        FLOAT32_RATE: (torch.float32, "ieee"),
        "products in TF32": (torch.float32, "tf32"),
        "products in bfloat16": (torch.bfloat16, "ieee"),
    }
    for name, (dtype, precision) in products.items():
        # Random numbers: zeros take less power, and run faster than data does.
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        c = torch.empty_like(a)
        with float32_as(precision):
            rate(name, 2 * size**3, lambda _, a=a, b=b, c=c: torch.mm(a, b, out=c), "FLOP/s")

    one = torch.zeros(1, device=device)
    nodes = NODES if device.type == "cuda" else 4

    def chain() -> None:
        for _ in range(nodes):
            one.add_(1)

    def us_of_a_node() -> float:
        replay = captured(chain, device)
        return 1e3 * median(times_ms(lambda _: replay(), device, seconds)) / nodes

    def us_of_a_replay() -> float:
        replay = captured(lambda: one.add_(1), device)
        return 1e3 * median(times_ms(lambda _: replay(), device, seconds))

    def us_of_a_launch() -> float:
        synchronize(device)
        start = time.perf_counter()
        chain()
        spent = time.perf_counter() - start  # of the host: it is not waited for the device
        synchronize(device)
        return 1e6 * spent / nodes

    small = torch.empty(SMALL_BYTES // 4, pin_memory=device.type == "cuda")
    there = torch.empty(SMALL_BYTES // 4, device=device)

    def us_of_a_small_copy() -> float:
        return 1e3 * median(times_ms(lambda _: there.copy_(small, non_blocking=True), device, 0.1))

    phase.rate(TABLE, "a node of a graph", us_of_a_node, "us")
    phase.rate(TABLE, "a graph of one node, alone", us_of_a_replay, "us")
    phase.rate(TABLE, "a launch without a graph, on the host", us_of_a_launch, "us")
    phase.rate(TABLE, f"a copy of {SMALL_BYTES} bytes from the host", us_of_a_small_copy, "us")
    note_clocks(phase)


def _switches(phase: Phase) -> None:
    """In what torch computes float32: by default, and while a step of ours runs."""

    def told() -> str:
        return ", ".join(f"{part} {one.fp32_precision}" for part, one in SWITCHES.items())

    phase.write("Switches", "torch's float32 as it was found", note=told())
    with FullFloat32("cuda"):
        phase.write("Switches", "torch's float32 while a step runs", note=told())


def _copies(rate: Rate, numbers: int, device: torch.device) -> None:
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    rate(COPY, 8 * numbers, lambda _: target.copy_(source), "bytes/s, read and written")
    host = torch.empty(numbers // 4, pin_memory=device.type == "cuda")
    part = source[: numbers // 4]
    rate("copy to the host", numbers, lambda _: host.copy_(part, non_blocking=True), "bytes/s")
    rate("copy from the host", numbers, lambda _: part.copy_(host, non_blocking=True), "bytes/s")
