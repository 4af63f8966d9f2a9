"""Stream: one live stream through a model, for chunks of any size."""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from streamenc.errors import InputError, SnapshotError
from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal, cat, is_signal, items
from streamenc.models.snapshot import Snapshot, read_snapshot, remember_form
from streamenc.state import State
from streamenc.threads import StepThreads
from streamenc_kernels import FullFloat32

log = logging.getLogger(__name__)

# Of samples whose full scale is 1: 36 dB above it. No microphone and no mix comes to that, 16-bit
# numbers in floats do at once; and some orders of magnitude more would stay in a model's running
# statistics or its memory for minutes, or end in numbers that are not finite.
MAX_SAMPLE = 64.0
# Of pixels: what a reconstruction or a filter adds to [-1, 1] is within, 0..255 is not.
MAX_LEVEL = 2.0


class Holder(Protocol):
    """Who holds the states of streams in a batch."""

    def state_of(self, stream: Stream) -> State:
        """A view of the state of a stream that it holds."""


class Stream:
    """Pushes chunks of any size through a model; how they were cut never changes the output.

    Steps always have the same lengths, `lead` and then `hops` hops, whatever was pushed at once: so
    delivery changes not even the last bit. More hops a step cost latency and save time on long
    files.

    Args:
        codebooks: How many codebooks come out, from the next step on; None for all. May be set at
            any time.

    Attributes:
        state: What the model carries from step to step; None before the first one.
        holder: Who holds the state in a batch; None where the stream has it itself.
        pushed: Input items since the stream's start.
        pending: Those of them that wait for a step to be complete.
        emitted: Output items since the stream's start.
        shape: Of an item that goes into a step: (channels,), or (channels, height, width).
    """

    def __init__(
        self, model: Model, *, batch: int = 1, hops: int = 1, codebooks: int | None = None
    ) -> None:
        if batch < 1 or hops < 1:
            raise InputError(f"batch and hops are at least 1; got {batch} and {hops}")
        self.model = model
        self.batch = batch
        self.hops = hops
        self._codebooks: int | None = None
        self.codebooks = codebooks
        self._state: State = None
        self.holder: Holder | None = None
        self.pushed = self.pending = self.emitted = 0
        self._waiting: list[Tensor] = []
        self.shape: tuple[int, ...] = (0,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.reset()

    @property
    def state(self) -> State:
        return self._state if self.holder is None else self.holder.state_of(self)

    @state.setter
    def state(self, state: State) -> None:
        self._state, self.holder = state, None

    def lend(self, holder: Holder) -> None:
        """Leaves the state to `holder`, which has got it, until another one is set."""
        self._state, self.holder = None, holder

    @property
    def started(self) -> bool:
        """Whether the stream is past its first step."""
        return self._state is not None or self.holder is not None

    @property
    def codebooks(self) -> int | None:
        return self._codebooks

    @codebooks.setter
    def codebooks(self, codebooks: int | None) -> None:
        self._codebooks = None if codebooks is None else self.model.check_codebooks(codebooks)

    def push(self, chunk: Any) -> Signal:
        """Takes the next items, any number of them, and gives what has become final.

        Args:
            chunk: (batch, channels, time), or (channels, time), or (time,) where there is one
                channel; a torch tensor, a numpy array or a list. For decoders codes (batch,
                codebooks, frames). Of video (batch, channels, time, height, width), where the batch
                may be left out: bytes, or floats in [-1, 1].

        Returns:
            (batch, channels, items), possibly with no items.

        Raises:
            InputError: For a wrong shape and for samples that are not finite or above MAX_SAMPLE;
                the stream then stands as it stood before, and may go on.
        """
        with torch.inference_mode():
            self.take(chunk)
            codebooks = self._codebooks  # one number for the whole call, whoever sets it meanwhile
            outputs = []
            while self.ready:
                outputs.append(self.step(codebooks))
            return self.joined(outputs, codebooks)

    def take(self, chunk: Any) -> None:
        """The first half of `push`: takes the next items, and leaves the steps to the caller."""
        x = self._enter(chunk)
        came = items(x)
        if not self.has_room(came):
            limit = self.model.spec.limit
            raise InputError(
                f"a stream of {self.pushed} items got {came} more; {self.model.spec.name} was "
                f"loaded for at most {limit}: load it with a higher limit, or in a mode without one"
            )
        self.shape = _item_shape(x)
        if came:
            # The caller may fill its buffer anew: what may still share it is copied here.
            shared = is_signal(chunk)
            x = x.clone(memory_format=torch.contiguous_format) if shared else x.contiguous()
            self._waiting.append(x)
        self.pushed += came
        self.pending += came

    def put(self, x: Tensor) -> None:
        """Takes what `take` would find right, and nobody else writes: (batch, channels, items) on
        the model's device, of its dtype."""
        self.shape = _item_shape(x)
        self._waiting.append(x)
        self.pushed += items(x)
        self.pending += items(x)

    def has_room(self, count: int) -> bool:
        """Whether a stream of the model may have so many items more."""
        limit = self.model.spec.limit
        return not limit or self.pushed + count <= limit

    @property
    def ready(self) -> bool:
        """Whether enough items wait for a step."""
        return self.pending >= self.size

    def step(self, codebooks: int | None) -> Signal:
        """One step on what waits, where the stream is `ready`."""
        first = not self.started
        if first:
            self.model.warm_up(self.hops)
        with StepThreads(self.model.spec, self.hops), self._in_full():
            y, state = self.model.step(self.next_input(), self.state)
            if first:
                remember_form(self.model, self.shape, state)
            self.state = state
            self.emitted += items(y)
            # Step by step: how many frames are quantised at once moves the last bits of distances.
            return self.model.after(y, codebooks)

    @property
    def size(self) -> int:
        """Items that the next step takes."""
        spec = self.model.spec
        return self.hops * spec.hop if self.started else spec.lead

    def next_input(self) -> Tensor:
        """Hands out what the next step takes, with time on axis 2, where it is `ready`."""
        assert self.ready
        size = self.size
        waiting = self._waiting
        x = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=2)
        self.pending -= size
        if not self.pending:
            self._waiting = []
            return x
        rest = x[:, :, size:]
        if self.pending < self.hops * self.model.spec.hop:
            rest = rest.clone()  # which keeps no long chunk alive
        self._waiting = [rest]
        return x[:, :, :size]

    def joined(self, outputs: list[Signal], codebooks: int | None) -> Signal:
        """The outputs of some steps as one; of none, one without items."""
        return cat(outputs) if outputs else self._no_output(codebooks)

    def flush(self) -> Signal:
        """Ends the stream, its tail treated as the published model does; the next one is new."""
        with torch.inference_mode():
            codebooks, outputs = self._codebooks, []
            if self.pushed:
                rest = self._waiting or [self._nothing()]
                with StepThreads(self.model.spec, self.hops), self._in_full():
                    y, _ = self.model.step(torch.cat(rest, dim=2), self.state, end=True)
                    outputs.append(self.model.after(y, codebooks))
            self.reset()
            return self.joined(outputs, codebooks)

    def reset(self) -> None:
        """Forgets everything: the next chunk starts a new stream."""
        self.state, self._waiting = None, []
        self.pushed = self.pending = self.emitted = 0

    def snapshot(self) -> bytes:
        """The whole stream as bytes, to go on with in another process. Never a pickle."""
        return Snapshot(
            state=self.state,
            waiting=torch.cat(self._waiting, dim=2) if self._waiting else None,
            shape=self.shape,
            hops=self.hops,
            pushed=self.pushed,
            emitted=self.emitted,
            codebooks=self._codebooks,
        ).to_bytes(self.model, self.batch)

    def restore(self, blob: bytes) -> None:
        """Goes on where the snapshot was taken; this stream's own past is forgotten.

        Raises:
            SnapshotError: Where it is of another model, batch or version, damaged, or not what a
                stream through this model can have left; the stream then stands as it stood before.
        """
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise SnapshotError(f"a snapshot is bytes; got a {type(blob).__name__}")
        snapshot = read_snapshot(bytes(blob), self.model, self.batch, self.hops)
        self.codebooks = snapshot.codebooks
        self._waiting = [] if snapshot.waiting is None else [snapshot.waiting]
        self.pending = 0 if snapshot.waiting is None else snapshot.waiting.shape[2]
        self.state, self.shape, self.hops = snapshot.state, snapshot.shape, snapshot.hops
        self.pushed, self.emitted = snapshot.pushed, snapshot.emitted
        self.model.warm_up(self.hops)

    @property
    def _empty_shape(self) -> tuple[int, ...]:
        """Of an input of no items."""
        return (self.batch, *self.shape[:1], 0, *self.shape[1:])

    def _nothing(self) -> Tensor:
        """An input of no items, for a tail that is empty."""
        return self.model.like.new_zeros(self._empty_shape)

    def _enter(self, chunk: Any) -> Tensor:
        x = self.model.signal(chunk)
        if isinstance(x, Tensor):
            x = self._converted(x)
        if self.model.spec.input.kind != "codes":
            return self._check(self.model.before(x))
        with self._in_full():  # what codes stand for is often a product
            return self._check(self.model.before(x))

    def _in_full(self) -> FullFloat32:
        return FullFloat32(self.model.like.device.type)

    def _converted(self, x: Tensor) -> Tensor:
        """A tensor with all axes, of the model's dtype and on its device."""
        spec, like = self.model.spec, self.model.like
        if x.ndim == 1 and spec.input.kind != "codes" and spec.input.channels == 1:
            x = x[None]
        axes = spec.input.axes
        if x.ndim == 2 + axes:
            x = x[None]
        if spec.input.kind == "text":
            return x.to(like.device)  # tokens, which the model checks
        if spec.input.kind != "codes":
            channels = spec.input.channels
            if not axes and (x.ndim != 3 or x.shape[1] != channels):
                raise InputError(
                    f"got shape {tuple(x.shape)}; {spec.name} wants (batch {self.batch}, "
                    f"{channels} channel{'s' * (channels > 1)}, samples) at "
                    f"{float(spec.input.rate):g} Hz"
                )
            if spec.input.kind == "video" and x.dtype == torch.uint8:
                x = x.to(like.device).to(like.dtype) / 127.5 - 1
            elif spec.input.kind == "video":
                _check_levels(x, spec.name)
            if not x.is_floating_point():
                raise InputError(
                    f"got {x.dtype} samples; wanted floats in [-1, 1]: divide 16-bit samples by "
                    "32768"
                )
            return x.to(like.device, like.dtype)
        return x.to(like.device)

    def _check(self, x: Tensor) -> Tensor:
        if x.shape[0] != self.batch:
            raise InputError(
                f"got a batch of {x.shape[0]}; this stream was opened with batch={self.batch}"
            )
        if x.is_floating_point():
            self._check_values(x)
        shape = _item_shape(x)
        if self.pushed and shape != self.shape:
            raise InputError(
                f"got items of shape {shape} in a stream of {self.shape}; flush it and start a "
                "new one, or bring them to one size"
            )
        return x

    def _check_values(self, x: Tensor) -> None:
        port = self.model.spec.input
        largest = MAX_SAMPLE if port.kind == "audio" else torch.finfo(x.dtype).max
        # A NaN is the largest of all, and no number is above it.
        if not x.numel() or x.abs().max().item() <= largest:
            return
        what, finite = "frames" if port.axes else "samples", torch.isfinite(x)
        if not finite.all():
            bad = (~finite).transpose(0, 2).flatten(1).any(dim=1).nonzero()
            raise InputError(
                f"{len(bad)} of {x.shape[2]} {what} are not finite, the first at {int(bad[0])} "
                "of this chunk; repair it or leave it out"
            )
        raise InputError(
            f"got samples up to {float(x.abs().max()):g}; wanted floats in [-1, 1], and at most "
            f"{largest:g}: divide numbers of 16 bits by 32768"
        )

    def _no_output(self, codebooks: int | None) -> Signal:
        spec = self.model.spec
        like = self.model.like
        if spec.output.axes:
            shape = self.model.output_shape(self._empty_shape)
            return self.model.after(like.new_zeros(shape), codebooks)
        channels = spec.output.channels
        if spec.output.kind == "codes" and codebooks is not None:
            channels = codebooks
        nothing = like.new_zeros(self.batch, channels, 0)
        if spec.output.kind != "codes":
            return nothing
        scale = like.new_zeros(self.batch, 1, 0)
        return Scaled(nothing.long(), scale) if spec.scaled else nothing.long()


def _check_levels(x: Tensor, name: str) -> None:
    """Raises InputError where pixels are no floats in about [-1, 1]."""
    if not x.is_floating_point():
        raise InputError(f"got {x.dtype} pixels; wanted bytes, or floats in [-1, 1]")
    if not x.numel():
        return
    low, high = float(x.min()), float(x.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return  # said with its place, once the axes are known
    if low < -MAX_LEVEL or high > MAX_LEVEL:
        raise InputError(
            f"got pixels in {low:g}..{high:g}; {name} wants bytes, or floats in [-1, 1]: make "
            "x / 127.5 - 1 of 0..255, and undo a normalisation, which the model does itself"
        )
    if 0 <= low < high <= 1:
        _doubt_levels(name)


@cache
def _doubt_levels(name: str) -> None:
    log.warning(
        "%s: pixels without a negative one are taken as floats in [-1, 1], where 0 is mid-grey; "
        "if they are in [0, 1], make 2 * x - 1 of them",
        name,
    )


def _item_shape(x: Tensor) -> tuple[int, ...]:
    """The axes of one item: all but the batch and time."""
    return (x.shape[1], *x.shape[3:])
