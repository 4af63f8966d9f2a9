"""ZeroMQ as it is met: ends that come late, are slow, vanish, or meet something else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import anyio
import numpy as np
import pytest

from streamenc.errors import InputError, TransportError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.network.packetsource import end_task
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from tests.io.network.test_zeromq import ANY_PORT, CODES, code_frame, opened, run, until


async def collect(source: ZmqSource, into: list[Frame], pause_s: float = 0.0) -> None:
    async for frame in source.frames():
        into.append(frame)
        await anyio.sleep(pause_s)


async def vanish(sink: ZmqSink) -> None:
    """Without a word to the subscribers, as a killed process does."""
    await end_task(sink._task)
    sink._task = None
    await sink._link.aclose(0)


def test_a_subscriber_that_is_there_first_misses_nothing(tmp_path: Path) -> None:
    """However long it waited: neither end knows of the other."""
    got: dict[ZmqSource, list[Frame]] = {}

    async def listen(source: ZmqSource) -> None:
        await source.open()
        await collect(source, got.setdefault(source, []))

    async def main() -> None:
        address = f"zmq+ipc://{tmp_path}/stream"
        sink, *sources = ZmqSink(address), *(ZmqSource(address) for _ in range(3))
        async with opened(sink, *sources), anyio.create_task_group() as tasks:
            for source in sources:
                tasks.start_soon(listen, source)
            await anyio.sleep(0.7)
            await sink.open(CODES)
            for seq in range(50):
                await sink.write(code_frame(seq))
                await anyio.sleep(0.002)
            await sink.aclose()
        assert not any(source.remarks or source.lost or source.broken for source in sources)
        assert not sink.remarks and sink.unheard == 0

    run(main)
    assert [[f.seq for f in frames] for frames in got.values()] == [list(range(50))] * 3


def test_what_a_late_subscriber_missed_is_told_at_both_ends() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, join_ms=0)
        async with opened(sink):
            await sink.open(CODES)
            for seq in range(42):
                await sink.write(code_frame(seq))
            source = ZmqSource(sink.endpoint)
            async with opened(source):
                await source.open()
                await sink.write(code_frame(42))
                frame = await anext(source.frames())
                assert (frame.seq, source.lost) == (42, 0)
                assert source.remarks[0].startswith("joined late: 42 frames had been sent before")
        assert sink.unheard == 42
        assert sink.remarks[0].startswith("42 frames had no subscriber")
        assert "wait_subscribers=1" in sink.remarks[0] and "mode=credit" in sink.remarks[0]

    run(main)


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_a_stream_that_broke_ends_as_broken_everywhere(mode: str) -> None:
    """The end says why, and whoever publishes again what came says it in turn."""

    async def main() -> None:
        first, second = (ZmqSink(ANY_PORT, mode, join_ms=0) for _ in "12")
        async with opened(first, second):
            await first.open(CODES)
            await second.open(CODES)
            near, far = ZmqSource(first.endpoint, mode), ZmqSource(second.endpoint, mode)
            async with opened(near, far), anyio.create_task_group() as tasks:
                await near.open()
                await far.open()
                got: list[Frame] = []
                tasks.start_soon(collect, far, got)
                await first.write(code_frame(0))
                first.broken = "the microphone was unplugged"
                await first.aclose()
                async for frame in near.frames():
                    await second.write(frame)
                second.broken = near.broken
                await second.aclose()
        assert near.broken == "the publisher's stream broke off: the microphone was unplugged"
        assert far.broken == f"the publisher's stream broke off: {near.broken}"
        assert [f.seq for f in got] == [0] and far.lost == 0

    run(main)


def test_a_publisher_that_vanishes_left_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.io.network.zeromq.SILENT_S", 0.3)
    monkeypatch.setattr("streamenc.io.network.zeromq.BEAT_S", 0.1)

    async def main() -> None:
        sink = ZmqSink(ANY_PORT, join_ms=0)
        async with opened(sink):
            await sink.open(CODES)
            source = ZmqSource(sink.endpoint)
            async with opened(source):
                await source.open()
                await anyio.sleep(0.5)
                assert source.broken == ""  # nothing to send is no silence
                await vanish(sink)
                await until(lambda: source.broken)
                assert source.broken == "the publisher vanished without an end"

    run(main)


def test_a_bound_on_age_drops_what_a_slow_end_would_have_read_late() -> None:
    """The reader takes a third of what comes: it falls behind for ever, or by 150 ms."""

    async def main() -> None:
        sink = ZmqSink(ANY_PORT, hwm=1000, join_ms=0)
        async with opened(sink):
            await sink.open(CODES)
            bounded = ZmqSource(sink.endpoint, max_age_ms=150, hwm=1000)
            patient = ZmqSource(sink.endpoint, hwm=1000)
            ages_ms: dict[ZmqSource, list[float]] = {bounded: [], patient: []}
            flags = []

            async def read(source: ZmqSource) -> None:
                due = 0
                async for frame in source.frames():
                    ages_ms[source].append((source.clock.now_ns() - frame.arrived_ns) / 1e6)
                    if source is bounded:
                        flags.append((frame.discontinuity, frame.seq != due))
                        due = frame.seq + 1
                    await anyio.sleep(0.03)

            async with opened(bounded, patient), anyio.create_task_group() as tasks:
                for source in ages_ms:
                    await source.open()
                    tasks.start_soon(read, source)
                for seq in range(120):
                    await sink.write(code_frame(seq, arrived_ns=sink.clock.now_ns()))
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        assert patient.lost == 0 and max(ages_ms[patient]) > 500
        assert median(ages_ms[bounded]) < 250
        assert bounded.lost == bounded.stale > 20
        assert flags and all(flagged == jumped for flagged, jumped in flags)
        assert f"{bounded.stale} frames were older than max_age_ms=150" in bounded.remarks[0]

    run(main)


@pytest.mark.parametrize("node", [ZmqSink, ZmqSource])
def test_a_file_is_never_replaced_by_a_socket(
    tmp_path: Path, node: Callable[[str], ZmqSink | ZmqSource]
) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to(thesis)

    async def main() -> None:
        for path in (thesis, link, tmp_path):
            end = node(f"zmq+ipc://{path}")
            async with opened(end):
                with pytest.raises(TransportError, match=f"{path} is there and is no socket; take"):
                    await (end.open(CODES) if isinstance(end, ZmqSink) else end.open())
        assert thesis.read_text() == "years of work" and link.is_symlink()

    run(main)


def test_what_is_wrong_with_a_path_is_said_of_the_path(tmp_path: Path) -> None:
    async def main() -> None:
        for path in (tmp_path / "nowhere" / "stream", tmp_path / ("s" * 120)):
            sink = ZmqSink(f"zmq+ipc://{path}")
            async with opened(sink):
                with pytest.raises(TransportError, match="its folder must be there") as caught:
                    await sink.open(CODES)
                assert "108 bytes" in str(caught.value) and "port" not in str(caught.value)

    run(main)


@pytest.mark.parametrize("node", [ZmqSink, ZmqSource])
@pytest.mark.parametrize(
    "address", ["zmq+tcp://[::1:5555", "zmq+tcp://[fe80]::1]:5", "zmq+ipc://["]
)
def test_odd_addresses(node: Callable[[str], object], address: str) -> None:
    with pytest.raises(UsageError, match="address"):
        node(address)


def test_the_first_frames_are_held_for_subscribers_without_holding_up_the_source() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, join_ms=400, hwm=64)
        async with opened(sink):
            await sink.open(CODES)
            began = time.monotonic()
            for seq in range(31):
                await sink.write(code_frame(seq))
            assert time.monotonic() - began < 0.2
            await sink.write(code_frame(31))  # as many as a subscriber's queue surely takes
            assert time.monotonic() - began > 0.2 and sink.unheard == 32
        for frames in (0, 1):
            sink = ZmqSink(ANY_PORT, join_ms=400)
            async with opened(sink):
                await sink.open(CODES)
                for seq in range(frames):
                    await sink.write(code_frame(seq))
                began = time.monotonic()
                await sink.aclose()
            # The end of nothing waits for nobody.
            assert (time.monotonic() - began > 0.2) == (sink.unheard > 0) == (frames > 0)

    run(main)


def test_a_held_frame_that_cannot_be_sent_is_an_error_all_the_same() -> None:
    async def main() -> None:
        for writes in (1, 2):
            sink = ZmqSink(ANY_PORT, join_ms=50)
            with pytest.raises(InputError, match="codes from 0 to 70000 do not fit"):
                async with opened(sink):
                    await sink.open(CODES)
                    await sink.write(code_frame(0, data=np.array([[0], [70_000]])))
                    if writes == 2:
                        await anyio.sleep(0.2)
                        await sink.write(code_frame(1))
            await sink.aclose()

    run(main)
