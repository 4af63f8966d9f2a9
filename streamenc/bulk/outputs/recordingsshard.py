"""RecordingsShard: rows as recordings in a tar file, each as `streamenc decode` takes it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs.rowcolumns import Named, frame_rate
from streamenc.bulk.outputs.webdatasetshard import WebDatasetShard
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.recording import MAX_BATCH_BYTES, MAX_ROWS
from streamenc.io.files.tables.columns import Columns


class RecordingsShard(WebDatasetShard):
    """As a WebDatasetShard, but for each model a whole recording, NAME.codes.arrows, in place of an
    array: an Arrow IPC stream that says itself what it is. What `tar xf` leaves, `streamenc decode`
    plays.

    A recording is a file, and a file of each row would be a million files of a million seconds of
    sound; so they are members of an archive, which anything reads and which has one hash.
    """

    suffix: ClassVar[str] = ".tar"

    def _files(
        self, facts: ModelFacts, named: Named, tokens: Tokens, row: Row
    ) -> Iterator[tuple[str, bytes]]:
        yield f"{named.tokens}.arrows", recording(facts, tokens, row)


def recording(facts: ModelFacts, tokens: Tokens, row: Row) -> bytes:
    """The output of a model as a recording, with times from 0 to the end of the item: as much is
    decoded as was encoded."""
    rate = Fraction(facts.frame_rate) or Fraction(frame_rate(facts, row)).limit_denominator(10**6)
    samples = round(row.rate) if facts.takes == "audio" else 0
    ticks = math.lcm(rate.numerator, samples or 1)  # a second
    # Behind a gap a model starts anew, and how far into a frame it got before is not known.
    ends = row.n_samples * ticks // samples if samples and not tokens.gaps else None
    info = StreamInfo(
        kind="codes" if facts.kind == "codes" else "features",
        time_base=Fraction(1, ticks or 1),
        rate=rate,
        shape=(facts.rows, None, *tokens.data.shape[2:]),
        dtype=facts.dtype,
        model=facts.name,
        codebook_size=facts.entries,
    )
    columns = Columns(info)
    file = io.BytesIO()
    with pa.ipc.new_stream(file, columns.schema) as writer:
        waiting: list[Any] = []
        held = 0
        for frame in _frames(tokens, int(ticks / rate) if rate else 1, ends):
            waiting.append(columns.row(frame, 0))
            held += frame.data.nbytes
            if held >= MAX_BATCH_BYTES or len(waiting) >= MAX_ROWS:
                writer.write_batch(columns.batch(waiting))
                waiting, held = [], 0
        if waiting:
            writer.write_batch(columns.batch(waiting))
    return file.getvalue()


def _frames(tokens: Tokens, shift: int, ends: int | None) -> Iterator[Frame]:
    """Pieces of at most a batch, none over a gap, and each of one scale.

    shift  Ticks from one item to the next.
    ends   The tick at which the last one ends, if that is known.
    """
    data, scales, count = tokens.data, tokens.scales, tokens.data.shape[1]
    longest = max(1, count * MAX_BATCH_BYTES // max(1, data.nbytes))
    begins = {*range(0, count, longest), *tokens.gaps}
    of_scale = np.zeros(0)
    if scales is not None and len(scales):
        of_scale = np.repeat(scales, count // len(scales))  # flat, several items have one
        begins |= {*(np.flatnonzero(np.diff(of_scale)) + 1).tolist()}
    last = count * shift if ends is None else min(ends, count * shift)
    starts = sorted(begin for begin in begins if begin < count)
    for seq, (start, stop) in enumerate(pairwise([*starts, count])):
        pts = min(start * shift, last)
        yield Frame(
            data=data[:, start:stop],
            pts=pts,
            duration=min(stop * shift, last) - pts,
            seq=seq,
            discontinuity=start in tokens.gaps,
            scale=float(of_scale[start]) if len(of_scale) else 1.0,
        )
