"""The interpreter of programs, in one thread or with the help of others.

An instruction that is worth it is cut into parts, which the threads claim one by one. The thread
that runs the program waits for none that has claimed nothing, so that helpers that the system does
not let run cost nothing.
"""

from __future__ import annotations

from typing import Any

from numba import carray, int64

from streamenc_kernels.compiled.attention import advance, attend, rotary
from streamenc_kernels.compiled.features.chunked import attend_chunks
from streamenc_kernels.compiled.features.running import running, running_parts
from streamenc_kernels.compiled.gates import add, cell, gate
from streamenc_kernels.compiled.instruction import FIELDS, Field, Kind
from streamenc_kernels.compiled.intrinsics import (
    add_number,
    load_number,
    pointer,
    relax,
    store_number,
)
from streamenc_kernels.compiled.products import dot, dot_parts, product, product_parts
from streamenc_kernels.compiled.rows import (
    activate_rows,
    copy,
    depthwise,
    fill,
    gather,
    norm,
    spread,
    turn,
)
from streamenc_kernels.compiled.search import look_up, nearest
from streamenc_kernels.compiled.spectra import compress, direct, invert, overlap, transform
from streamenc_kernels.compiled.vectormath import inlined, inner

KIND, ROWS, OUT, INSIDE = Field.KIND, Field.ROWS, Field.OUT, Field.INSIDE
PRODUCT, DOT, NORM, ATTEND, TURN, COPY = (
    int(kind) for kind in (Kind.PRODUCT, Kind.DOT, Kind.NORM, Kind.ATTEND, Kind.TURN, Kind.COPY)
)
ROTARY, ADVANCE, SPREAD, GATHER, ACTIVATE, FILL = (
    int(kind)
    for kind in (
        Kind.ROTARY,
        Kind.ADVANCE,
        Kind.SPREAD,
        Kind.GATHER,
        Kind.ACTIVATE,
        Kind.FILL,
    )
)
NEAREST, LOOK_UP = int(Kind.NEAREST), int(Kind.LOOK_UP)
TRANSFORM, INVERT, COMPRESS, DIRECT, OVERLAP, DEPTHWISE = (
    int(kind)
    for kind in (
        Kind.TRANSFORM,
        Kind.INVERT,
        Kind.COMPRESS,
        Kind.DIRECT,
        Kind.OVERLAP,
        Kind.DEPTHWISE,
    )
)
CELL, ADD, GATE = int(Kind.CELL), int(Kind.ADD), int(Kind.GATE)
CHUNKS, RUNNING = int(Kind.CHUNKS), int(Kind.RUNNING)
# Products of fewer multiplications are done before a helper would have heard of them.
LEAST_SHARED = 1 << 16
PARTS_EACH = 4

# The board on which threads meet: numbers by their place in bytes, each on a line of its own.
TICKET, DONE, JOB, WAITED = 0, 128, 256, 384
BOARD_BYTES = 512
# A ticket is a number of the instruction, how many parts it has, and the next one to be claimed.
COUNT_BITS = 16
MASK = (1 << COUNT_BITS) - 1


@inner
def parts_of(o, lanes):
    """Into how many parts an instruction may be cut."""
    kind = o[KIND]
    if kind == PRODUCT:
        return product_parts(o, lanes)
    if kind == DOT:
        return dot_parts(o, lanes)
    if kind == ATTEND or kind == CHUNKS:
        return lanes * o[OUT]
    if kind == RUNNING:
        return running_parts(o, lanes)
    return 1


@inner
def is_shared(o, lanes):
    """Whether an instruction is worth others' help."""
    kind = o[KIND]
    if kind == PRODUCT or kind == DOT:
        return o[ROWS] * lanes * o[OUT] * o[INSIDE] >= LEAST_SHARED
    if kind == RUNNING:
        return o[ROWS] * lanes * o[OUT] >= LEAST_SHARED
    return kind == ATTEND or kind == CHUNKS


@inner
def do(o, lanes, first, last, scratch):
    """The parts `first` to `last` - 1 of an instruction."""
    kind = o[KIND]
    if kind == PRODUCT:
        product(o, lanes, first, last, scratch)
    elif kind == DOT:
        dot(o, lanes, first, last, scratch)
    elif kind == ATTEND:
        attend(o, lanes, first, last, scratch)
    elif kind == NORM:
        norm(o, lanes)
    elif kind == TURN:
        turn(o, lanes)
    elif kind == COPY:
        copy(o, lanes)
    elif kind == ROTARY:
        rotary(o, lanes)
    elif kind == ADVANCE:
        advance(o, lanes)
    elif kind == SPREAD:
        spread(o, lanes)
    elif kind == GATHER:
        gather(o, lanes)
    elif kind == ACTIVATE:
        activate_rows(o, lanes)
    elif kind == FILL:
        fill(o, lanes)
    elif kind == NEAREST:
        nearest(o, lanes, scratch)
    elif kind == LOOK_UP:
        look_up(o, lanes)
    elif kind == DEPTHWISE:
        depthwise(o, lanes)
    elif kind == TRANSFORM:
        transform(o, lanes, scratch)
    elif kind == INVERT:
        invert(o, lanes, scratch)
    elif kind == COMPRESS:
        compress(o, lanes)
    elif kind == DIRECT:
        direct(o, lanes)
    elif kind == OVERLAP:
        overlap(o, lanes)
    elif kind == CELL:
        cell(o, lanes)
    elif kind == ADD:
        add(o, lanes)
    elif kind == GATE:
        gate(o, lanes)
    elif kind == CHUNKS:
        attend_chunks(o, lanes, first, last, scratch)
    elif kind == RUNNING:
        running(o, lanes, first, last, scratch)


@inlined
def run_program(program, count, lanes, threads, board, scratch):
    ops = carray(pointer(program), (count, FIELDS), int64)
    waited = 0
    for index in range(count):
        o = ops[index]
        whole = parts_of(o, lanes)
        pieces = 1
        if threads > 1 and is_shared(o, lanes):
            pieces = min(whole, PARTS_EACH * threads)
        if pieces == 1:
            do(o, lanes, int64(0), whole, scratch)
            continue
        job = carray(pointer(board + JOB), (4,), int64)
        job[0], job[1], job[2], job[3] = program, index, lanes, whole
        store_number(board + DONE, 0)
        number = ((load_number(board + TICKET) >> (2 * COUNT_BITS)) + 1) & 0x3FFFFFFF
        store_number(board + TICKET, (number << (2 * COUNT_BITS)) | (pieces << COUNT_BITS))
        own = 0
        while True:
            ticket = add_number(board + TICKET, 1)
            piece = ticket & MASK
            if piece >= pieces:
                break
            do(o, lanes, whole * piece // pieces, whole * (piece + 1) // pieces, scratch)
            own += 1
        while load_number(board + DONE) < pieces - own:
            relax()
            waited += 1
    return waited


@inlined
def help_others(board, scratch, patience):
    """Takes parts from the board until there was none for `patience` looks; gives how many."""
    idle, helped = 0, 0
    while idle < patience:
        ticket = load_number(board + TICKET)
        if (ticket & MASK) < ((ticket >> COUNT_BITS) & MASK):
            ticket = add_number(board + TICKET, 1)
            piece, pieces = ticket & MASK, (ticket >> COUNT_BITS) & MASK
            if piece < pieces:
                job = carray(pointer(board + JOB), (4,), int64)
                ops = carray(pointer(job[0]), (job[1] + 1, FIELDS), int64)
                lanes, whole = job[2], job[3]
                o = ops[job[1]]
                do(o, lanes, whole * piece // pieces, whole * (piece + 1) // pieces, scratch)
                add_number(board + DONE, 1)
                idle = 0
                helped += 1
                continue
        relax()
        idle += 1
    return helped


def enter_function(stamp: int) -> Any:
    """The one function that Python calls; what is on disk is told apart by the stamp."""

    def enter(program, count, lanes, threads, board, scratch):
        """Runs a program of `count` instructions; or helps others, where `program` is 0, with
        `count` as the patience."""
        if stamp == 0:  # the cache knows functions apart by what stands here
            return -1
        if program == 0:
            return help_others(board, scratch, count)
        return run_program(program, count, lanes, threads, board, scratch)

    return enter
