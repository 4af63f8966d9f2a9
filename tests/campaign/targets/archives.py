"""Archives of TorchScript and pickles: damaged ones, and well-formed ones that ask for much.

The first letter of a case says what the rest is: "j", a whole .jit file; "a", the pickle in one;
"z", the pickle in a .pt file; "r", a .pt file that is no zip.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zipfile
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.errors import CheckpointError
from tests.campaign.target import mutated

ENDINGS = {b"j": ".jit", b"a": ".jit", b"z": ".pt", b"r": ".pt"}
NUMBERS = (0, 1, 3, 255, 2**16, 2**31 - 1)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).view(3, 4))
        self.register_buffer("table", torch.arange(6).view(2, 3).t(), persistent=False)
        self.sizes = [1, 2, 3]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + len(self.sizes)


@functools.cache
def seeds() -> dict[bytes, list[bytes]]:
    """Whole files and their pickles, by what they are."""
    script, zipped, legacy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(Inner(), nn.Linear(3, 2))), script)
    content = {"a.weight": torch.ones(2, 3), "b": torch.ones(4).half(), "cfg": {"lr": 0.1}}
    torch.save(content, zipped)
    torch.save({"state_dict": content}, legacy, _use_new_zipfile_serialization=False)
    return {
        b"j": [script.getvalue()],
        b"a": [_pickle(script)],
        b"z": [_pickle(zipped)],
        b"r": [legacy.getvalue(), zipped.getvalue()],
    }


class Archives:
    """All tensors of such a file, read one by one."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def case(self, rng: Random) -> bytes:
        kind = rng.choice(list(ENDINGS))
        if kind != b"j" and rng.random() < 0.4:
            return kind + _program(rng)
        return kind + mutated(rng.choice(seeds()[kind]), rng)

    def take(self, data: bytes) -> None:
        kind, content = data[:1], data[1:]
        path = self._folder / f"weights{ENDINGS[kind]}"
        if kind in b"az":
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("net/data.pkl", content)
                for key in range(6):
                    file.writestr(f"net/data/{key}", bytes(48))
        else:
            path.write_bytes(content)
        checkpoint = open_checkpoint(str(path))
        refused = None
        for name in sorted(checkpoint.names):
            checkpoint.shape(name)
            try:
                checkpoint.stored(name)
            except CheckpointError as error:
                refused = error
        if refused is not None:
            raise refused


def target(folder: Path) -> Archives:
    return Archives(folder)


def _pickle(file: io.BytesIO) -> bytes:
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return archive.read(name)


def _program(rng: Random) -> bytes:
    """Opcodes one after the other, some of which belong together."""

    def text(*choices: str) -> bytes:
        chosen = rng.choice(choices).encode()
        return b"X" + struct.pack("<I", len(chosen)) + chosen

    def number() -> bytes:
        return rng.choice(
            (b"J" + struct.pack("<i", rng.choice(NUMBERS)), b"\x8a\x09" + b"\xff" * 9)
        )

    def name() -> bytes:
        module, called = rng.choice(
            (
                ("builtins", "bytearray"),
                ("builtins", "eval"),
                ("os", "system"),
                ("collections", "OrderedDict"),
                ("torch", "Size"),
                ("torch", "FloatStorage"),
                ("torch", "float8_e5m2"),
                ("torch._utils", "_rebuild_tensor_v2"),
                ("torch._utils", "_rebuild_qtensor"),
                ("torch._utils", "_rebuild_parameter"),
                ("torch._tensor", "_rebuild_from_type_v2"),
                ("torch.jit._pickle", "build_intlist"),
                ("__torch__.net", "Net"),
            )
        )
        return f"c{module}\n{called}\n".encode()

    def storage() -> bytes:
        size = struct.pack("<i", rng.choice((*NUMBERS, 12)))
        return (
            b"("
            + text("storage")
            + name()
            + text("0", "1", "../0")
            + text("cpu")
            + b"J"
            + size
            + b"tQ"
        )

    def tensor() -> bytes:
        sizes = b"".join(number() for _ in range(rng.choice((0, 1, 2, 9))))
        return (
            name() + b"(" + storage() + number() + b"(" + sizes + b"t(" + sizes + b"t\x89" + b"}tR"
        )

    def anything() -> bytes:
        return rng.choice((number, name, storage, tensor, lambda: text("a.weight", "x"), wild))()

    def wild() -> bytes:
        return rng.choice(
            (
                b"r" + struct.pack("<I", 2**31 - 1),
                b"j" + struct.pack("<I", 2**31 - 1),
                b"\x96" + struct.pack("<Q", 2**40),
                b"\x8d" + struct.pack("<Q", 2**63),
                b"\x95" + struct.pack("<Q", 2**62),
                b"\x8b" + struct.pack("<i", -5),
                b"I" + b"9" * 5000 + b"\n",
                *(
                    bytes([code]) * rng.choice((1, 3))
                    for code in b"(]})tlds0123RbQePMG.u\x81\x85\x86\x91"
                ),
            )
        )

    items = b"".join(
        text("a", "b.c", "state_dict") + anything() for _ in range(rng.randrange(1, 9))
    )
    if rng.random() < 0.5:
        items = b"".join(anything() for _ in range(rng.randrange(1, 30)))
    return b"\x80\x02}(" + items + b"u" + wild() + b"."
