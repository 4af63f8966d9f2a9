"""Time on a device: by events, in graphs, on inputs that no cache holds; and what compares."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.gpu.phase import Found, Phase
from bench.gpu.run import NO_DEVICE
from bench.harness import machine

Inputs = TypeVar("Inputs")

CALLS, LEAST_CALLS, REPLAYS, WARMUP_CALLS = 200, 5, 50, 2
# As many as a ring of one lane, 1 MB, takes to be three times the L2 cache of 60 MB.
MOST_SETS = 192
# float32 on another device, in another order of sums. TF32 is off by 3e-4 and more.
FLOAT32_LIMIT = 1e-5
COPY, FLOAT32_RATE = "copy on the device", "products in float32"
# What torch computes float32 with where it may take less, one switch for each kind of layer.
SWITCHES = {
    "convolutions": torch.backends.cudnn.conv,
    "recurrent layers": torch.backends.cudnn.rnn,
    "linear layers": torch.backends.cuda.matmul,
}


def open_device(phase: Phase) -> torch.device:
    """Where a phase runs, once it has told of the machine. Ends the process where there is none."""
    if phase.dry:
        phase.facts(**machine(), device="a dry run on the CPU, without figures of speed")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} "
            + ("finds no GPU" if torch.version.cuda else "is built without CUDA")
            + "; nothing was measured. `python -m bench` measures on the CPU, --dry-run shows that "
            "all of this runs",
        )
        sys.exit(NO_DEVICE)
    device = torch.device("cuda", torch.cuda.current_device())
    found = torch.cuda.get_device_properties(device)
    phase.facts(
        **machine(),
        device=found.name,
        device_memory_bytes=found.total_memory,
        l2_cache_bytes=found.L2_cache_size,
        processors=found.multi_processor_count,
        capability=f"{found.major}.{found.minor}",
        driver=_driver(),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        float32_as_found={part: one.fp32_precision for part, one in SWITCHES.items()},
    )
    return device


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Whoever computes within, and says nothing else, computes float32 as "ieee" or "tf32"."""
    before = {part: one.fp32_precision for part, one in SWITCHES.items()}
    for one in SWITCHES.values():
        one.fp32_precision = precision
    try:
        yield
    finally:
        for part, one in SWITCHES.items():
            one.fp32_precision = before[part]


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the device reached in this run; None where it was not measured."""

    bytes_per_second: float | None
    float32_per_second: float | None

    @classmethod
    def known(cls, phase: Phase) -> Peaks:
        return cls(phase.known(COPY), phase.known(FLOAT32_RATE))

    def floor_ms(self, nbytes: float, flops: float) -> float | None:
        """The least time for moving so many bytes and for so many operations in float32."""
        if not self.bytes_per_second or not self.float32_per_second:
            return None
        return 1e3 * max(nbytes / self.bytes_per_second, flops / self.float32_per_second)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def collect(device: torch.device) -> None:
    """Gives a GPU's memory back that nobody holds any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


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
    """Times of calls with 0, 1, ...: as many as fit, but a few at least, after `warmup` others."""
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

    def all_of_them() -> None:
        for inputs in sets:
            call(inputs)

    with torch.inference_mode():
        replay = captured(all_of_them, device)
        found = times_ms(lambda _: replay(), device, seconds, calls=REPLAYS, warmup=2)
    return [ms / len(sets) for ms in found]


def captured(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """What replays a call as a graph; the call itself where there are none."""
    if device.type != "cuda":
        return call
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP_CALLS):
            call()
        torch.cuda.synchronize(device)
        # Not `torch.cuda.graph`, which collects garbage and empties the cache each time.
        graph.capture_begin()
        try:
            call()
        finally:
            graph.capture_end()
    torch.cuda.synchronize(device)
    return graph.replay


def rotated(
    make: Callable[[int], Inputs], set_bytes: int, device: torch.device, most: int = MOST_SETS
) -> list[Inputs]:
    """So many sets of inputs, one for each seed, that none is still in the L2 cache."""
    count = 2
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        count = min(most, max(count, -(-3 * cache // max(1, set_bytes))))
    return [make(seed) for seed in range(count)]


def poison(device: torch.device, nbytes: int = 1 << 26) -> None:
    """Leaves NaN in free memory, of small and large blocks, so that what is not written shows; on a
    CPU, where the inputs are small, in smaller ones."""
    largest = nbytes if device.type == "cuda" else nbytes >> 6
    sizes = [1 << exponent for exponent in range(9, largest.bit_length())]
    blocks = [torch.full((size // 4,), float("nan"), device=device) for size in sizes]
    synchronize(device)
    del blocks


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """|ours - reference| / |reference|, in float64; infinite where ours has a NaN."""
    wanted = reference.double()
    error = torch.linalg.vector_norm(ours.double() - wanted) / torch.linalg.vector_norm(wanted)
    value = float(error)
    return value if value == value else float("inf")


def compared(ours: Tensor, reference: Tensor, limit: float = FLOAT32_LIMIT, **more: Any) -> Found:
    """A check of one tensor against another."""
    if ours.shape != reference.shape:
        return Found(wrong=f"its shape is {tuple(ours.shape)}, not {tuple(reference.shape)}")
    return Found(relative_error(ours, reference), limit, **more)


def note_clocks(phase: Phase) -> None:
    """What nvidia-smi says of the card just after work, where there is one."""
    asked = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"
    said = "" if phase.dry else _nvidia_smi(asked)
    if said:
        phase.write("Clocks", f"after {phase.name}", note=f"{asked}: {said}")


def _driver() -> str | None:
    """As Linux tells it, without another program, or as nvidia-smi does."""
    path = Path("/proc/driver/nvidia/version")
    if path.exists():
        return path.read_text().splitlines()[0]
    return _nvidia_smi("driver_version") or None


def _nvidia_smi(asked: str) -> str:
    """Of the first card; "" where there is no nvidia-smi, or it does not answer."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return ""
    return (done.stdout.strip() or done.stderr.strip()).partition("\n")[0]
