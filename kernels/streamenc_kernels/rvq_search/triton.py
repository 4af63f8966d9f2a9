"""The Triton kernel of `rvq_search`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamenc_kernels.rvq_search.definition import Quantiser


class Tile(NamedTuple):
    """What a program has in hand at once: rows x entries, so many dimensions one after the other;
    loads run stages - 1 ahead.

    registers  Of a thread at most.
    resident   So many programs find room on a processor.
    """

    rows: int
    entries: int
    depth: int
    stages: int
    warps: int
    registers: int
    resident: int

    def constants(self, dim: int, entries: int) -> dict[str, int]:
        """The sizes that a search is compiled for."""
        return {
            "DIM": dim,
            "ROWS": self.rows,
            "ENTRIES": self.entries,
            "GROUP": GROUP,
            "GROUPS": triton.next_power_of_2(triton.cdiv(entries, GROUP)),
            "DEPTH": self.depth,
            "STAGES": self.stages,
        }

    def options(self) -> dict[str, int | bool]:
        """What the compiler is told."""
        return {
            "num_warps": self.warps,
            "maxnreg": self.registers,
            # Fused multiply-adds are what the definition's products do as well.
            "enable_fp_fusion": True,
        }


# For few rows as many programs as can be, for many as few readings of rows and entries as can be.
FEW, MANY = Tile(16, 32, 32, 5, 4, 168, 3), Tile(64, 128, 32, 3, 8, 255, 1)
# From so many rows on there are enough large tiles to fill a GPU.
MANY_ROWS = 192
# Of so many neighbouring entries the kernel keeps the nearest one and how near the next one is.
GROUP = 32


def search(
    quantisers: Sequence[Quantiser],
    *,
    sums: bool = False,
    tile: Tile | None = None,
    parts: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Codes and sums as `rvq_search` gives them; no sums where they are not wanted.

    tile   None takes the one for so many rows.
    parts  Programs that share the entries of each codebook; None takes as few as fill the GPU.
           Neither changes a code.
    """
    first, second = quantisers[0], quantisers[-1]
    rows, dim = first.x.shape
    entries = first.codebooks.shape[1]
    levels = [quantiser.depth for quantiser in quantisers]
    make = first.codebooks.new_empty
    before = [quantiser.x.to(torch.float32).contiguous() for quantiser in quantisers]
    codes = make((rows, sum(levels)), dtype=torch.int64)
    totals = make((len(quantisers), rows, dim)) if sums else None
    if totals is not None:
        for total, count in zip(totals, levels, strict=True):
            if not count:
                total.zero_()
    found = [] if totals is None else list(totals)
    if not rows or not max(levels):
        return codes, found
    tile = tile or (MANY if rows >= MANY_ROWS else FEW)
    blocks, tiles = triton.cdiv(rows, tile.rows), triton.cdiv(entries, tile.entries)
    groups = triton.cdiv(entries, GROUP)
    # Two buffers each: a program may still read what the level before has found.
    near = make((2, len(quantisers), 4, rows, groups))
    residual = make((2, len(quantisers), rows, dim))
    # Triton launches on the current device.
    with torch.cuda.device_of(codes):
        for level in range(max(levels) + 1):
            skipped = next(i for i, count in enumerate(levels) if count >= level)
            searching = sum(count > level for count in levels)
            split = parts or _parts(codes.device, tile.resident, blocks * searching)
            rvq_search_kernel[
                (blocks, min(split, tiles) * bool(searching) + bool(level), len(levels) - skipped)
            ](
                before[0],
                before[-1],
                residual[level % 2],
                first.codebooks,
                second.codebooks,
                first.half_norms,
                second.half_norms,
                near[(level + 1) % 2],
                near[level % 2],
                codes,
                codes if totals is None else totals,
                level,
                levels[0],
                levels[-1],
                skipped,
                rows,
                entries,
                groups,
                codes.shape[1],
                dim,
                FIRST=level == 0,
                SUMS=sums,
                **tile.constants(dim, entries),
                **tile.options(),
            )
            if level:
                before = list(residual[level % 2])
    return codes, found


def _parts(device: torch.device, resident: int, programs: int) -> int:
    """Into how many parts to split the entries, so that `programs` times as many fill the GPU."""
    if device.type == "cpu":
        return 1
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, resident * processors // max(1, programs))


@triton.jit
def _exact(vector, book, half_norms, entry, entries, dim, DIM: tl.constexpr, DEPTH: tl.constexpr):
    """Half the squared distance of one vector to some entries, less what is the same for all, in
    float64, where products of float32 are exact; duplicates of an entry are equally near."""
    products = tl.zeros((entry.shape[0], DEPTH), tl.float64)
    at = tl.minimum(entry, entries - 1)[:, None] * DIM
    for begin in range(0, dim, DEPTH):
        depth = (begin + tl.arange(0, DEPTH))[None, :]
        left = tl.load(vector + depth, mask=depth < DIM, other=0.0).to(tl.float64)
        right = tl.load(book + at + depth, mask=depth < DIM, other=0.0).to(tl.float64)
        products += left * right
    half_norm = tl.load(half_norms + entry, mask=entry < entries, other=float("inf"))
    distance = half_norm.to(tl.float64) - tl.sum(products, axis=1)
    # Not a number is the least of all, as torch's argmin has it.
    distance = tl.where(distance == distance, distance, float("-inf"))
    return tl.where(entry < entries, distance, float("inf"))


@triton.jit
def _taken(
    before,
    book,
    half_norms,
    near,
    field,
    row,
    entries,
    groups,
    dim,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The nearest entry of a level for each row: the only one that can be, or the nearest in exact
    arithmetic of those that can.

    near  (4, rows, groups), as `_search` writes it, `field` numbers apart.
    """
    group = tl.arange(0, GROUPS)
    at = row[:, None] * groups + group[None, :]
    there = (group < groups)[None, :]
    limit = tl.min(tl.load(near + at, mask=there, other=float("inf")), axis=1)
    low = tl.load(near + field + at, mask=there, other=float("inf"))
    index = tl.load(near + 2 * field + at, mask=there, other=0.0).to(tl.int32)
    next_low = tl.load(near + 3 * field + at, mask=there, other=float("inf"))
    # Infinitely far is what no number makes nearer.
    possible = (low <= limit[:, None]) & (low < float("inf"))
    # A group's next entry is no nearer than its first, so that this counts two of them at most.
    count = tl.sum(possible.to(tl.int32) + (possible & (next_low <= limit[:, None])), axis=1)
    at_least = low == tl.min(low, axis=1)[:, None]
    nearest = tl.min(tl.where(at_least, group[None, :] * GROUP + index, entries - 1), axis=1)
    open_rows = count > 1
    which = tl.arange(0, row.shape[0])
    while tl.max(open_rows.to(tl.int32), axis=0) > 0:
        chosen = tl.min(tl.where(open_rows, which, row.shape[0]), axis=0)
        of_row = which == chosen
        one = tl.sum(tl.where(of_row, row, 0), axis=0)
        most = tl.min(tl.where(of_row, limit, float("inf")), axis=0)
        lows = near + field + one * groups + group
        of_group = tl.load(lows, mask=group < groups, other=float("inf"))
        open_groups = (of_group <= most) & (of_group < float("inf"))
        least = tl.full((), float("inf"), tl.float64)
        winner = tl.full((), 0, tl.int32)
        while tl.max(open_groups.to(tl.int32), axis=0) > 0:
            now = tl.min(tl.where(open_groups, group, GROUPS), axis=0)
            entry = now * GROUP + tl.arange(0, GROUP)
            distance = _exact(before + one * DIM, book, half_norms, entry, entries, dim, DIM, DEPTH)
            of_all = tl.min(distance, axis=0)
            first = tl.min(tl.where(distance == of_all, entry, entries - 1), axis=0)
            # Groups come in order: of equally near entries the first stays.
            winner = tl.where(of_all < least, first, winner)
            least = tl.minimum(least, of_all)
            open_groups = open_groups & (group != now)
        nearest = tl.where(of_row, winner, nearest)
        open_rows = open_rows & (which != chosen)
    return nearest


@triton.jit
def _search(
    before,
    book_before,
    taken,
    book,
    half_norms,
    near,
    field,
    row,
    inside,
    part,
    parts,
    entries,
    groups,
    dim,
    FIRST: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    GROUP: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes how near the entries of each group are to each row, in a part of the tiles.

    What is left of a row is what stood before less the entry that is taken; `row` and `taken` say
    where in `before` and `book_before`. A distance is known within a margin, from low
    to high; of a group go out the least high, the least low, whose that is, and the next low.
    """
    # The margin of kernels/README.md: of products and sums, then of the norm's own last bits.
    PRODUCTS: tl.constexpr = 2.0**-16 + DIM * 2.0**-28
    NORMS: tl.constexpr = 2.0**-22
    # Of a length that is computed: its last bits, and squares that are too small for a float32.
    LONGER: tl.constexpr = 1 + 2.0**-10
    LEAST: tl.constexpr = 2.0**-40
    FEWER: tl.constexpr = DIM % DEPTH != 0
    of_row = row[:, None] * DIM
    for tile in range(part, tl.cdiv(entries, ENTRIES), parts):
        entry = tile * ENTRIES + tl.arange(0, ENTRIES)
        # Beyond the last one its numbers come again, and are left out below.
        at = tl.minimum(entry, entries - 1) * DIM
        products = tl.zeros((ROWS, ENTRIES), tl.float32)
        squares = tl.zeros((ROWS, DEPTH), tl.float32)
        for begin in tl.range(0, dim, DEPTH, num_stages=STAGES):
            depth = begin + tl.arange(0, DEPTH)
            if FEWER:
                some = depth < DIM
                left = tl.load(before + of_row + depth[None, :], mask=some[None, :], other=0.0)
                right = tl.load(book + at[None, :] + depth[:, None], mask=some[:, None], other=0.0)
                if not FIRST:
                    less = book_before + taken[:, None] + depth[None, :]
                    left -= tl.load(less, mask=some[None, :], other=0.0)
            else:
                left = tl.load(before + of_row + depth[None, :])
                right = tl.load(book + at[None, :] + depth[:, None])
                if not FIRST:
                    left -= tl.load(book_before + taken[:, None] + depth[None, :])
            products = tl.dot(left, right, products, input_precision="tf32x3")
            squares += left * left
        length = tl.sqrt(tl.sum(squares, axis=1)) * LONGER + LEAST
        half_norm = tl.load(half_norms + entry, mask=entry < entries, other=0.0)
        of_entry = tl.sqrt(2 * half_norm) * LONGER + LEAST
        margin = PRODUCTS * length[:, None] * of_entry[None, :] + NORMS * half_norm[None, :]
        distance = half_norm[None, :] - products
        group = tile * (ENTRIES // GROUP) + tl.arange(0, ENTRIES // GROUP)
        to = near + row[:, None] * groups + group[None, :]
        there = inside[:, None] & (group < groups)[None, :]
        # What overflows may be anywhere; a row that is not a number has nothing near.
        number = (length == length)[:, None] & (entry < entries)[None, :]
        high = distance + margin
        high = tl.where(number & (high == high), high, float("inf"))
        high = tl.reshape(high, (ROWS, ENTRIES // GROUP, GROUP))
        tl.store(to, tl.min(high, axis=2), mask=there)
        low = distance - margin
        low = tl.where(low == low, low, float("-inf"))
        low = tl.where(number, low, float("inf"))
        low = tl.reshape(low, (ROWS, ENTRIES // GROUP, GROUP))
        member = tl.arange(0, GROUP)[None, None, :]
        least = tl.min(low, axis=2)
        tl.store(to + field, least, mask=there)
        index = tl.min(tl.where(low == least[:, :, None], member, GROUP), axis=2)
        tl.store(to + 2 * field, index.to(tl.float32), mask=there)
        others = tl.where(member == index[:, :, None], float("inf"), low)
        tl.store(to + 3 * field, tl.min(others, axis=2), mask=there)


@triton.jit(
    do_not_specialize=[
        "level",
        "levels0",
        "levels1",
        "skipped",
        "rows",
        "groups",
        "code_stride",
        "dim",
    ]
)
def rvq_search_kernel(
    before0,
    before1,
    after,
    books0,
    books1,
    half_norms0,
    half_norms1,
    near_before,
    near_after,
    codes,
    sums,
    level,
    levels0,
    levels1,
    skipped,
    rows,
    entries,
    groups,
    code_stride,
    dim,
    FIRST: tl.constexpr,
    SUMS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Takes what level - 1 has found and searches this level.

    The grid is (blocks of rows, parts of the entries, quantisers but those skipped). After the
    first level one part more writes what is taken: codes, sums and what is left. All parts come to
    the same entries by themselves, and no program reads what another writes within a launch.

    before0, before1         (rows, DIM), what level - 1 started from, of each quantiser.
    after, sums              (quantisers, rows, DIM).
    near_before, near_after  (quantisers, 4, rows, groups).
    dim                      DIM once more: a loop of unknown length is not unrolled.
    """
    block, part = tl.program_id(0), tl.program_id(1)
    quantiser = (tl.program_id(2) + skipped).to(tl.int64)
    parts = tl.num_programs(1)
    before, books, half_norms, levels = before0, books0, half_norms0, levels0
    if quantiser == 1:
        before, books, half_norms, levels = before1, books1, half_norms1, levels1
        codes += levels0
    # What the choice has hidden: tensors begin where a load of 16 bytes may.
    before = tl.multiple_of(before, 16)
    books = tl.multiple_of(books, 16)
    half_norms = tl.multiple_of(half_norms, 16)
    field = rows.to(tl.int64) * groups
    near_before += quantiser * 4 * field
    near_after += quantiser * 4 * field
    start = block.to(tl.int64) * ROWS
    here = tl.minimum(rows - start, ROWS).to(tl.int32)
    before += start * DIM
    codes += start * code_stride
    near_before += start * groups
    near_after += start * groups
    # Beyond the last row it comes again, and is not written.
    inside = tl.arange(0, ROWS) < here
    row = tl.minimum(tl.arange(0, ROWS), here - 1)
    if level <= levels:
        book = books
        taken = row
        if not FIRST:
            book = books + (level - 1) * entries * DIM
            nearest = _taken(
                before,
                book,
                half_norms + (level - 1) * entries,
                near_before,
                field,
                row,
                entries,
                groups,
                dim,
                DIM,
                GROUP,
                GROUPS,
                DEPTH,
            )
            taken = nearest * DIM
            parts -= 1
            if part == parts:
                to = codes + row * code_stride + level - 1
                tl.store(to, nearest.to(tl.int64), mask=inside)
                shift = (quantiser * rows + start) * DIM
                sums += shift
                after += shift
                for begin in range(0, dim, DEPTH):
                    depth = (begin + tl.arange(0, DEPTH))[None, :]
                    there = inside[:, None] & (depth < DIM)
                    at = row[:, None] * DIM + depth
                    value = tl.load(book + taken[:, None] + depth, mask=there, other=0.0)
                    if SUMS:
                        total = tl.load(sums + at, mask=there, other=0.0)
                        total = tl.where(level > 1, total, 0.0)
                        tl.store(sums + at, total + value, mask=there)
                    if level < levels:
                        left = tl.load(before + at, mask=there, other=0.0)
                        tl.store(after + at, left - value, mask=there)
        if part < parts and level < levels:
            _search(
                before,
                book,
                taken,
                books + level * entries * DIM,
                half_norms + level * entries,
                near_after,
                field,
                row,
                inside,
                part,
                parts,
                entries,
                groups,
                dim,
                FIRST,
                DIM,
                ROWS,
                ENTRIES,
                GROUP,
                DEPTH,
                STAGES,
            )
