"""Solo: parts done in this very process, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.partwork import do_part
from streamenc.bulk.tokenizejob import ModelFacts, TokenizeJob
from streamenc.bulk.workers.footprint import peak_bytes
from streamenc.bulk.workers.stop import Abandoned, Stop
from streamenc.bulk.workers.worklistener import Listener


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
