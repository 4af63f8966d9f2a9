"""Model: what every encoder and decoder is; Scaled, for codes that come with a volume."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from streamenc.errors import InputError
from streamenc.layers.streamed import Prepared, Streamed
from streamenc.spec import StreamSpec
from streamenc_kernels import exporting


class Scaled(NamedTuple):
    """Codes with the factor that their decoded waveform is multiplied by.

    codes  (batch, codebooks, frames) int64.
    scale  (batch, 1, frames): the same for all frames of a segment.
    """

    codes: Tensor
    scale: Tensor


Signal: TypeAlias = "Tensor | Scaled"


def concatenate(parts: Sequence[Signal]) -> Signal:
    """One or several signals of the same kind, one after the other in time, their third axis."""
    if len(parts) == 1:
        return parts[0]
    scaled = [part for part in parts if isinstance(part, Scaled)]
    if scaled:
        codes, scales = zip(*scaled, strict=True)
        return Scaled(torch.cat(codes, dim=2), torch.cat(scales, dim=2))
    return torch.cat([part for part in parts if isinstance(part, Tensor)], dim=2)


class Model(Streamed):
    """An encoder or a decoder: a stateful `step` between two stateless ends.

        what the user pushes --before--> tensor --step--> tensor --after--> what the user gets

    An encoder's `after` quantises latents, a decoder's `before` looks codes up. So the number of
    codebooks may change at any frame, and streams are compared in the latents, where closeness has
    a meaning.

    `step` takes and gives time on axis 2: (batch, channels, time), or (batch, channels, time,
    height, width). It takes `spec.lead` items first, then multiples of `spec.hop`; with `end=True`
    any number, also none.

    uncapturable  Why a step in mid-stream cannot be captured as a graph; "" where it can.
    """

    spec: StreamSpec
    uncapturable: str = ""
    _fingerprint: str = ""

    @property
    def like(self) -> Tensor:
        """A tensor of the model's device and dtype, to make others after it."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next(t for t in tensors if t.is_floating_point())

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
        spec = self.spec
        if item < spec.lead_out:
            return Fraction(item * spec.lead, spec.lead_out)
        return spec.lead + Fraction((item - spec.lead_out) * spec.hop, spec.hop_out)

    def fingerprint(self) -> str:
        """Identifies the model by its spec and all its weights; computed once."""
        if not self._fingerprint:
            digest = hashlib.sha256(repr(self.spec).encode())
            for name, tensor in self.state_dict().items():
                digest.update(name.encode())
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
        if not self.spec.codebook_size:
            raise InputError(f"{self.spec.name} has no codebooks; {codebooks} were asked for")
        if not isinstance(codebooks, int):
            raise InputError(f"a number of codebooks is a whole number; got {codebooks!r}")
        port = self.spec.output if self.spec.output.kind == "codes" else self.spec.input
        if not least <= codebooks <= port.channels:
            raise InputError(
                f"{self.spec.name} has {least} to {port.channels} codebooks; {codebooks} were "
                "asked for"
            )
        return codebooks


def check_codes(spec: StreamSpec, codes: Tensor) -> Tensor:
    """Codes for a decoder: (batch, codebooks, frames) of entries that exist. Raises InputError."""
    if codes.ndim != 3 or not 1 <= codes.shape[1] <= spec.input.channels:
        raise InputError(
            f"codes have shape {tuple(codes.shape)}; {spec.name} wants (batch, 1 to "
            f"{spec.input.channels} codebooks, frames)"
        )
    return check_entries(spec, codes)


def check_entries(spec: StreamSpec, codes: Tensor) -> Tensor:
    """Codes of any shape, as int64: integers that are entries of the model's codebooks.

    Raises InputError.
    """
    if codes.is_floating_point():
        raise InputError(f"codes have dtype {codes.dtype}; {spec.name} wants integers")
    codes = codes.long()
    if exporting():  # a graph has no errors to raise
        return codes
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= spec.codebook_size):
        raise InputError(
            f"codes lie in {int(codes.min())}..{int(codes.max())}; {spec.name} has entries "
            f"0..{spec.codebook_size - 1}: are these codes of another model?"
        )
    return codes
