"""Model: what every encoder and decoder is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from streamenc.errors import InputError
from streamenc.layers.streamed import Chain, Exportable, Prepared, Span, Streamed
from streamenc.models.signal import Scaled, Signal, as_signal
from streamenc.spec import Steps, StreamSpec

# An output item far behind a stream's start, where every window is full.
_FAR = 1 << 40


class Model(Streamed, Exportable):
    """An encoder or a decoder: a stateful `step` between two stateless ends.

        what the user pushes --before--> tensor --step--> tensor --after--> what the user gets

    An encoder's `after` quantises latents, a decoder's `before` looks codes up. So the number of
    codebooks may change at any frame, and streams are compared in the latents, where closeness has
    a meaning.

    `step` takes and gives time on axis 2: (batch, channels, time), or (batch, channels, time,
    height, width). It takes `spec.lead` items first, then multiples of `spec.hop`; with `end=True`
    any number, also none.

    Attributes:
        chain: The layers of `step`. Of what else `step` does, a model says itself how it goes
            through a stream: `steps` and `reach`.
        uncapturable: Why a step in mid-stream cannot be captured as a CUDA graph; "" where it can.
        runs_in: What its steps in mid-stream run in: "torch", "onnx", "compiled".
    """

    spec: StreamSpec
    chain: Chain
    runs_in: ClassVar[str] = "torch"
    uncapturable: str = ""
    _fingerprint: str = ""

    @property
    def steps(self) -> Steps:
        """How many items the first step and the later ones take and give; what `spec` says."""
        return self.chain.steps

    def reach(self, first: int, last: int) -> Span:
        """Which input items the output items `first` to `last` depend on: the first, or None where
        all the past counts, and the last."""
        return self.chain.reach(first, last)

    def receptive_field(self) -> int | None:
        """Input items that one output item depends on at most, from the first to the last; None
        where all the past counts."""
        most = 0
        start = self.steps.hop_out * _FAR
        for item in range(start, start + self.steps.hop_out):
            first, last = self.reach(item, item)
            if first is None:
                return None
            most = max(most, last - first + 1)
        return most

    @property
    def like(self) -> Tensor:
        """A tensor of the model's device and dtype, to make others after it."""
        # Each step asks for it; `parameters()` takes as long as the whole rest of what it does.
        for kept in ("_parameters", "_buffers"):
            for module in self.modules():
                for tensor in getattr(module, kept).values():
                    if tensor is not None and tensor.is_floating_point():
                        found: Tensor = tensor
                        return found
        raise TypeError(f"{type(self).__name__} has no tensor of floats")

    def signal(self, x: Any) -> Signal:
        """What a user pushes as a signal; models of text make tokens of texts here.

        Raises InputError for what is neither a tensor nor an array.
        """
        return as_signal(x)

    def before(self, x: Signal) -> Tensor:
        """Checks what came and brings it to (batch, channels, time), or (batch, channels, time,
        height, width). Raises InputError."""
        if isinstance(x, Scaled):
            raise InputError(f"{self.spec.name} takes a tensor, got codes with a scale")
        return x

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        """Brings the output of `step` to what the user gets; `codebooks` limits the codes."""
        return y

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an output of no items, before `after`; `shape`: of an input of `step`."""
        return (shape[0], self.spec.output.channels, 0)

    def first_input(self, item: int) -> Fraction:
        """Index of the input item with which an output item begins, or a fraction of one.

        For models of images, each of which has a time of its own.
        """
        return self.spec.first_input(item)

    def fingerprint(self) -> str:
        """Identifies the model by its weights and all that it was configured with; computed once.

        A model with other numbers has another one, be it only the epsilon of a norm: what tells one
        is every public attribute of it and of its modules. What begins with an underscore is
        derived from those, or kept for speed.
        """
        if not self._fingerprint:
            digest = hashlib.sha256()
            for name, module in self.named_modules():
                digest.update(f"{name} {_described(module)}\n".encode())
            for name, tensor in self.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                content = tensor.detach().cpu().contiguous().view(-1)
                digest.update(content.view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    def prepare(self) -> None:
        """Called once the weights are in place and have their dtype."""
        for module in self.modules():
            if isinstance(module, Prepared):
                module.prepare()

    def warm_up(self, hops: int = 1) -> None:
        """Called before a stream's first step of `hops` hops: what takes time is done now.

        May take seconds: where others share a thread with the stream, call it before, elsewhere.
        """

    def check_codebooks(self, codebooks: int, least: int = 1) -> int:
        """Raises InputError where the model has no such number of codebooks."""
        return self.spec.check_codebooks(codebooks, least)

    def check_codes(self, codes: Tensor) -> Tensor:
        """Codes for a decoder, as int64: (batch, codebooks, frames) of entries that exist.

        Raises InputError.
        """
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.spec.input.channels:
            raise InputError(
                f"codes have shape {tuple(codes.shape)}; {self.spec.name} wants (batch, 1 to "
                f"{self.spec.input.channels} codebooks, frames)"
            )
        return self.check_entries(codes)

    def check_entries(self, codes: Tensor) -> Tensor:
        """Codes of any shape, as int64: integers that are entries of the model's codebooks.

        Raises InputError.
        """
        name, size = self.spec.name, self.spec.codebook_size
        if codes.is_floating_point():
            raise InputError(f"codes have dtype {codes.dtype}; {name} wants integers")
        codes = codes.long()
        if self._exported:  # an exported step has no errors to raise
            return codes
        if not codes.numel():
            return codes
        low, high = map(int, codes.aminmax())
        if low < 0 or high >= size:
            raise InputError(
                f"codes lie in {low}..{high}; {name} has entries 0..{size - 1}: are these codes of "
                "another model?"
            )
        return codes


def _described(module: nn.Module) -> str:
    """A module's type and its public attributes; its tensors and modules are described apart."""
    told = {
        name: _plain(value, f"{type(module).__name__}.{name}")
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
    }
    return f"{type(module).__qualname__} {sorted(told.items())}"


def _plain(value: Any, where: str) -> str:
    """Text that is the same in every process, and another for another value.

    Raises TypeError for what cannot be told apart so.
    """
    if isinstance(value, float):
        # 10000 and 10000.0 are one number: layouts write it either way.
        return repr(int(value) if value.is_integer() else float(value))
    if value is None or isinstance(value, bool | int | str | Fraction):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(_plain(item, where) for item in value)})"
    if is_dataclass(value) and not isinstance(value, type):
        told = ((field.name, getattr(value, field.name)) for field in fields(value))
        inner = ", ".join(f"{name}={_plain(part, f'{where}.{name}')}" for name, part in told)
        return f"{type(value).__name__}({inner})"
    raise TypeError(
        f"{where} is a {type(value).__name__}; wanted numbers, text, or tuples and dataclasses of "
        "them, as it tells one model from another: begin its name with an underscore if it does not"
    )
