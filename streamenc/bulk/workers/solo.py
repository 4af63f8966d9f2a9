"""Solo: parts done in this very process, one after the other."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.partwork import Done, Progress, do_part
from streamenc.bulk.tokenizejob import ModelFacts, TokenizeJob
from streamenc.bulk.workers.stop import Abandoned, Stop

KIBIBYTES = 1 if sys.platform == "darwin" else 1024  # in which the system counts memory


def peak_bytes() -> int:
    """Of this process's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTES


class Listener(Protocol):
    """Whom those who do parts tell of it. What it raises ends their work."""

    def told(self, progress: Progress) -> None:
        """Now and then."""

    def finished(self, done: Done) -> None:
        """A shard has its name."""

    def lost(self, part: int) -> None:
        """Who did a part is gone, and it is begun anew."""

    def memory(self, peak_bytes: int) -> None:
        """How much a process had at most."""

    def look(self) -> None:
        """Several times a second."""


class Solo:
    """This process as the one that does parts.

    Args:
        scratch: A folder of this run alone.

    Raises what Tokenizer raises.
    """

    size = 1

    def __init__(
        self, job: TokenizeJob, scratch: Path, device: str, stop: Stop, decoders: int | None
    ) -> None:
        self._scratch, self._stop = scratch, stop
        self._tokenizer = Tokenizer(job, scratch, device, decoders=decoders)

    def facts(self, listener: Listener) -> tuple[ModelFacts, ...]:
        return self._tokenizer.facts

    def work(self, plan: JobPlan, parts: Sequence[int], listener: Listener) -> None:
        """Does parts in their order, until all are done or the run is asked to stop."""

        def began(key: str, behind: int) -> None:
            if self._stop.abandoned:
                raise Abandoned
            listener.look()

        for part in parts:
            if self._stop.asked:
                return
            try:
                done = do_part(
                    plan, part, self._tokenizer, self._scratch, listener.told, began=began
                )
            except Abandoned:
                return
            listener.memory(peak_bytes())
            listener.finished(done)

    def close(self) -> None:
        """Ends what decodes for it."""
        self._tokenizer.__exit__(None, None, None)
