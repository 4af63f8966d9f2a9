"""Target: what a campaign throws bytes at."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Protocol

# Name -> "module:function"; the function takes an empty folder, in which the target may write.
TARGETS = {
    "snapshots": "tests.campaign.targets.snapshots:target",
    "configs": "tests.campaign.targets.configs:target",
    "opcodes": "tests.campaign.targets.archives:target",
    "pickles": "tests.campaign.targets.weights:target_pickled",
    "safetensors": "tests.campaign.targets.weights:target_safetensors",
    "packets": "tests.campaign.targets.packetsequences:target",
    "wire": "tests.campaign.targets.wirebytes:target",
    "streams": "tests.campaign.targets.streams:target",
    "recordings": "tests.campaign.targets.recordedfiles:recordings",
    "parquet": "tests.campaign.targets.recordedfiles:parquet",
    "npz": "tests.campaign.targets.recordedfiles:npz",
    "ecdc": "tests.campaign.targets.recordedfiles:ecdc",
    "jsonlines": "tests.campaign.targets.recordedfiles:jsonlines",
    "pipelines": "tests.campaign.targets.pipelines:target",
    "addresses": "tests.campaign.targets.addresses:target",
    "media": "tests.campaign.targets.mediafiles:target",
    "texts": "tests.campaign.targets.textfiles:target",
    "resumption": "tests.campaign.targets.resumption:target",
    "server-sockets": "tests.campaign.targets.serversockets:target",
    "server-http": "tests.campaign.targets.serverhttp:target",
    "engine-door": "tests.campaign.targets.enginedoor:target",
    "engine-answers": "tests.campaign.targets.engineanswers:target",
    "worker-lines": "tests.campaign.targets.workerlines:target",
    "key-files": "tests.campaign.targets.keyfiles:target",
}
# Those whose input is read byte by byte, by Python: coverage can guide what is tried on them.
GUIDED = ("wire", "worker-lines", "key-files")


class Target(Protocol):
    """Something that reads what strangers send.

    Attributes:
        seconds: CPU time that a case may take.
        peak_bytes: by how much a case may raise the process's memory.
    """

    seconds: float
    peak_bytes: int

    def case(self, rng: Random) -> bytes:
        """One input, which follows from `rng` alone: mutated, forged, or absurd but well formed."""
        ...

    def take(self, data: bytes) -> None:
        """Does with `data` what the product does with it, to the last consequence.

        Raises:
            StreamencError: it was refused, as it should be. Anything else is a fault.
        """
        ...


def open_target(name: str, folder: Path) -> Target:
    """The target of a name in `TARGETS`, or of a "module:function" of one's own."""
    module, _, function = TARGETS.get(name, name).partition(":")
    make: Callable[[Path], Target] = getattr(import_module(module), function)
    return make(folder)


def case_of(target: Target, name: str, seed: int, number: int) -> bytes:
    """The case of a number: the same whenever, in whatever process, and beside whatever others."""
    return target.case(Random(f"{name} {seed} {number}" if seed else f"{name} {number}"))


def mutated(seed: bytes, rng: Random) -> bytes:
    """`seed` with bytes changed, cut out or repeated, or with numbers that like to break things."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del data[at : at + rng.choice((1, 2, 8, 64, len(data)))]
            case 3:
                data[at:at] = data[at : at + rng.choice((1, 4, 16, 256))] * rng.choice((1, 2, 50))
            case 4:
                size = rng.choice((2, 4, 8))
                number = rng.choice((0, 1, -1, 2**15, 2**31 - 1, 2**31, 2**63 - 1, 2**63))
                order = rng.choice(("little", "big"))
                data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, order)
            case 5:
                del data[at:]
            case 6:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
    return bytes(data)
