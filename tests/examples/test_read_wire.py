"""examples/read_wire.py reads what a real ZmqSink publishes, and does without streamenc."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import anyio
import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.zeromq import ZmqSink

EXAMPLE = Path(__file__).parents[2] / "examples" / "read_wire.py"
INFO = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (4, None), "uint16", "demo", 2048)
# Any import of streamenc fails, as it would where it is not installed.
WITHOUT_STREAMENC = """
import runpy, sys
sys.modules["streamenc"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_prints_the_frames_of_a_stream(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/stream"
    reader = subprocess.Popen(
        [sys.executable, "-I", "-c", WITHOUT_STREAMENC, str(EXAMPLE), address],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )

    async def main() -> None:
        sink = ZmqSink(f"zmq+{address}", wait_subscribers=1)
        try:
            await sink.open(INFO)
            for seq in range(3):
                data = np.arange(4, dtype=np.uint16).reshape(4, 1) + 512 * seq
                await sink.write(Frame(data, 1920 * seq, 1920, seq, discontinuity=seq == 2))
        finally:
            sink.broken = "the microphone was unplugged"
            await sink.aclose()

    try:
        anyio.run(main)
        out, _ = reader.communicate(timeout=30)
    finally:
        reader.kill()
        reader.communicate()
    assert reader.returncode == 0
    assert out.splitlines() == [
        "stream of codes demo",
        "seq 0  0.000 s  4x1  0 1 2 3",
        "seq 1  0.080 s  4x1  512 513 514 515",
        "seq 2  0.160 s  4x1  1024 1025 1026 1027 after a discontinuity",
        "end after 3 frames, broken off: the microphone was unplugged",
    ]


def test_explains_itself() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True)
    assert done.returncode != 0 and "examples/read_wire.py tcp://" in done.stderr
