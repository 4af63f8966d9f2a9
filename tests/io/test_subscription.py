from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import streamenc
from streamenc.errors import MediaError, TransportError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.files.recording import RecordingSource
from streamenc.io.network.zeromq import ZmqSink
from tests.io.files.test_recording import CODES, FILM, frames_of, record


def codes(seq: int, scale: float = 1.0) -> Frame:
    data = np.full((8, 2), seq, np.uint16)
    return Frame(data, seq * 7056, 7056, seq, discontinuity=seq == 5, scale=scale)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(tmp_path / "a.arrows", CODES, [codes(seq) for seq in range(40)])
    return tmp_path / "a.arrows"


def names() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("subscription")]


@contextmanager
def published(count: int, folder: Path, broken: str = "") -> Iterator[str]:
    """The address of a stream of so many frames, which is sent once somebody listens."""
    url = f"zmq+ipc://{folder}/socket"

    async def send() -> None:
        sink = ZmqSink(url, mode="credit", wait_subscribers=1)
        try:
            await sink.open(CODES)
            for seq in range(count):
                await sink.write(codes(seq))
            sink.broken = broken
        finally:
            await sink.aclose()

    sender = threading.Thread(target=lambda: asyncio.run(send()))
    sender.start()
    yield url
    sender.join()


def test_what_is_sent_comes_piece_by_piece(tmp_path: Path) -> None:
    with published(300, tmp_path) as url:
        got = []
        with streamenc.subscribe(url, mode="credit", capacity=4) as tokens:
            assert tokens.info == CODES
            for data, seconds, gap in tokens:
                got.append((int(data[0, 0]), round(seconds, 6), gap, data.shape))
            assert (tokens.lost, tokens.broken) == (0, "")
    assert got == [(seq, round(seq * 0.16, 6), seq == 5, (8, 2)) for seq in range(300)]
    assert not names()


def test_a_stream_that_broke_off_says_so_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with published(3, tmp_path, "the microphone was unplugged") as url:
        tokens = streamenc.subscribe(url, mode="credit")
        assert len(list(tokens)) == 3
    assert tokens.broken.endswith("the microphone was unplugged")
    assert [record.getMessage() for record in caplog.records] == [tokens.broken]


def test_a_program_with_asyncio_waits_without_blocking(tmp_path: Path) -> None:
    async def listen(url: str) -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.ensure_future(tick())
        got = []
        async with streamenc.subscribe(url, mode="credit", capacity=2) as tokens:
            async for piece in tokens:
                got.append(int(piece.data[0, 0]))
                await asyncio.sleep(0.002)
        ticker.cancel()
        return got, ticks

    with published(50, tmp_path) as url:
        got, ticks = asyncio.run(listen(url))
    assert got == list(range(50))
    assert ticks > 20
    assert not names()


def test_a_piece_knows_its_frame(tmp_path: Path) -> None:
    record(tmp_path / "a.arrows", CODES, [codes(0, scale=0.5)])
    (piece,) = streamenc.subscribe(str(tmp_path / "a.arrows"))
    assert isinstance(piece, streamenc.Piece)
    assert (piece.seconds, piece.gap, piece.frame.scale) == (0.0, False, 0.5)
    assert repr(piece) == "Piece(0.000 s, Frame(uint16 8x2, pts=0, duration=7056, seq=0))"


def test_of_a_mux_all_tracks_come_or_one(tmp_path: Path) -> None:
    path = str(tmp_path / "film.arrows")
    record(tmp_path / "film.arrows", FILM, frames_of(FILM, 10))
    assert [piece.frame.track for piece in streamenc.subscribe(path)] == [0, 1] * 5
    one = streamenc.subscribe(path, track=1)
    assert [piece.data.ndim for piece in one] == [4] * 5
    assert one.info == FILM.tracks[1]


def test_a_slow_program_holds_a_file_up_and_loses_nothing(recorded: Path) -> None:
    with streamenc.subscribe(str(recorded), capacity=1) as tokens:
        seqs = []
        for piece in tokens:
            time.sleep(0.001)
            seqs.append(piece.frame.seq)
    assert seqs == list(range(40))


def test_a_slow_program_loses_the_oldest_of_a_live_stream() -> None:
    url = "test:motion?size=64x48&fps=100&seconds=0.5"
    with streamenc.subscribe(url, capacity=3) as images:
        assert images.info.kind == "video"
        first = next(images)
        time.sleep(0.8)
        rest = list(images)
    assert first.frame.seq == 0
    assert [piece.frame.seq for piece in rest] == [47, 48, 49]
    assert [piece.gap for piece in rest] == [True, False, False]
    assert images.lost == 46


def test_leaving_it_anywhere_ends_its_thread(recorded: Path) -> None:
    for _ in streamenc.subscribe(str(recorded), capacity=1):
        break
    gc.collect()
    assert not names()
    tokens = streamenc.subscribe(str(recorded))
    next(tokens)
    tokens.close()
    tokens.close()
    assert not names()
    with pytest.raises(StopIteration):
        next(tokens)


def test_a_wait_may_be_given_up(recorded: Path) -> None:
    async def main() -> list[int]:
        url = "test:motion?size=64x48&fps=10&seconds=1"
        async with streamenc.subscribe(url) as images:
            await anext(images)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(images), 0.001)
            return [piece.frame.seq async for piece in images]

    assert asyncio.run(main()) == list(range(1, 10))


def test_what_ends_a_stream_is_raised_once_all_was_given(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = RecordingSource.read

    def failing(self: RecordingSource) -> Frame | None:
        frame = read(self)
        if frame is not None and frame.seq == 3:
            raise MediaError("the disk is gone")
        return frame

    monkeypatch.setattr(RecordingSource, "read", failing)
    tokens = streamenc.subscribe(str(recorded))
    assert [next(tokens).frame.seq for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MediaError, match="the disk is gone"):
        next(tokens)
    assert not names()


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no option 'speed'"):
        streamenc.subscribe("zmq+tcp://127.0.0.1:5555", speed=3)
    with pytest.raises(UsageError, match="capacity"):
        streamenc.subscribe("zmq+tcp://127.0.0.1:5555", capacity=0)
    with pytest.raises(MediaError, match="none"):
        next(streamenc.subscribe(str(tmp_path / "none.arrows")))
    with pytest.raises(TransportError, match="nothing was published"):
        _ = streamenc.subscribe("zmq+tcp://127.0.0.1:9", timeout_s=0.1).info


INTERRUPTED = """
import sys, streamenc
try:
    for piece in streamenc.subscribe("test:motion?size=64x48&fps=50"):
        print(piece.frame.seq, flush=True)
except KeyboardInterrupt:
    import threading
    print([t.name for t in threading.enumerate() if "subscription" in t.name])
"""


def test_control_c_ends_it() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
        rest = program.stdout.read().decode().splitlines()
        assert program.wait(20) == 0, program.stderr.read().decode()
    assert rest[-1] == "[]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has none")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_is_told_that_nothing_will_come_there(tmp_path: Path) -> None:
    with published(3, tmp_path) as url, streamenc.subscribe(url, mode="credit") as tokens:
        assert tokens.info == CODES
        reading, writing = os.pipe()
        if not (child := os.fork()):
            try:
                next(tokens)
            except UsageError as error:
                os.write(writing, str(error).encode())
            finally:
                tokens.close()  # which waits for nobody either
                os._exit(0)
        os.close(writing)
        with open(reading) as said:
            told = said.read()
        os.waitpid(child, 0)
        assert f"is read in process {os.getpid()}, and process {child} is a fork of it" in told
        assert [int(piece.data[0, 0]) for piece in tokens] == [0, 1, 2]


def test_a_piece_goes_through_a_queue_between_processes(recorded: Path) -> None:
    with streamenc.subscribe(str(recorded)) as tokens:
        piece = next(tokens)
    for made in (pickle.loads(pickle.dumps(piece)), copy.copy(piece)):
        assert repr(made) == repr(piece) and made.frame.duration == piece.frame.duration
        data, seconds, gap = made
        assert (seconds, gap) == (piece.seconds, piece.gap)
        np.testing.assert_array_equal(data, piece.data, strict=True)


def test_a_loop_that_is_closed_while_it_waits_does_not_end_the_stream_for_others() -> None:
    with streamenc.subscribe("test:bars?size=32x32&fps=20&seconds=0.3") as images:
        next(images)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # which would say that the task is left
        waiting = loop.create_task(anext(images))  # type: ignore[arg-type]
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert len(list(images)) == 5 and not waiting.done()
