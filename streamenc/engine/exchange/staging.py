"""Staging: the way of chunks into a batch on the model's device, and of its outputs back.

A chunk that comes as sound usually does becomes bytes on its caller's side, where it is copied, and
no tensor of its own. A tick joins the bytes of all into one matrix, looks at their values at once,
and brings it to the device in one copy; what it gives comes back in one copy, and sessions get rows
of that. Whatever comes otherwise (texts, images, codes, lists, chunks of odd lengths) goes through
`Stream.take`, whose errors are also those of staged chunks that the quick look does not accept.

On a GPU both copies go through pinned memory and in the order of the steps' own stream: as the
worker has one tick in flight, a stream for copies would have nothing to run beside. The worker
waits by an event, asleep, and the event loops not at all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamenc.engine.exchange.outputs import Array, Output
from streamenc.models.model import Model
from streamenc.models.signal import Signal, scale, values
from streamenc.spec import ScaledCodes
from streamenc.stream import MAX_SAMPLE

# A chunk's numbers, (channels, items) of the staged type, and how many items they are.
Staged: TypeAlias = "tuple[bytes, int]"

_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("float32"),
    torch.float64: np.dtype("float64"),
}
# What a GPU's codes are copied back as; numpy sees the same bits as the type that was meant.
_SAME_BITS = {"uint8": torch.uint8, "uint16": torch.int16}


class Staging:
    """Of one model.

    dtype    Of staged numbers: the model's own, or float32 where numpy has not got it.
    direct   Whether what comes is what a step takes: sound, which nothing is done to before.
    """

    def __init__(self, model: Model) -> None:
        port, like = model.spec.input, model.like
        self._like = like  # found once, by a walk through the whole model
        self.dtype = _NUMPY.get(like.dtype, np.dtype("float32"))
        self._channels = port.channels
        self.direct = port.kind == "audio" and _takes_as_it_is(model)
        self._usual = (1, port.channels, model.spec.hop)
        self._pinned = torch.empty(0)
        self._read: Any = None  # the event at which the device has read what is pinned
        self._codes = model.spec.output.dtype if model.spec.output.kind == "codes" else ""

    def staged(self, chunk: Any) -> Staged | None:
        """A chunk's numbers, copied; None for what `Stream.take` has to look at."""
        if not self.direct:
            return None
        if isinstance(chunk, Tensor):
            # Of other types, the rounding is torch's.
            if chunk.dtype not in _NUMPY or chunk.requires_grad or not chunk.device.type == "cpu":
                return None
            chunk = chunk.numpy()
        elif not isinstance(chunk, np.ndarray):
            return None
        if chunk.shape != self._usual:
            shape = chunk.shape
            if len(shape) == 1:
                shape = (1, *shape)
            if len(shape) == 2:
                shape = (1, *shape)
            if len(shape) != 3 or shape[:2] != self._usual[:2] or not shape[2]:
                return None
        if chunk.dtype is not self.dtype:
            if chunk.dtype.kind != "f":
                return None
            with np.errstate(over="ignore"):  # what is infinite is seen below
                chunk = chunk.astype(self.dtype)
        return chunk.tobytes(), chunk.shape[-1]

    def staged_rows(self, matrix: Array) -> list[Staged] | None:
        """The same for each of an array (rows, channels, items); None where they cannot be."""
        if not self.direct or matrix.dtype.kind != "f" or matrix.shape[1] != self._channels:
            return None
        with np.errstate(over="ignore"):
            whole = matrix.astype(self.dtype, copy=False).tobytes()
        size, count = len(whole) // max(1, len(matrix)), matrix.shape[2]
        if not count:
            return None
        return [(whole[at : at + size], count) for at in range(0, len(whole), size)]

    def matrix(self, rows: Sequence[bytes]) -> Array:
        """Staged chunks of one length as (rows, channels, items)."""
        joined = np.frombuffer(bytearray().join(rows), self.dtype)
        return joined.reshape(len(rows), self._channels, -1)

    def unusual(self, matrix: Array) -> list[int]:
        """The rows that may hold what no stream takes."""
        # Also false where one is not a number.
        if matrix.max() <= MAX_SAMPLE and matrix.min() >= -MAX_SAMPLE:
            return []
        largest = np.abs(matrix).reshape(len(matrix), -1).max(axis=1)
        return [int(row) for row in np.flatnonzero(~(largest <= MAX_SAMPLE))]

    def to_device(self, matrix: Array) -> Tensor:
        """A matrix as a step takes it."""
        like = self._like
        x = torch.from_numpy(matrix)
        if like.is_cuda:
            if self._pinned.numel() < x.numel():
                self._pinned = torch.empty(2 * x.numel(), dtype=x.dtype, pin_memory=True)
            if self._read is not None:
                self._read.synchronize()  # long ago, but where a step failed or a tick takes two
            x = self._pinned[: x.numel()].view(x.shape).copy_(x)
            x = x.to(like.device, non_blocking=True)
            self._read = _event(like.device)
        return x.to(like.dtype)

    def to_host(self, signal: Signal) -> Output:
        """A step's output as sessions give it; waits for the device."""
        factors = scale(signal)
        # A model whose quantiser was taken away gives latents.
        codes = "" if values(signal).is_floating_point() else self._codes
        tensors = [_plain(values(signal), codes)]
        if factors is not None:
            tensors.append(_plain(factors, ""))
        if tensors[0].is_cuda:
            tensors = [_copied_back(tensor) for tensor in tensors]
            _event(values(signal).device).synchronize()
        arrays = [tensor.numpy() for tensor in tensors]
        if codes:
            narrow: NDArray[Any] = arrays[0].astype(codes, copy=False)
            arrays[0] = narrow
        return arrays[0] if factors is None else ScaledCodes(*arrays)


class Timing:
    """Within it, a step is timed: by events on a GPU, where launching it takes no time, and by the
    clock on a CPU.

    duration_ns  From the first thing that the step does on its device to the last.
    by_events    Whether events have measured it.
    """

    def __init__(self, device: torch.device) -> None:
        self.by_events = device.type == "cuda"
        self.duration_ns = 0
        self._device = device

    def __enter__(self) -> Timing:
        if self.by_events:
            self._first = _event(self._device, timed=True)
        self._start_ns = time.perf_counter_ns()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self.by_events and kind is None:
            last = _event(self._device, timed=True)
            last.synchronize()
            self.duration_ns = round(1e6 * self._first.elapsed_time(last))
        else:
            self.duration_ns = time.perf_counter_ns() - self._start_ns


def _event(device: torch.device, *, timed: bool = False) -> Any:
    """What happens once a GPU has done all that it was told so far; whoever waits sleeps. The
    device is named, as the worker's current one is another where a model lies on the second."""
    event = torch.cuda.Event(enable_timing=timed, blocking=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _takes_as_it_is(model: Model) -> bool:
    """Whether `before` gives the model's own steps what came."""
    spec = model.spec
    probe = model.like.new_zeros(1, spec.input.channels, spec.lead)
    return model.before(probe) is probe


def _plain(tensor: Tensor, codes: str) -> Tensor:
    """Of a type that numpy has, in which codes take few bytes on their way."""
    if codes:
        return tensor.to(_SAME_BITS.get(codes, tensor.dtype)) if tensor.is_cuda else tensor
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _copied_back(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
