"""Program: a plan with addresses, which steps run on the tensors of a stream's state."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.compiled.stepplan import Plan
from streamenc.compiled.values import FLOAT_BYTES, Buffer, Instruction, LaneStride, Outside, Row
from streamenc.compiled.weights import LINE_BYTES, Array, aligned
from streamenc.state import State
from streamenc_kernels.compiled.instruction import FIELDS, MANY_ROWS, Field, Kind

if TYPE_CHECKING:
    from streamenc.compiled.team import Needs, Team


class Program:
    """The step of a plan, for any number of lanes.

    Memory between its instructions is its own, so one step runs at a time; a stream's state is
    nowhere but in the tensors that come and go.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.output is not None
        self._plan = plan
        self._y_shape = (plan.output.rows, plan.output.channels)
        self._replaced = [index in plan.replaced for index in range(len(plan.leaves))]
        self._turn = threading.Lock()
        self._lanes = 0
        self._ops: Array
        self._fields: Array
        # Where in them which of the addresses that a step brings goes, and how far behind it.
        self._patches: tuple[Array, Array, Array]
        self._arena: Array
        self._needs: Needs
        _programs.add(self)

    def step(self, x: Tensor, state: State, team: Team, threads: int) -> tuple[Tensor, State]:
        """As Model.step in mid-stream, on contiguous float32 tensors."""
        x = x.contiguous()
        lanes = x.shape[0]
        y = torch.empty(lanes, *self._y_shape)
        before = [leaf.contiguous() for leaf in states.leaves(state)]
        after = [
            torch.empty_like(leaf) if new else leaf
            for leaf, new in zip(before, self._replaced, strict=True)
        ]
        with self._turn:
            if lanes > self._lanes:
                self._lay_out(lanes)
                self._needs = team.needs(self._ops, lanes)
            addresses = np.array([t.data_ptr() for t in (x, y, *before, *after)], np.int64)
            places, sources, offsets = self._patches
            self._fields[places] = addresses[sources] + offsets
            keep = (self._plan, self._arena, x, y, before, after)
            team.run(self._ops, lanes, threads, self._needs, keep)
        made = iter(after)
        return y.transpose(1, 2), states.map_state(lambda _: next(made), state)

    def _lay_out(self, lanes: int) -> None:
        """Gives all buffers their place, for up to so many lanes."""
        instructions = _gathered(self._plan.instructions)
        places, size = _places(instructions, lanes)
        self._arena = aligned((size,), np.uint8)
        base = self._arena.ctypes.data
        ops = aligned((len(instructions), FIELDS), np.int64)
        patches: list[tuple[int, int, int, int]] = []
        leaves = len(self._plan.leaves)
        starts = {"x": 0, "y": 1, "before": 2, "after": 2 + leaves}
        for index, instruction in enumerate(instructions):
            ops[index, Field.KIND] = instruction.kind
            for field, operand in instruction.fields.items():
                if isinstance(operand, Row):
                    buffer = operand.buffer
                    row = buffer.before + operand.row
                    inside = row * buffer.row_bytes + operand.channel * FLOAT_BYTES
                    ops[index, field] = base + places[buffer] + inside
                elif isinstance(operand, LaneStride):
                    ops[index, field] = operand.buffer.lane_bytes
                elif isinstance(operand, Outside):
                    source = starts[operand.what] + operand.leaf
                    patches.append((index, field, source, operand.offset))
                else:
                    ops[index, field] = operand
        rows, fields, sources, offsets = np.array(patches, np.int64).reshape(-1, 4).T
        self._patches = (rows * FIELDS + fields, sources.copy(), offsets.copy())
        self._ops, self._fields, self._lanes = ops, ops.reshape(-1), lanes


_programs: WeakSet[Program] = WeakSet()


def _after_fork() -> None:
    # Who ran a program meanwhile did not come along, and would never let go of it.
    for program in _programs:
        program._turn = threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_after_fork)


def _gathered(instructions: list[Instruction]) -> list[Instruction]:
    """With an instruction before each product of few rows that brings several lanes' together."""
    made: list[Instruction] = []
    for instruction in instructions:
        fields = instruction.fields
        if instruction.kind is Kind.PRODUCT:
            rows, stride, lane = (
                fields[field] for field in (Field.ROWS, Field.X_ROW, Field.X_LANE)
            )
            assert isinstance(rows, int) and isinstance(stride, int)
            assert isinstance(lane, LaneStride)
            if rows < MANY_ROWS and lane.buffer.lane_bytes != rows * stride:
                inside = fields[Field.INSIDE]
                assert isinstance(inside, int)
                target = Row(Buffer(rows, inside))
                fields = {**fields, Field.GATHERED: target}
                made.append(Instruction(Kind.GATHER, fields))
                instruction = Instruction(Kind.PRODUCT, fields)
        made.append(instruction)
    return made


def _places(instructions: list[Instruction], lanes: int) -> tuple[dict[Buffer, int], int]:
    """Where each buffer lies, and how many bytes they take: memory is used again once nobody needs
    what was there."""
    spans: dict[Buffer, list[int]] = {}
    for index, instruction in enumerate(instructions):
        for operand in instruction.fields.values():
            if isinstance(operand, Row):
                span = spans.setdefault(operand.buffer, [index, index])
                span[1] = index
    places: dict[Buffer, int] = {}
    total = 0
    # The largest first: the small ones find room between them.
    order = sorted(spans, key=lambda buffer: -buffer.lane_bytes)
    for buffer in order:
        size = -(-lanes * buffer.lane_bytes // LINE_BYTES) * LINE_BYTES
        first, last = spans[buffer]
        busy = sorted(
            (places[other], places[other] + lanes * other.lane_bytes)
            for other in places
            if spans[other][0] <= last and spans[other][1] >= first
        )
        at = 0
        for start, stop in busy:
            if at + size <= start:
                break
            at = max(at, -(-stop // LINE_BYTES) * LINE_BYTES)
        places[buffer] = at
        total = max(total, at + size)
    return places, total + FLOAT_BYTES
