"""RecordingsShard: rows as recordings in a tar file, each as `streamenc decode` takes it."""

from __future__ import annotations

import io
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
    """The output of a model as a recording, the times of which are counted from 0."""
    rate = Fraction(facts.frame_rate) or Fraction(frame_rate(facts, row)).limit_denominator(10**6)
    info = StreamInfo(
        kind="codes" if facts.kind == "codes" else "features",
        time_base=1 / rate if rate else Fraction(1),
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
        for frame in _frames(facts, tokens):
            waiting.append(columns.row(frame, 0))
            held += frame.data.nbytes
            if held >= MAX_BATCH_BYTES or len(waiting) >= MAX_ROWS:
                writer.write_batch(columns.batch(waiting))
                waiting, held = [], 0
        if waiting:
            writer.write_batch(columns.batch(waiting))
    return file.getvalue()


def _frames(facts: ModelFacts, tokens: Tokens) -> Iterator[Frame]:
    """Pieces of at most a batch, none over a gap, and each of one scale."""
    data, scales, count = tokens.data, tokens.scales, tokens.data.shape[1]
    longest = max(1, count * MAX_BATCH_BYTES // max(1, data.nbytes))
    begins = {*range(0, count, longest), *tokens.gaps}
    of_scale = np.zeros(0)
    if scales is not None:
        of_scale = np.repeat(scales, count // len(scales)) if len(scales) else scales
        begins |= {0, *(np.flatnonzero(np.diff(of_scale)) + 1).tolist()}
    starts = sorted(begin for begin in begins if begin < count)
    for seq, (start, stop) in enumerate(pairwise([*starts, count])):
        yield Frame(
            data=data[:, start:stop],
            pts=start,
            duration=stop - start,
            seq=seq,
            discontinuity=start in tokens.gaps,
            scale=float(of_scale[start]) if scales is not None else 1.0,
        )
