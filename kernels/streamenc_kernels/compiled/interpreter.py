"""The interpreter of programs, in one thread or with the help of others.

An instruction that is worth it is cut into pieces of some parts, which the threads claim one by
one. The thread that runs the program waits for none that has claimed nothing, and not for long for
one that has: what a helper makes is its own until it hands it in, and what it does not hand in, as
the system does not let it run, is made again. So helpers may be stopped anywhere, for any time.
"""

from __future__ import annotations

from typing import Any

from numba import carray, int64

from streamenc_kernels.compiled.attention import advance, attend, attend_bytes, rotary
from streamenc_kernels.compiled.features.chunked import attend_chunks, chunks_bytes
from streamenc_kernels.compiled.features.running import running, running_parts
from streamenc_kernels.compiled.gates import add, cell, gate
from streamenc_kernels.compiled.helpers.aside import (
    SUMS_BYTES,
    aside_bytes,
    before_parts,
    hand_in,
    make_aside,
    may_be_aside,
)
from streamenc_kernels.compiled.instruction import FIELDS, Field, Kind
from streamenc_kernels.compiled.intrinsics import (
    add_number,
    exchange_number,
    give_way,
    load_number,
    pointer,
    relax,
    replace_number,
    store_number,
)
from streamenc_kernels.compiled.planes.digits import split, split_bytes, tiled, tiled_parts
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
SPLIT, TILED = int(Kind.SPLIT), int(Kind.TILED)
# Products of fewer multiplications are done before a helper would have heard of them.
LEAST_SHARED = 1 << 16
# Each thread finds so many pieces, or more where they would take long: what is claimed last is
# waited for, and what a stopped helper has claimed is made again.
PIECES_EACH = 4
LONG_PIECE = 1 << 20
MOST_PIECES, MOST_PARTS = 32, 4

# The board on which threads meet: numbers by their place in bytes, on lines of their own.
TICKET, DONE, HANDED, PATIENCE, REPORT, JOB, HELPERS = 0, 128, 256, 384, 512, 640, 1152
HELPER_BYTES, MOST_HELPERS = 128, 63
JOB_BYTES = HELPERS - JOB
assert (FIELDS + 3) * 8 <= JOB_BYTES
BOARD_BYTES = HELPERS + HELPER_BYTES * MOST_HELPERS
# A ticket is the number of a job, how many pieces it has, and the next one to be claimed; what
# is handed in is the number again, 0 where it is too late, and a bit for each piece.
NUMBER_BITS, COUNT_BITS = 32, 16
MASK = (1 << COUNT_BITS) - 1
PIECES_MASK = (1 << MOST_PIECES) - 1
LAST_NUMBER = (1 << 30) - 1
# How often one looks whether a piece is handed in before another thread may have the core.
LOOKS = 100


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
    if kind == SPLIT:
        return lanes * o[ROWS]
    if kind == TILED:
        return tiled_parts(o, lanes)
    return 1


@inner
def is_shared(o, lanes):
    """Whether an instruction is worth others' help."""
    if not may_be_aside(o):
        return False
    return o[KIND] == ATTEND or o[ROWS] * lanes * o[OUT] * o[INSIDE] >= LEAST_SHARED


@inner
def do(o, lanes, first, last, scratch):
    """The parts `first` to `last` - 1 of an instruction."""
    kind = o[KIND]
    if kind == PRODUCT:
        product(o, lanes, first, last, scratch)
    elif kind == DOT:
        dot(o, lanes, first, last, scratch)
    elif kind == ATTEND:
        attend(o, lanes, first, last, scratch, True)
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
    elif kind == SPLIT:
        split(o, lanes, first, last, scratch)
    elif kind == TILED:
        tiled(o, lanes, first, last, scratch)


@inlined
def do_piece(o, lanes, first, parts, pieces, piece, scratch):
    start, end = first + parts * piece // pieces, first + parts * (piece + 1) // pieces
    do(o, lanes, start, end, scratch)


@inlined
def share(o, lanes, first, parts, pieces, board, scratch, report):
    """`parts` parts of an instruction from `first` on, in pieces, with all who help.

    What helpers have claimed and not handed in once this thread has nothing else to do, it waits
    for as long as it may take, and makes it itself then.
    """
    number = (load_number(board + TICKET) >> NUMBER_BITS) % LAST_NUMBER + 1
    # Who reads the job meanwhile sees by the number that it is another one.
    exchange_number(board + TICKET, number << NUMBER_BITS)
    job = carray(pointer(board + JOB), (FIELDS + 3,), int64)
    for i in range(FIELDS):
        job[i] = o[i]
    job[FIELDS], job[FIELDS + 1], job[FIELDS + 2] = lanes, first, parts
    store_number(board + DONE, 0)
    store_number(board + HANDED, number << NUMBER_BITS)
    store_number(board + TICKET, (number << NUMBER_BITS) | (pieces << COUNT_BITS))
    made, own = int64(0), int64(0)
    while True:
        piece = add_number(board + TICKET, 1) & MASK
        if piece >= pieces:
            break
        do_piece(o, lanes, first, parts, pieces, piece, scratch)
        made |= int64(1) << piece
        own += 1
    helped = pieces - own
    looks, patience = 0, load_number(board + PATIENCE)
    while load_number(board + DONE) < helped and looks < patience:
        relax()
        looks += 1
    if load_number(board + DONE) < helped:
        handed = exchange_number(board + HANDED, 0) & PIECES_MASK
        helped = int64(0)
        for piece in range(pieces):
            helped += (handed >> piece) & 1
        while load_number(board + DONE) < helped:
            relax()
            looks += 1
            if looks % LOOKS == 0:
                give_way()
        for piece in range(pieces):
            if ((made | handed) >> piece) & 1 == 0:
                do_piece(o, lanes, first, parts, pieces, piece, scratch)
    report[0] += pieces
    report[1] += helped
    report[2] += pieces - own - helped
    report[3] += looks


@inlined
def run_program(program, count, lanes, threads, board, scratch):
    ops = carray(pointer(program), (count, FIELDS), int64)
    report = carray(pointer(board + REPORT), (4,), int64)
    if threads > 1:  # who runs alone does so beside another
        report[:] = 0
    for index in range(count):
        o = ops[index]
        whole = parts_of(o, lanes)
        if threads > 1 and whole > 1 and is_shared(o, lanes):
            # Multiplications of a part, or about what takes as long.
            work = max(o[ROWS] * lanes * o[OUT] * o[INSIDE] // whole, 1)
            before_parts(o, lanes)
            first = int64(0)
            while first < whole:
                parts = min(whole - first, MOST_PIECES * MOST_PARTS)
                pieces = max(PIECES_EACH * threads, parts * work // LONG_PIECE)
                pieces = max(pieces, (parts + MOST_PARTS - 1) // MOST_PARTS)
                pieces = min(pieces, parts, MOST_PIECES)
                share(o, lanes, first, parts, pieces, board, scratch, report)
                first += parts
        else:
            do(o, lanes, int64(0), whole, scratch)


@inner
def may_hand_in(board, number, piece):
    """Whether nobody else makes a piece; then nobody does from here on."""
    while True:
        handed = load_number(board + HANDED)
        if handed >> NUMBER_BITS != number:
            return False
        if replace_number(board + HANDED, handed, handed | (int64(1) << piece)):
            return True


@inlined
def help_others(board, index, scratch, patience):
    """Takes pieces from the board until there was none for `patience` looks; gives how many.

    Scratch memory has the thread's own copy of the instruction, then what tiles need, then what
    the parts of a piece make.
    """
    busy = board + HELPERS + HELPER_BYTES * index
    job = carray(pointer(scratch), (FIELDS + 3,), int64)
    o = job[:FIELDS]
    sums = scratch + JOB_BYTES
    areas = sums + SUMS_BYTES
    idle, helped = int64(0), 0
    while idle < patience:
        ticket = load_number(board + TICKET)
        if (ticket & MASK) >= ((ticket >> COUNT_BITS) & MASK):
            relax()
            idle += 1
            continue
        # From here on, this thread may read what belongs to the step.
        store_number(busy, 1)
        ticket = add_number(board + TICKET, 1)
        number, pieces = ticket >> NUMBER_BITS, (ticket >> COUNT_BITS) & MASK
        piece = ticket & MASK
        if piece < pieces:
            for i in range(FIELDS + 3):
                job[i] = load_number(board + JOB + 8 * i)
            if load_number(board + TICKET) >> NUMBER_BITS == number:
                lanes, first, parts = job[FIELDS], job[FIELDS + 1], job[FIELDS + 2]
                start = first + parts * piece // pieces
                end = first + parts * (piece + 1) // pieces
                each = aside_bytes(o, lanes)
                for part in range(start, end):
                    make_aside(o, lanes, part, sums, areas + (part - start) * each)
                if may_hand_in(board, number, piece):
                    for part in range(start, end):
                        hand_in(o, lanes, part, areas + (part - start) * each)
                    add_number(board + DONE, 1)
                    helped += 1
            idle = int64(0)
        store_number(busy, 0)
    return helped


@inner
def scratch_bytes(program, count, lanes):
    """How much scratch memory a thread needs for a program, or to help with it."""
    ops = carray(pointer(program), (count, FIELDS), int64)
    beside, most = int64(SUMS_BYTES), int64(0)
    for index in range(count):
        o = ops[index]
        most = max(most, aside_bytes(o, lanes))
        if o[KIND] == ATTEND:
            beside = max(beside, attend_bytes(o))
        elif o[KIND] == CHUNKS:
            beside = max(beside, chunks_bytes(o))
        elif o[KIND] == SPLIT:
            beside = max(beside, split_bytes(o))
    return JOB_BYTES + beside + MOST_PARTS * most


def enter_function(stamp: int) -> Any:
    """The one function that Python calls; what is on disk is told apart by the stamp."""

    def enter(program, count, lanes, threads, board, scratch):
        """Runs a program of `count` instructions; says how much scratch memory it needs, where
        `threads` is 0; or helps others, where `program` is 0, with `count` as the patience and
        `lanes` as the helper's index."""
        if stamp == 0:  # the cache knows functions apart by what stands here
            return -1
        if program == 0:
            return help_others(board, lanes, scratch, count)
        if threads == 0:
            return scratch_bytes(program, count, lanes)
        run_program(program, count, lanes, threads, board, scratch)
        return 0

    return enter
