from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from streamenc.errors import MediaError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.files.pcm import FORMATS, PcmSource, pcm_to_float


def frames_of(source: PcmSource) -> list[Frame]:
    try:
        source.open_blocking()
        return list(iter(source.read, None))
    finally:
        source.close_blocking()
        source.close_blocking()


def to_pcm(format: str, samples: np.ndarray[Any, Any]) -> bytes:
    """Interleaved float64 in [-1, 1) to bytes, written without looking at the reader."""
    if format.startswith("f"):
        order = "<" if format.endswith("le") else ">"
        return samples.astype(f"{order}f{int(format[1:3]) // 8}").tobytes()
    bits = 8 if format in ("u8", "s8") else int(format[1:3])
    whole = [round(x * 2 ** (bits - 1)) for x in samples]
    if format == "u8":
        return bytes(x + 128 for x in whole)
    return b"".join(
        x.to_bytes(bits // 8, "little" if format.endswith("le") else "big", signed=True)
        for x in whole
    )


@pytest.mark.parametrize("format", [name for name in FORMATS if "law" not in name])
def test_every_format_gives_the_same_samples(format: str) -> None:
    samples = np.array([-1, -0.5, 0, 0.25, 127 / 128, 1 / 128])
    got = pcm_to_float(to_pcm(format, samples), format, channels=2)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, samples.reshape(3, 2).T.astype(np.float32), strict=True)


def test_a_file_is_cut_into_chunks_on_one_timeline(tmp_path: Path) -> None:
    samples = np.arange(2 * 1000, dtype="<i2")
    (tmp_path / "a.pcm").write_bytes(samples.tobytes())
    source = PcmSource(str(tmp_path / "a.pcm"), rate="16000", channels="2", chunk_ms="10")
    info = source.open_blocking()
    assert (info.kind, info.rate, info.shape) == ("audio", Fraction(16000), (2, None))
    assert info.time_base == Fraction(1, 16000)
    assert not source.live
    frames = list(iter(source.read, None))
    source.close_blocking()
    assert [frame.duration for frame in frames] == [160] * 6 + [40]
    assert [frame.pts for frame in frames] == list(range(0, 1000, 160))
    assert [frame.seq for frame in frames] == list(range(7))
    data = np.concatenate([frame.data for frame in frames], axis=1)
    np.testing.assert_array_equal(data * 2**15, samples.reshape(1000, 2).T)


def test_a_partial_sample_at_the_end_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(100 * 4 + 3))
    source = PcmSource(str(tmp_path / "a.raw"), channels=2)
    frames = frames_of(source)
    assert sum(frame.duration for frame in frames) == 100
    assert source.partial_bytes == 3
    assert "3 bytes into a sample of 4 bytes" in caplog.text


@pytest.mark.parametrize("size", [0, 1])
def test_hardly_anything_gives_no_frame(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(size))
    assert frames_of(PcmSource(str(tmp_path / "a.raw"))) == []


READ_STDIN = """
from streamenc.io.files.pcm import PcmSource

source = PcmSource("-", rate=1000, chunk_ms=10)
source.open_blocking()
total = 0
for frame in iter(source.read, None):
    total += frame.duration
    print(frame.pts, frame.duration, int(frame.data.sum() * 32768), flush=True)
source.close_blocking()
"""


def test_standard_input_comes_chunk_by_chunk() -> None:
    command = [sys.executable, "-c", READ_STDIN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        samples = np.ones(25, "<i2").tobytes()
        for start, stop in ((0, 7), (7, 19), (19, 20)):  # split within a sample
            reader.stdin.write(samples[start:stop])
            reader.stdin.flush()
        assert reader.stdout.readline() == b"0 10 10\n"
        reader.stdin.write(samples[20:])
        reader.stdin.close()
        assert reader.stdout.read() == b"10 10 10\n20 5 5\n"


def wait_in_read(source: PcmSource, got: list[Frame | None]) -> threading.Thread:
    thread = threading.Thread(target=lambda: got.append(source.read()))
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    return thread


@pytest.mark.parametrize("written", [b"", bytes(20)])
def test_stop_ends_a_read_that_waits(tmp_path: Path, written: bytes) -> None:
    fifo = tmp_path / "a.pcm"
    os.mkfifo(fifo)
    source = PcmSource(str(fifo))
    source.open_blocking()  # does not wait for the writer
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, written)
    got: list[Frame | None] = []
    thread = wait_in_read(source, got)
    source.stop()
    thread.join(10)
    assert not thread.is_alive()
    (frame,) = got
    # What was already read is still delivered.
    assert (0 if frame is None else frame.duration) == len(written) // 2
    os.close(writer)
    source.close_blocking()


def test_a_named_pipe_waits_for_its_writer_and_ends_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "a.pcm"
    os.mkfifo(fifo)
    source = PcmSource(str(fifo), rate=1000, chunk_ms=10)
    source.open_blocking()
    got: list[Frame | None] = []
    thread = wait_in_read(source, got)
    with fifo.open("wb") as writer:
        writer.write(bytes(30))
    thread.join(10)
    got += iter(source.read, None)
    source.close_blocking()
    assert [frame and frame.duration for frame in got] == [10, 5]


def test_a_graph_can_stop_it(tmp_path: Path) -> None:
    fifo = tmp_path / "a.pcm"
    os.mkfifo(fifo)
    source = PcmSource(str(fifo))

    async def main() -> None:
        await source.open()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:

                async def drain() -> None:
                    async for _ in source.frames():
                        raise AssertionError("nobody wrote anything")

                tasks.start_soon(drain)
                await anyio.sleep(0.2)
                source.stop()
        await source.aclose()

    anyio.run(main)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda path: None, "No such file"), (lambda path: path.mkdir(), "folder")],
)
def test_what_cannot_be_opened_is_a_media_error(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "a.pcm")
    source = PcmSource(str(tmp_path / "a.pcm"))
    with pytest.raises(MediaError, match=message):
        source.open_blocking()
    source.close_blocking()


def test_a_terminal_is_no_input() -> None:
    main, terminal = os.openpty()
    command = [sys.executable, "-c", READ_STDIN]
    try:
        done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=False)
    finally:
        os.close(main)
        os.close(terminal)
    assert "MediaError: standard input is a terminal" in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("rate", "0"), ("rate", "fast"), ("channels", 65), ("format", "mp3"), ("chunk_ms", "nan")],
)
def test_bad_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        PcmSource("a.pcm", **{option: value})
