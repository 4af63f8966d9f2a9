"""`tokenize`: a data set to a set of tokens, gone on with where an earlier run ended."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.inputs.looks import look
from streamenc.bulk.jobplan import make_plan
from streamenc.bulk.manifest import Finished, Manifest
from streamenc.bulk.partwork import SCRATCH, Progress, do_part
from streamenc.bulk.tokenizejob import TokenizeJob


def tokenize(
    job: TokenizeJob,
    output: str | os.PathLike[str],
    *,
    share: tuple[int, int] = (0, 1),
    tell: Callable[[Progress], None] = lambda progress: None,
) -> dict[int, Finished]:
    """Does what is left of a job, in this process.

    Args:
        output: The folder of the set.
        share: (i, n): every n-th part, from the i-th on.

    Returns:
        The finished parts of this share.

    Raises:
        UsageError: Where the output holds another job, or the input nothing.
        OutputError: Where it cannot be written.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / SCRATCH
    scratch.mkdir(exist_ok=True)
    if not job.input_kind:
        job = msgspec.structs.replace(job, input_kind=look(job.input))
    tokenizer = Tokenizer(job, scratch)
    plan = make_plan(folder, job, tokenizer.facts)
    manifest = Manifest(folder, share)
    try:
        for part in range(share[0], plan.parts, share[1]):
            if part not in manifest.finished:
                done = do_part(plan, part, tokenizer, tell)
                manifest.add(done.line, done.faults)
        return manifest.finished
    finally:
        manifest.close()
