"""A worker: a process that loads the models of a job and does the parts that it is given.

`python -m streamenc.bulk.workers.partchild`, with orders on standard input, which the run holds
open: its end without a word means that the run is gone, and ends this process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamenc.bulk.encoding.tokenizer import Tokenizer
    from streamenc.bulk.workers.messages import Report, Setup

BEAT_SECONDS = 1.0


class PartChild:
    """Does what it is told, until there is no more to do.

    Args:
        reports: The descriptor that they are written to.
    """

    def __init__(self, reports: int) -> None:
        self._reports, self._lock = reports, threading.Lock()
        self._orders: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._listen, name="streamenc-orders", daemon=True).start()

    def run(self) -> None:
        # What takes seconds to import is imported once signals are ignored, and while the run does
        # what comes before.
        import msgspec

        from streamenc.bulk.encoding.tokenizer import Tokenizer
        from streamenc.bulk.workers.messages import Failure, Ready, Setup
        from streamenc.errors import StreamencError

        setup = msgspec.json.decode(self._orders.get(), type=Setup)
        sys.path[:] = setup.path
        try:
            with Tokenizer(
                setup.job, Path(setup.scratch), setup.device, decoders=setup.decoders
            ) as tokenizer:
                self._say(Ready(tokenizer.facts))
                beating = threading.Thread(target=self._beat, args=(tokenizer,), daemon=True)
                beating.start()
                self._work(setup, tokenizer)
        except StreamencError as error:
            self._say(Failure(type(error).__name__, str(error)))

    def _work(self, setup: Setup, tokenizer: Tokenizer) -> None:
        import msgspec

        from streamenc.bulk.jobplan import JobPlan
        from streamenc.bulk.partwork import do_part
        from streamenc.bulk.workers.messages import Began, End, Take

        orders = msgspec.json.Decoder(Take | End)
        plan = None
        while isinstance(order := orders.decode(self._orders.get()), Take):
            plan = plan or JobPlan(Path(setup.output))
            done = do_part(
                plan,
                order.part,
                tokenizer,
                Path(setup.scratch),
                self._say,
                began=lambda key, behind: self._say(Began(key, behind)),
                skip=order.skip,
                singly=order.singly,
            )
            self._say(done)

    def _beat(self, tokenizer: Tokenizer) -> None:
        """Says now and then that something comes of it, as long as it does."""
        from streamenc.bulk.workers.footprint import peak_bytes
        from streamenc.bulk.workers.messages import Beat

        before = None
        while True:
            now = dict(tokenizer.spent)
            if now != before:
                before = now
                self._say(Beat(peak_bytes()))
            time.sleep(BEAT_SECONDS)

    def _say(self, report: Report) -> None:
        from streamenc.bulk.workers.messages import line_of

        left = memoryview(line_of(report))
        with self._lock:
            while left:
                try:
                    left = left[os.write(self._reports, left) :]
                except BrokenPipeError:
                    os._exit(1)

    def _listen(self) -> None:
        """Takes orders, which are short, as they come."""
        line = b""
        while some := os.read(0, 1 << 16):
            *lines, line = (line + some).split(b"\n")
            for whole in lines:
                self._orders.put(whole)
        os._exit(1)


def main() -> None:
    """Runs until there is no more to do, or the run is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever sends them to all processes of a job means the run, which then sees to its
        # workers.
        signal.signal(number, signal.SIG_IGN)
    reports = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no report
    PartChild(reports).run()
    sys.stderr.flush()
    os._exit(0)  # without waiting for what libraries would still tidy up


if __name__ == "__main__":
    main()
