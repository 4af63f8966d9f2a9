"""Time on a device: measured, shared out, and the least that bytes and products can take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from streamenc.engine.cudagraph import Recorder

Inputs = TypeVar("Inputs")

CALLS, LEAST_CALLS = 200, 5
GIB = 1 << 30


class Budget:
    """Shares a time among phases by weight; what one leaves over goes to those after it."""

    def __init__(self, seconds: float, weights: dict[str, float]) -> None:
        self._end = time.monotonic() + seconds
        self._weights = dict(weights)
        self._phase_end = self._end
        self.skipped: list[str] = []

    def begin(self, phase: str) -> None:
        """Starts a phase, once."""
        now = time.monotonic()
        total = sum(self._weights.values())
        self.skipped = []
        self._phase_end = now + max(0.0, self._end - now) * self._weights.pop(phase) / total

    def part(self, seconds: float) -> Budget:
        """So much of the phase, as a phase of its own that notes in the same `skipped`."""
        part = Budget(seconds, {})
        part.skipped = self.skipped
        return part

    def left_seconds(self) -> float:
        """Of the phase."""
        return self._phase_end - time.monotonic()

    def allows(self, what: str, seconds: float = 0.0) -> bool:
        """Whether the phase has time for something; what it has not is kept in `skipped`."""
        fits = self.left_seconds() > seconds
        if not fits:
            self.skipped.append(what)
        return fits


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the device reached in this run; 0 where it was not measured."""

    bytes_per_second: float
    float32_per_second: float
    bfloat16_per_second: float

    def floor_ms(self, nbytes: float, flops: float) -> float:
        """The least time for moving so many bytes and for so many operations in float32."""
        return 1e3 * max(nbytes / self.bytes_per_second, flops / self.float32_per_second)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def call_ms(call: Callable[[], Any], device: torch.device) -> float:
    """One call on an idle device, its way there included: by CUDA events, or by the clock."""
    if device.type != "cuda":
        start_ns = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start_ns) / 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def times_ms(
    call: Callable[[int], Any],
    device: torch.device,
    seconds: float,
    *,
    calls: int = CALLS,
    warmup: int = LEAST_CALLS,
) -> list[float]:
    """Times of calls with 0, 1, ...: as many as fit, but a few at least."""
    for index in range(warmup):
        call(index)
    end = time.monotonic() + seconds
    found: list[float] = []
    while len(found) < calls and (len(found) < LEAST_CALLS or time.monotonic() < end):
        index = warmup + len(found)
        found.append(call_ms(lambda at=index: call(at), device))  # type: ignore[misc]
    return found


def replays_ms(
    call: Callable[[Inputs], Any], sets: Sequence[Inputs], device: torch.device, seconds: float
) -> list[float]:
    """Times of a call among others in a graph, one after another on all sets: no launch gaps.

    Raises RuntimeError where it cannot be captured.
    """

    def all_of_them() -> Tensor:
        for inputs in sets:
            call(inputs)
        return torch.empty(0, device=device)

    replay = Recorder(device)(all_of_them).replay if device.type == "cuda" else all_of_them
    found = times_ms(lambda _: replay(), device, seconds, calls=50, warmup=2)
    return [ms / len(sets) for ms in found]


def rotated(make: Callable[[int], Inputs], set_bytes: int, device: torch.device) -> list[Inputs]:
    """So many sets of inputs, one for each seed, that none is still in the L2 cache."""
    count = 2
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        count = min(32, max(count, -(-3 * cache // max(1, set_bytes))))
    return [make(seed) for seed in range(count)]


def peaks(device: torch.device, seconds: float, *, small: bool = False) -> Peaks:
    """By a large copy, bytes read and written, and by large matrix products without TF32."""
    numbers, size = (1 << 16, 64) if small else (GIB // 4, 8192)
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    share = seconds / 3
    copy_ms = median(times_ms(lambda _: target.copy_(source), device, share, calls=30))
    rates = [_product_rate(size, dtype, device, share) for dtype in (torch.float32, torch.bfloat16)]
    return Peaks(2 * 4 * numbers / copy_ms * 1e3, *rates)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    c = torch.empty_like(a)
    spent_ms = median(times_ms(lambda _: torch.mm(a, b, out=c), device, seconds, calls=10))
    return 2 * size**3 / spent_ms * 1e3


def poison(device: torch.device, nbytes: int = 1 << 26) -> None:
    """Leaves NaN in free memory, of small and large blocks, so that what is not written shows."""
    sizes = list(_sizes(nbytes))
    blocks = [torch.full((size // 4,), float("nan"), device=device) for size in sizes]
    synchronize(device)
    del blocks


def _sizes(nbytes: int) -> Iterator[int]:
    size = 1 << 9
    while size <= nbytes:
        yield size
        size <<= 1


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """|ours - reference| / |reference|, in float64; infinite where ours has a NaN."""
    wanted = reference.double()
    error = torch.linalg.vector_norm(ours.double() - wanted) / torch.linalg.vector_norm(wanted)
    value = float(error)
    return value if value == value else float("inf")
