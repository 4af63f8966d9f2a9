"""Memory: the same for few short items as for many, and one that is long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16_000
CLOSE_MIB = 60
# In a process of its own, whose peak is that of one run.
RUN = """
import json, sys
from pathlib import Path

from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.items import Item, Local, Row
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize

folder, output, lanes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
job = TokenizeJob(input=str(folder), input_kind="folder", models=(ModelAsk(name="nano"),))
rows = 0
if lanes:
    with Tokenizer(job, output.parent, lanes=lanes) as tokenizer:
        items = (Item(path.name, Local(str(path))) for path in sorted(folder.iterdir()))
        for row in tokenizer.rows(items):
            assert isinstance(row, Row), row
            rows += 1
else:
    figures = tokenize(job, output, workers=0)
    assert not figures.errors
    rows = figures.items
# Of this program alone: getrusage's peak holds what its parent had when it began.
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(json.dumps({"rows": rows, "peak_kib": int(peak.split()[1])}))
"""


def noise(path: Path, seconds: float) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, round(RATE * seconds))
    soundfile.write(path, samples.astype(np.float32), RATE)
    return path


def peak_mib(folder: Path, count: int, long_seconds: float, lanes: int) -> float:
    """Of a process that takes items of 0.05 s, and one that is long in their middle."""
    inside = folder / "in"
    inside.mkdir(parents=True)
    short = noise(folder / "short.wav", 0.05)
    for number in range(count):
        os.link(short, inside / f"{number:05d}.wav")
    noise(inside / f"{count // 2:05d}-long.wav", long_seconds)
    arguments = [sys.executable, "-c", RUN, inside, folder / "set", lanes]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == count + 1
    return told["peak_kib"] / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="by Linux' /proc")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lanes", [0, 8])
def test_it_grows_with_neither_number_nor_length(tmp_path: Path, lanes: int) -> None:
    few = peak_mib(tmp_path / "few", 100, 20.0, lanes)
    many = peak_mib(tmp_path / "many", 3000, 600.0, lanes)
    print(f"{lanes} lanes: {few:.0f} MiB, {many:.0f} MiB")
    assert abs(many - few) < CLOSE_MIB, (few, many)
