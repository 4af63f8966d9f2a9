"""`python -m tests.support.bulkrun RUN`: a run as a process of its own, which may be killed.

RUN is JSON; see `Run`. It prints a line for each stage, and at its end its figures.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType

import msgspec

from streamenc.bulk import manifest
from streamenc.bulk.runfigures import RunFigures
from streamenc.bulk.tokenizejob import TokenizeJob
from streamenc.bulk.tokenizing import tokenize
from streamenc.bulk.workers import partprocess
from streamenc.bulk.workers.stop import Stop
from tests.support.bulkchild import COMMAND


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run.

    Attributes:
        stub: Whether its workers have the stub.
        dies_at: Which write of a manifest or of errors it does not survive; 0 for none.
        half: Whether half of that is written.
    """

    job: TokenizeJob
    output: str
    workers: int = 2
    share: tuple[int, int] = (0, 1)
    stub: bool = True
    dies_at: int = 0
    half: bool = False

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.support.bulkrun", msgspec.json.encode(self).decode()]


def main() -> None:
    run = msgspec.json.decode(sys.argv[1], type=Run)
    if run.stub:
        partprocess.COMMAND = COMMAND
    if run.dies_at:
        _die_at(run.dies_at, run.half)
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.ask()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    stages = set()

    def tell(figures: RunFigures) -> None:
        if figures.stage not in stages:
            stages.add(figures.stage)
            print(figures.stage, flush=True)

    figures = tokenize(
        run.job, run.output, share=run.share, workers=run.workers, tell=tell, stop=stop
    )
    print(json.dumps(figures.as_json()), flush=True)
    sys.exit(3 if figures.stopped else 0)


def _die_at(at: int, half: bool) -> None:
    write, count = manifest._write, 0

    def dying(file: manifest.BinaryIO, lines: bytes) -> None:
        nonlocal count
        count += 1
        if count == at:
            if half:
                write(file, lines[: len(lines) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, lines)

    manifest._write = dying


if __name__ == "__main__":
    main()
