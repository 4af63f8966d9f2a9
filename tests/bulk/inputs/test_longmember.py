"""A member of an archive that lasts for hours is tokenised in the memory of a short one."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.items import Row
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from tests.support.bulksets import RATE, items_of, opened

MINUTE = (8000 * np.sin(np.arange(60 * RATE) * 0.05)).astype("<i2").tobytes()
GROWTH_MIB = 48  # of what is in memory; the longer member has 110 MiB more


class Minutes(io.RawIOBase):
    """A WAV of so many minutes, made as it is read."""

    def __init__(self, count: int) -> None:
        self.size = 44 + count * len(MINUTE)
        form = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        data = b"data" + struct.pack("<I", self.size - 44)
        head = b"RIFF" + struct.pack("<I", self.size - 8) + b"WAVEfmt " + form + data
        self._pieces = [MINUTE] * count + [head]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._pieces:
            return 0
        some = self._pieces.pop()
        size = min(len(buffer), len(some))
        buffer[:size] = some[:size]
        if size < len(some):
            self._pieces.append(some[size:])
        return size


def peak_mib(tokenizer: Tokenizer, folder: Path, minutes: int) -> float:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        content, info = Minutes(minutes), tarfile.TarInfo("long.wav")
        info.size = content.size
        archive.addfile(info, io.BufferedReader(content))  # type: ignore[arg-type]
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    (row,) = tokenizer.rows(items_of(opened(folder / "a.tar", folder / "kept")))
    assert isinstance(row, Row) and row.seconds == 60 * minutes
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path: Path):
    job = TokenizeJob(input="", models=(ModelAsk(name="nano"),))
    tokenizer = Tokenizer(job, tmp_path)
    short = peak_mib(tokenizer, tmp_path / "short", 1)
    assert peak_mib(tokenizer, tmp_path / "long", 60) < short + GROWTH_MIB
