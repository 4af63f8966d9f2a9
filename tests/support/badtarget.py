"""A target of a campaign that breaks each promise, at cases that are known."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

from streamenc.errors import WireError


class BadTarget:
    """Case 3 raises, 4 takes memory, 5 takes time, 6 ends the process, 7 never ends."""

    seconds, peak_bytes = 0.2, 32 << 20

    def case(self, rng: Random) -> bytes:
        return b"%d" % rng.randrange(2**32)

    def take(self, data: bytes) -> None:
        match WHICH[data]:
            case 3:
                raise KeyError("something")
            case 4:
                b"x" * (64 << 20)
            case 5:
                ends = time.process_time() + 0.3
                while time.process_time() < ends:
                    pass
            case 6:
                os.abort()
            case 7:
                time.sleep(3600)
            case number if number % 2:
                raise WireError("refused")


WHICH: dict[bytes, int] = {}


def target(folder: Path) -> BadTarget:
    from tests.campaign.target import case_of

    made = BadTarget()
    WHICH.update({case_of(made, NAME, 0, number): number for number in range(12)})
    return made


NAME = f"{__name__}:target"
