"""Instructions: rows of 64-bit integers, field by field; no numba.

Rows are channels-last: position t of a lane lies at base + lane * lane stride + t * row stride,
all in bytes. What a field means to which instruction, the functions that run it say.
"""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What an instruction does."""

    PRODUCT = 0
    DOT = 1
    NORM = 2
    ATTEND = 3
    TURN = 4
    COPY = 5
    ROTARY = 6
    ADVANCE = 7
    SPREAD = 8
    GATHER = 9
    ACTIVATE = 10
    FILL = 11
    NEAREST = 20
    LOOK_UP = 21
    TRANSFORM = 25
    INVERT = 26
    COMPRESS = 27
    DIRECT = 28
    OVERLAP = 29
    DEPTHWISE = 30
    CELL = 35
    ADD = 36
    GATE = 37
    CHUNKS = 40
    RUNNING = 41
    SPLIT = 42
    TILED = 43


class Field(IntEnum):
    """Where in its row an instruction has what."""

    KIND = 0
    ROWS = 1  # positions of a lane
    OUT = 2  # channels that come out
    INSIDE = 3  # channels, or products, that are summed up
    PANELS = 4  # address of a table with the address and the type of each panel of weights
    SCALE = 5
    BIAS = 6
    X = 7
    X_ROW = 8
    X_LANE = 9
    GATHERED = 10  # where rows of several lanes are brought together; 0 where they already lie so
    Y = 11
    Y_ROW = 12
    Y_LANE = 13
    Z = 14  # where the same goes behind an activation
    Z_ROW = 15
    Z_LANE = 16
    ACTIVATION = 17
    RESIDUAL = 18
    RESIDUAL_ROW = 19
    RESIDUAL_LANE = 20
    RESIDUAL_ROWS = 21  # how many positions of a lane it is added to
    TAIL = 22  # where the rows from MAIN_ROWS on go, as they are
    TAIL_LANE = 23
    MAIN_ROWS = 24
    A = 25
    B = 26
    C = 27
    D = 28
    E = 29
    F = 30
    G = 31


FIELDS = 32


class Activation(IntEnum):
    """What stands between a product and its second destination."""

    NONE = 0
    ELU = 1
    GELU = 2
    GELU_TANH = 3
    SILU = 4


class WeightType(IntEnum):
    """How a panel of weights is stored; of int16 each output has a scale."""

    FLOAT32 = 0
    INT16 = 1


# What each thread has for itself.
SCRATCH_BYTES = 1 << 20
# Outputs of a panel; weights lie as (panels, inside, PANEL).
PANEL = 64
# From so many rows on a product goes through all panels for a block of rows, and not the other way.
MANY_ROWS = 48
