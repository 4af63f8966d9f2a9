"""Runs: a stream of units with each run of equal ones as one, as unit language models read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform


class Runs(Transform):
    """Codes of one codebook -> a frame for each run of equal codes, of one item.

    Its pts is where the run began and its duration how long it lasted, so a run comes out when the
    next one begins, or with the stream's end. `arrived_ns` is that of the input that ended it. A
    discontinuity ends a run. No unit lasts longer than `max_seconds`: in silence there would be no
    sign of life else, and nothing to wait for.
    """

    def __init__(self, max_seconds: float = 10.0) -> None:
        self.max_seconds = max_seconds
        self._run: Frame | None = None
        self._seq = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        """Raises FitError for what is no stream of units."""
        if info.kind != "codes" or info.shape[0] != 1 or len(info.shape) != 2:
            raise FitError(
                f"runs are of units, codes of one codebook; got {info}: give the model units="
            )
        self._most = int(self.max_seconds / info.time_base)
        self._run, self._seq = None, 0
        return replace(info, shape=(1, 1))

    def push(self, frame: Frame) -> Iterable[Frame]:
        items = frame.data.shape[1]
        for index in range(items):
            start, stop = (frame.duration * i // items for i in (index, index + 1))
            code, run = frame.data[:, index : index + 1], self._run
            flag = frame.discontinuity and not index
            if (
                run is not None
                and not flag
                and run.data[0, 0] == code[0, 0]
                and run.duration < self._most
            ):
                self._run = run.with_(
                    duration=frame.pts + stop - run.pts, arrived_ns=frame.arrived_ns
                )
                continue
            if run is not None:
                yield run.with_(arrived_ns=frame.arrived_ns)
            self._run = frame.with_(
                data=np.ascontiguousarray(code),
                pts=frame.pts + start,
                duration=stop - start,
                seq=self._seq,
                discontinuity=flag,
            )
            self._seq += 1

    def flush(self) -> Iterable[Frame]:
        run, self._run = self._run, None
        return () if run is None else (run,)
