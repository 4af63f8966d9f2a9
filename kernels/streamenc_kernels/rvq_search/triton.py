"""The Triton kernel of `rvq_search`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamenc_kernels.rvq_search.definition import Quantiser

# A tile of products: rows x entries x a part of the dimensions, which one after the other are added
# up in the same order whatever else is in the batch. Loads run STAGES - 1 parts ahead.
TILE = {"ROWS": 8, "ENTRIES": 16, "DEPTH": 32, "STAGES": 5}
# Fused multiply-adds are what the definition's products do as well.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
# So many programs find room on a processor, and hide each other's waiting.
PER_PROCESSOR = 4


def search(
    quantisers: Sequence[Quantiser], parts: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Codes and sums as `rvq_search` gives them.

    parts  Programs that share the entries of each codebook. One takes all levels in one launch;
           several have to see what the others found, so each level is a launch of its own.
           None takes as few as fill the GPU.
    """
    first, second = quantisers[0], quantisers[-1]
    rows, dim = first.x.shape
    entries = first.codebooks.shape[1]
    levels = [quantiser.depth for quantiser in quantisers]
    make = first.codebooks.new_empty
    x0, x1 = first.x.contiguous(), second.x.contiguous()
    codes = make((rows, sum(levels)), dtype=torch.int64)
    sums = make((len(quantisers), rows, dim))
    for total, count in zip(sums, levels, strict=True):
        if not count:
            total.zero_()
    if not rows or not max(levels):
        return codes, list(sums)
    blocks = -(-rows // TILE["ROWS"])
    if parts is None:
        parts = _parts(first.x.device, blocks * len(quantisers), entries)
    slots = (2, len(quantisers), blocks, parts, TILE["ROWS"])
    residual = make((len(quantisers), parts, blocks * TILE["ROWS"], dim))
    distances, indices = make(slots), make(slots, dtype=torch.int32)
    last = max(levels) + 1
    spans = [(0, last)] if parts == 1 else [(level, level + 1) for level in range(last)]
    # Triton launches on the current device.
    with torch.cuda.device_of(codes):
        for begin, end in spans:
            rvq_search_kernel[(blocks, parts, len(quantisers))](
                x0,
                x1,
                first.codebooks,
                second.codebooks,
                first.half_norms,
                second.half_norms,
                levels[0],
                levels[-1],
                residual,
                sums,
                codes,
                distances,
                indices,
                begin,
                end,
                rows,
                entries,
                parts,
                codes.shape[1],
                dim,
                DIM=dim,
                PARTS=triton.next_power_of_2(parts),
                **TILE,
                **OPTIONS,
            )
    return codes, list(sums)


def _parts(device: torch.device, programs: int, entries: int) -> int:
    """Into how many parts to split the entries, so that `programs` times as many fill the GPU."""
    if device.type == "cpu":
        return 1
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    tiles = -(-entries // TILE["ENTRIES"])
    return max(1, min(tiles, PER_PROCESSOR * processors // programs))


@triton.jit
def _take(
    x,
    books,
    residual,
    sums,
    codes,
    distances,
    indices,
    level,
    rows,
    entries,
    parts,
    part,
    code_stride,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Writes this level's residual: x itself, or less the nearest entry of the level before."""
    row = tl.arange(0, ROWS)
    nearest = tl.zeros((ROWS,), tl.int32)
    if level > 0:
        of = tl.arange(0, PARTS)[None, :]
        at = of * ROWS + row[:, None]
        distance = tl.load(distances + at, mask=of < parts, other=float("inf"))
        index = tl.load(indices + at, mask=of < parts, other=entries)
        least = tl.min(distance, axis=1)
        nearest = tl.min(tl.where(distance == least[:, None], index, entries), axis=1)
        if part == 0:
            tl.store(codes + row * code_stride + level - 1, nearest.to(tl.int64), mask=row < rows)
    book = books + (level - 1) * entries * DIM
    for start in range(0, DIM, DEPTH):
        depth = (start + tl.arange(0, DEPTH))[None, :]
        there = (row < rows)[:, None] & (depth < DIM)
        at = row[:, None] * DIM + depth
        if level == 0:
            left = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        else:
            entry = tl.load(book + nearest[:, None] * DIM + depth, mask=there, other=0.0)
            left = tl.load(residual + at, mask=there, other=0.0) - entry
            if part == 0:
                before = tl.load(sums + at, mask=there & (level > 1), other=0.0)
                tl.store(sums + at, before + entry, mask=there)
        tl.store(residual + at, left, mask=there)


@triton.jit
def _nearest(
    residual,
    book,
    half_norms,
    distances,
    indices,
    first,
    last,
    rows,
    entries,
    dim,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes the least distance of each row to the entries first to last - 1, and whose it is.

    dim  DIM once more: a loop of unknown length is not unrolled into more registers.
    """
    row = tl.arange(0, ROWS)
    least = tl.full((ROWS, ENTRIES), float("inf"), tl.float32)
    # Where all distances are infinite the first entry is taken: an index is always in range.
    index = tl.zeros((ROWS, ENTRIES), tl.int32) + first
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        products = tl.zeros((ROWS, ENTRIES, DEPTH), tl.float32)
        for begin in tl.range(0, dim, DEPTH, num_stages=STAGES):
            depth = (begin + tl.arange(0, DEPTH))[None, None, :]
            left = tl.load(
                residual + row[:, None, None] * DIM + depth,
                mask=(row < rows)[:, None, None] & (depth < DIM),
                other=0.0,
            )
            right = tl.load(
                book + entry[None, :, None] * DIM + depth,
                mask=(entry < last)[None, :, None] & (depth < DIM),
                other=0.0,
            )
            products += left * right
        half_norm = tl.load(half_norms + entry, mask=entry < last, other=0.0)
        distance = half_norm[None, :] - tl.sum(products, axis=2)
        # Not a number is the least of all, as torch's argmin has it.
        distance = tl.where(distance == distance, distance, float("-inf"))
        nearer = (distance < least) & (entry < last)[None, :]
        least = tl.where(nearer, distance, least)
        index = tl.where(nearer, entry[None, :], index)
    of_row = tl.min(least, axis=1)
    tl.store(distances + row, of_row)
    tl.store(indices + row, tl.min(tl.where(least == of_row[:, None], index, entries), axis=1))


@triton.jit(
    do_not_specialize=[
        "levels0",
        "levels1",
        "first_level",
        "last_level",
        "rows",
        "parts",
        "code_stride",
        "dim",
    ]
)
def rvq_search_kernel(
    x0,
    x1,
    books0,
    books1,
    half_norms0,
    half_norms1,
    levels0,
    levels1,
    residual,
    sums,
    codes,
    distances,
    indices,
    first_level,
    last_level,
    rows,
    entries,
    parts,
    code_stride,
    dim,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Levels first_level to last_level - 1; level k starts from what level k - 1 has found.

    The grid is (blocks of rows, parts of the entries, quantisers). Every program keeps a residual
    of its own, so that what one writes no other reads within a launch.

    residual            (quantisers, parts, blocks * ROWS, DIM).
    sums                (quantisers, rows, DIM).
    distances, indices  (2, quantisers, blocks, parts, ROWS).
    """
    block, part, quantiser = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks, quantisers = tl.num_programs(0), tl.num_programs(2)
    row = block.to(tl.int64) * ROWS
    mine = (quantiser * parts + part).to(tl.int64) * blocks * ROWS + row
    found = (quantiser * blocks + block).to(tl.int64) * parts * ROWS
    buffer_stride = quantisers.to(tl.int64) * blocks * parts * ROWS
    residual += mine * DIM
    sums += (quantiser.to(tl.int64) * rows + row) * DIM
    codes += row * code_stride
    here = tl.minimum(rows - row, ROWS).to(tl.int32)
    x, books, half_norms, levels = x0, books0, half_norms0, levels0
    if quantiser == 1:
        x, books, half_norms, levels = x1, books1, half_norms1, levels1
        codes += levels0
    # What the choice has hidden: tensors begin where a load of 16 bytes may.
    x = tl.multiple_of(x, 16) + row * DIM
    books = tl.multiple_of(books, 16)
    half_norms = tl.multiple_of(half_norms, 16)
    distances += found
    indices += found

    share = tl.cdiv(tl.cdiv(entries, ENTRIES), parts) * ENTRIES
    first = tl.minimum(part * share, entries)
    last = tl.minimum(first + share, entries)
    for level in range(first_level, tl.minimum(last_level, levels + 1)):
        # Two buffers: other parts may still read what the level before has found.
        before = ((level + 1) % 2) * buffer_stride
        _take(
            x,
            books,
            residual,
            sums,
            codes,
            distances + before,
            indices + before,
            level,
            here,
            entries,
            parts,
            part,
            code_stride,
            DIM,
            ROWS,
            PARTS,
            DEPTH,
        )
        tl.debug_barrier()
        if level < levels:
            now = (level % 2) * buffer_stride + part * ROWS
            _nearest(
                residual,
                books + level * entries * DIM,
                half_norms + level * entries,
                distances + now,
                indices + now,
                first,
                last,
                here,
                entries,
                dim,
                DIM,
                ROWS,
                ENTRIES,
                DEPTH,
                STAGES,
            )
            tl.debug_barrier()
