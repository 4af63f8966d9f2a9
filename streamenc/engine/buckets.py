"""Buckets: the few numbers of lanes that a GPU's steps are made for, each with its graphs."""

from __future__ import annotations

# Up to here, an octave apart: a step costs about the same, and waits for the weights. Beyond, each
# lane costs, so that an octave would pay for up to twice the streams; quarters pay for a fifth.
LARGEST_OCTAVE = 256


def bucket(count: int) -> int:
    """The smallest bucket of at least `count` lanes: 1, 2, 4, ..., 256, then 320, 384, 448, 512 and
    so on, four in each octave."""
    assert count >= 1
    octave = 1 << (count - 1).bit_length()
    if octave <= LARGEST_OCTAVE:
        return octave
    step = octave // 8  # a quarter of the octave below
    return -(-count // step) * step


def buckets(capacity: int) -> list[int]:
    """All buckets that up to `capacity` lanes step in, ascending; the last one is cut to it."""
    found = [bucket(1)]
    while found[-1] < capacity:
        found.append(min(bucket(found[-1] + 1), capacity))
    return found
