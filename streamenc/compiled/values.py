"""What a plan speaks of before any address is known: buffers, and values that lie in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from streamenc_kernels.compiled.instruction import Activation, Field, Kind

if TYPE_CHECKING:
    from streamenc.compiled.lowering.sheet import Sheet

FLOAT_BYTES = 4


@dataclass(eq=False)
class Buffer:
    """Rows of float32 for each lane: those of a value, and some before and behind them.

    Attributes:
        taken: Whether somebody fills the rows before or behind in a way of its own.
    """

    rows: int
    channels: int
    before: int = 0
    after: int = 0
    taken: bool = False

    @property
    def row_bytes(self) -> int:
        return self.channels * FLOAT_BYTES

    @property
    def lane_bytes(self) -> int:
        return (self.before + self.rows + self.after) * self.row_bytes


class Row(NamedTuple):
    """The address of a row of a buffer, 0 is the value's first one; or of a channel in it."""

    buffer: Buffer
    row: int = 0
    channel: int = 0


class LaneStride(NamedTuple):
    """The bytes of a lane of a buffer."""

    buffer: Buffer


class Outside(NamedTuple):
    """An address that each step brings: of its input, its output, or of a leaf of the state.

    what    "x", "y", "before" or "after".
    leaf    Which one.
    offset  Bytes.
    """

    what: str
    leaf: int = 0
    offset: int = 0


Operand: TypeAlias = "int | Row | LaneStride | Outside"


@dataclass(eq=False)
class Instruction:
    """An instruction in words."""

    kind: Kind
    fields: dict[Field, Operand] = field(default_factory=dict)


@dataclass(eq=False)
class Value:
    """What an instruction gives: `rows` positions of each lane, `channels` each.

    Attributes:
        maker: The instruction, which writes to Y; and to Z behind `behind`, where it can. None for
            an input, which a first copy brings in.
        behind: The activation that belongs to the value: it lies at Z alone.
        slots: Whether the maker can write to Z too.
        rows_each: Rows of the value for each row of the maker.
    """

    plan: Sheet
    rows: int
    channels: int
    maker: Instruction | None
    behind: Activation = Activation.NONE
    slots: bool = True
    rows_each: int = 1
    placed: list[tuple[Activation, Buffer]] = field(default_factory=list)

    def activated(self, activation: Activation) -> Value | Activated:
        """The value behind an activation."""
        return self if activation is Activation.NONE else Activated(self, activation)

    def place(
        self, activation: Activation = Activation.NONE, before: int = 0, after: int = 0
    ) -> Buffer:
        """Where the value lies behind an activation, with so many rows around it that the caller
        fills."""
        wants_more = bool(before or after)
        for known, buffer in self.placed:
            if known is activation and not (wants_more and buffer.taken):
                buffer.before, buffer.after = (
                    max(buffer.before, before),
                    max(buffer.after, after),
                )
                buffer.taken |= wants_more
                return buffer
        buffer = Buffer(self.rows, self.channels, before, after, wants_more)
        self._write(activation, buffer)
        self.placed.append((activation, buffer))
        return buffer

    def _write(self, activation: Activation, buffer: Buffer) -> None:
        """Has the maker write there too, or an instruction of its own."""
        maker = self.maker
        if maker is None:
            if activation is Activation.NONE:
                self.plan.bring_in(self, buffer)
            else:
                self.plan.activation_of(self.place(), activation, buffer)
            return
        if activation is Activation.NONE and self.behind is Activation.NONE:
            if Field.Y not in maker.fields:
                self._to(Field.Y, buffer)
                return
        elif self.slots and (activation is Activation.NONE or self.behind is Activation.NONE):
            if Field.Z not in maker.fields:
                self._to(Field.Z, buffer)
                maker.fields[Field.ACTIVATION] = int(
                    self.behind if activation is Activation.NONE else activation
                )
                return
        self.plan.activation_of(self.place(), activation, buffer)

    def _to(self, place: Field, buffer: Buffer) -> None:
        assert self.maker is not None
        self.maker.fields |= {
            place: Row(buffer),
            Field(place + 1): self.rows_each * buffer.row_bytes,
            Field(place + 2): LaneStride(buffer),
        }


@dataclass(eq=False)
class Activated:
    """A value behind an activation, as the layers that follow see it."""

    of: Value
    activation: Activation

    @property
    def rows(self) -> int:
        return self.of.rows

    @property
    def channels(self) -> int:
        return self.of.channels

    def place(
        self, activation: Activation = Activation.NONE, before: int = 0, after: int = 0
    ) -> Buffer:
        if activation is Activation.NONE:
            return self.of.place(self.activation, before, after)
        plan = self.of.plan
        return plan.copied(self).place(activation, before, after)


AnyValue: TypeAlias = "Value | Activated"
