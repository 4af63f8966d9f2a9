"""A node of one's own: a gate that lets only speech through to the encoder.

    python examples/custom_node.py [FILE]

A node is a plain object with `open`, `push` and `flush`: no asyncio, no threads. The graph does
the rest. Where the gate was shut, the next frame is flagged: the encoder ends its stream there and
starts a new one, and all timestamps stay those of the file.
"""

import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import streamenc
from streamenc import FitError, Frame, Pipeline, StreamInfo, Transform

CLIP = Path(__file__).parent / "data" / "speech.flac"


class Gate(Transform):
    """Passes audio louder than `threshold_db` (of full scale, RMS of a frame), and drops silence.

    It opens one frame early, so that no onset is cut, and shuts `hold_seconds` late.
    """

    def __init__(self, threshold_db: float = -40.0, hold_seconds: float = 0.1) -> None:
        self.threshold = 10 ** (threshold_db / 20)
        self.hold_seconds = hold_seconds
        self.shut_ticks = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "audio":
            raise FitError(f"a Gate listens to audio; got {info}")
        self._hold = round(self.hold_seconds / info.time_base)
        self._open_until = -1
        self._before: deque[Frame] = deque(maxlen=1)
        self._broken = False
        self._seq = 0
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        end = frame.pts + frame.duration
        if np.sqrt(np.mean(np.square(frame.data))) >= self.threshold:
            self._open_until = end + self._hold
            passed = [*self._before, frame]
            self._before.clear()
        elif frame.pts < self._open_until:
            passed = [frame]
        else:
            self._drop()
            self._before.append(frame)
            return ()
        return [self._pass(each) for each in passed]

    def flush(self) -> Iterable[Frame]:
        self._drop()
        return ()

    def _drop(self) -> None:
        for frame in self._before:
            self.shut_ticks += frame.duration
            self._broken = True
        self._before.clear()

    def _pass(self, frame: Frame) -> Frame:
        flag = frame.discontinuity or self._broken
        passed = frame.with_(discontinuity=flag, seq=self._seq)
        self._broken = False
        self._seq += 1
        return passed


def main(clip: str = str(CLIP)) -> None:
    gate = Gate()
    with Pipeline() as pipeline:
        sound = pipeline.source("clip", clip)
        speech = pipeline.transform("gate", gate, sound)
        codes = pipeline.encode("encode", streamenc.load("mel"), speech)
        pipeline.sink("out", "null:", codes)
        report = pipeline.graph.run_blocking()
    print(report)
    if (sink := report["out"].sink) is not None:
        print(f"{sink.gaps} pauses were cut out, {gate.shut_ticks:,} ticks in all")


if __name__ == "__main__":
    main(*sys.argv[1:2])
