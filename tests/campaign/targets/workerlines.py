"""Lines on the pipe of a worker of `streamenc tokenize`: what it loads may write there as well."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from streamenc.bulk.partwork import Progress
from streamenc.bulk.workers.messages import Beat, Began, Failure, line_of, read_report
from tests.campaign.target import mutated

SEEDS = (
    line_of(Began("clips/a.flac", 1)),
    line_of(Progress(1, 2, 0, 3.5, {"reading": 0.5})),
    line_of(Beat(10**9)),
    line_of(Failure("InputError", "it is empty")),
)
ODD = (None, True, -1, 2**64, 1e308, "", "x" * 5000, [], {}, [[]])


class WorkerLines:
    """`read_report` on each line."""

    seconds, peak_bytes = 0.5, 64 << 20

    def case(self, rng: Random) -> bytes:
        seed = rng.choice(SEEDS)
        if rng.random() < 0.6:
            return mutated(seed, rng)
        fields = json.loads(seed)
        fields[rng.choice(list(fields))] = rng.choice(ODD)
        return json.dumps(fields).encode()

    def take(self, data: bytes) -> None:
        for line in data.split(b"\n")[:-1] or [data]:
            read_report(line)


def target(folder: Path) -> WorkerLines:
    return WorkerLines()
