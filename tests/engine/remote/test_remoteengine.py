"""Sessions on an engine in another process: the same calls, outputs and errors as on one here."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch
import zmq

import streamenc
from bench.cpu.nothing import Nothing
from streamenc.codec import Codec
from streamenc.engine.engine import Engine
from streamenc.engine.remote import connection, protocol
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.engine.remote.protocol import Call, Choose, Close, Limits, Open, Outgoing, Turn, head
from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.errors import (
    EngineFull,
    InputError,
    SnapshotError,
    StreamencError,
    TransportError,
    UsageError,
)
from streamenc.spec import ScaledCodes
from streamenc.stream import Stream
from tests.engine.remote.conftest import PLACES
from tests.support import zoo
from tests.support.compare import assert_close

NOTHING = Codec("nothing", Nothing(), None)


def hop(number: float) -> np.ndarray:
    chunk = np.zeros((1, 320), np.float32)
    chunk[0, :2] = number, number + 0.5
    return chunk


async def eventually(true, seconds: float = 20.0) -> None:
    """Waits until it is, on this event loop."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


def run(main) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await main()

    anyio.run(limited)


def test_an_answer_that_comes_while_the_door_is_woken_for_another_is_sent(server, monkeypatch):
    """Where the wake-up of the second were lost, all later answers would wait for the next beat."""

    class Pipe:
        """Whose reading is preempted, once: the worker answers something else meanwhile."""

        def __init__(self, pipe: socket.socket) -> None:
            self._pipe, self.waits = pipe, True

        def recv(self, most: int) -> bytes:
            if self.waits:
                self.waits = False
                server._wake()
            return self._pipe.recv(most)

        def __getattr__(self, name: str) -> object:
            return getattr(self._pipe, name)

    pipe = Pipe(server._wake_out)
    monkeypatch.setattr(server, "_wake_out", pipe)

    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as engine:
            with engine.open("nothing") as session:
                await session.step(hop(0))
                began = time.monotonic()
                for number in range(8):
                    await session.step(hop(number))
                assert not pipe.waits and time.monotonic() - began < 3

    run(main)


def test_outputs_are_those_of_a_stream(server):
    model = zoo.codec("nano").encoder
    sound = zoo.signal(model, 20 * model.spec.hop + 77, seed=3)
    stream = Stream(model, codebooks=3)
    alone = torch.cat([stream.push(sound), stream.flush()], dim=2).numpy()

    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as engine:
            with engine.open("nano", codebooks=3) as session:
                cuts = range(41, sound.shape[2], 41)
                parts = [await session.step(c) for c in np.split(sound.numpy(), cuts, axis=2)]
                parts.append(await session.flush())
                assert all(part.flags.writeable for part in parts)
                assert np.array_equal(np.concatenate(parts, axis=2), alone)
            with engine.open("nano", decode=True) as session:
                made = [await session.step(alone[0]), await session.flush()]
                whole = zoo.codec("nano").decode(torch.from_numpy(alone))
                assert_close(torch.from_numpy(np.concatenate(made, axis=2)), whole, 1e-5)

    run(main)


def test_codes_with_a_volume_go_both_ways(server):
    codec = zoo.codec("encodec-48k")
    sound = zoo.signal(codec.encoder, 5 * codec.encoder.spec.hop, seed=1)

    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as engine:
            both = engine.codec("encodec-48k")
            with engine.open(both.encoder) as session, engine.open(both.decoder) as back:
                codes = await session.step(sound)
                assert isinstance(codes, ScaledCodes)
                alone = Stream(codec.encoder).push(sound)
                assert np.array_equal(codes.codes, alone.codes.numpy())
                assert np.array_equal(codes.scale, alone.scale.numpy())
                audio = await back.step(codes)
                assert_close(torch.from_numpy(audio), Stream(codec.decoder).push(alone), 1e-6)

    run(main)


def test_what_is_told_of_a_model(server):
    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as engine:
            model = zoo.codec("nano").encoder
            told = engine.model("nano")
            assert told.spec == model.spec
            assert told.fingerprint() == model.fingerprint()
            assert engine.codec("nano").public_name == zoo.codec("nano").public_name
            assert engine.max_sessions == PLACES
            assert not engine.codec("nothing").has_decoder
            with pytest.raises(UsageError, match="no decoder 'nothing'; it has"):
                engine.model("nothing", decode=True)
            with pytest.raises(UsageError, match="serves no encoder 'mimi'; it has nano"):
                engine.open("mimi")
            with pytest.raises(InputError, match="codebooks; 99"):
                engine.open("nano", codebooks=99)
            with pytest.raises(InputError, match="hops are at least 1"):
                engine.open("nano", hops=0)

    run(main)


def test_errors_are_the_same(server):
    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as engine:
            with engine.open("nano") as session:
                with pytest.raises(InputError, match="320 of 320 samples are not finite"):
                    await session.step(np.full(320, np.nan, np.float32))
                with pytest.raises(InputError, match="got a str; wanted"):
                    await session.step("no sound")
                with pytest.raises(InputError, match="got shape"):
                    await session.step(np.zeros((2, 320), np.float32))
                with pytest.raises(SnapshotError, match="snapshot"):
                    await session.restore(b"nonsense")
                with pytest.raises(SnapshotError, match="is bytes"):
                    await session.restore("nonsense")
                with pytest.raises(InputError, match="codebooks"):
                    session.codebooks = 99
                with pytest.raises(InputError, match="in pieces"):
                    await session.step(np.zeros(1 << 26, np.float32))
                model = zoo.codec("nano").encoder
                sound = zoo.signal(model, 640)
                assert np.array_equal(await session.step(sound), Stream(model).push(sound))
            with pytest.raises(UsageError, match="is closed and its place given back"):
                await session.step(hop(0))
        with pytest.raises(UsageError, match="this engine is closed"):
            engine.open("nano")

    run(main)


def test_places_are_shared(server, engine):
    async def main() -> None:
        one = await RemoteEngine.connect(server.address)
        other = await RemoteEngine.connect(server.address)
        ours = [one.open("nothing") for _ in range(PLACES)]
        with pytest.raises(EngineFull):
            one.open("nothing")
        await ours[-1].admitted()
        late = other.open("nothing")  # nobody has told it yet
        with pytest.raises(EngineFull, match=f"all {PLACES} sessions"):
            await late.step(hop(0))
        ours.pop().close()
        await eventually(lambda: other._free == 1)
        with other.open("nothing") as session:
            await session.admitted()
            assert (one.sessions, other.sessions, engine.sessions) == (PLACES - 1, 1, PLACES)
            assert (await one.fresh_statistics()).sessions == PLACES
        one.close()
        await eventually(lambda: not engine.sessions)
        other.close()

    run(main)


def test_a_cancelled_step_comes_in_front_of_the_next(server):
    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as engine:
            with engine.open("nothing") as session:
                for pause in (0, 0.05):
                    step = asyncio.ensure_future(session.step(hop(1)))
                    await asyncio.sleep(0)
                    step.cancel()
                    await asyncio.sleep(pause)
                    with pytest.raises(asyncio.CancelledError):
                        await step
                    answer = await session.step(hop(2))
                    assert answer[0, 0].tolist() == [1, 2]

    run(main)


def test_calls_beyond_the_credit_wait(engine, tmp_path):
    """And come in their order."""
    codecs = {"nothing": NOTHING}
    limits = Limits(deep=3, calls=10, heavy_bytes=1 << 18)

    async def main() -> None:
        with EngineServer(engine, codecs, f"ipc://{tmp_path}/e", limits=limits) as server:
            async with await RemoteEngine.connect(server.address) as remote:
                sessions = [remote.open("nothing") for _ in range(6)]
                calls = [
                    session.step(np.tile(hop(number), width))
                    for number in range(20)
                    for width, session in zip((1, 1, 1, 1, 60, 60), sessions, strict=True)
                ]
                answers = asyncio.gather(*calls)
                await asyncio.sleep(0)
                assert remote.client_statistics().waiting
                for index, answer in enumerate(await answers):
                    number, width = index // 6, (1, 1, 1, 1, 60, 60)[index % 6]
                    assert answer[0, 0].tolist() == [number] * width
                    assert answer[0, 2].tolist() == [number * width + k + 1 for k in range(width)]
                for session in sessions:
                    session.close()
                await eventually(lambda: not engine.sessions)
                told = server.statistics()
                assert (told.calls, told.answered, told.dismissed) == (126, 126, 0)

    run(main)


def test_a_dropped_session_gives_its_place_back(server, engine):
    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as remote:
            session = remote.open("nothing")
            await session.admitted()
            with pytest.warns(ResourceWarning, match="a session of nothing was never closed"):
                del session
            await eventually(lambda: not engine.sessions)

    run(main)


def test_an_idle_session_is_told(tmp_path):
    async def main() -> None:
        with (
            Engine(idle_timeout_seconds=0.5) as engine,
            EngineServer(engine, {"nothing": NOTHING}, f"ipc://{tmp_path}/e") as server,
        ):
            async with await RemoteEngine.connect(server.address) as remote:
                with remote.open("nothing") as session:
                    await session.step(hop(0))
                    await eventually(lambda: not engine.sessions)
                    with pytest.raises(UsageError, match="closed after 0.5 s without a call"):
                        await session.step(hop(1))

    run(main)


def test_the_end_of_an_engine_is_told_to_all(server, engine):
    async def main() -> None:
        remote = await RemoteEngine.connect(server.address)
        session = remote.open("nothing")
        await session.admitted()
        server.close("it was unplugged")
        with pytest.raises(TransportError, match="is gone: it was unplugged; connect to another"):
            await session.step(hop(0))
        with pytest.raises(TransportError, match="is gone"):
            remote.open("nothing")
        assert not engine.sessions
        remote.close()

    run(main)


def test_an_engine_that_leaves_goes_on_meanwhile(server, engine):
    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as remote:
            session = remote.open("nothing")
            await session.step(hop(0))
            server.leave(20)
            await eventually(lambda: bool(remote.leaving))
            assert "take snapshots" in remote.leaving
            with pytest.raises(TransportError, match="opens no more sessions"):
                remote.open("nothing")
            with pytest.raises(TransportError, match="about to end"):
                await RemoteEngine.connect(server.address)
            blob = await session.snapshot()
            assert blob
            session.close()
            assert await asyncio.to_thread(server.wait, 10)

    run(main)


def test_a_stream_goes_on_on_another_engine(server, tmp_path):
    model = zoo.codec("nano").encoder
    sound = zoo.signal(model, 20 * model.spec.hop, seed=5).numpy()[0]
    alone = Stream(model, codebooks=2).push(sound).numpy()
    assert sound.shape[1] > 200

    async def main() -> None:
        with (
            Engine() as second,
            EngineServer(second, {"n": zoo.codec("nano")}, f"ipc://{tmp_path}/second") as other,
        ):
            async with (
                await RemoteEngine.connect(server.address) as here,
                await RemoteEngine.connect(other.address) as there,
            ):
                with here.open("nano", codebooks=2) as session:
                    begun = await session.step(sound[:, :100])
                    blob = await session.snapshot()
                with there.open("n") as session:
                    await session.restore(blob)
                    assert session.codebooks == 2
                    rest = await session.step(sound[:, 100:])
                assert np.array_equal(np.concatenate((begun, rest), axis=2), alone)

    run(main)


# ----- addresses


def test_an_engine_that_ended_before_the_first_call(server):
    """What it said, or that it is gone, is only heard then: nobody waits for an answer."""

    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as remote:
            server.close("it was unplugged")
            await asyncio.sleep(0.1)
            with pytest.raises(TransportError, match="is gone"):
                remote.open("nothing")
            assert "is gone" in remote.ended

    run(main)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ipc://relative", "from the root on"),
        ("ipc://@abstract", "from the root on"),
        ("ipc:///" + "x" * 200, "at most 107 bytes"),
        ("tcp://0.0.0.0:5000", "this machine only"),
        ("tcp://*:5000", "this machine only"),
        ("tcp://127.0.0.1", "wanted ipc:///path or tcp"),
        ("http://127.0.0.1:80", "wanted ipc:///path or tcp"),
    ],
)
def test_other_addresses_are_refused(engine, address, message):
    with pytest.raises(UsageError, match=message):
        EngineServer(engine, {"nothing": NOTHING}, address)
    with pytest.raises(UsageError, match=message):
        RemoteEngine(address)


def test_a_file_is_left_as_it_is(engine, tmp_path):
    path = tmp_path / "notes"
    path.write_text("dear diary")
    with pytest.raises(TransportError, match="is no socket: it is left as it is"):
        EngineServer(engine, {"nothing": NOTHING}, f"ipc://{path}")
    with pytest.raises(TransportError, match="is no socket"):
        RemoteEngine(f"ipc://{path}")
    assert path.read_text() == "dear diary"


def test_who_was_first_keeps_the_address(server, engine):
    with pytest.raises(TransportError, match="an engine is at .* already"):
        EngineServer(engine, {"nothing": NOTHING}, server.address)
    path = server.address.removeprefix("ipc://")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with RemoteEngine(server.address) as remote:
        assert remote.models
    server.close()
    assert not Path(path).exists()
    with pytest.raises(TransportError, match="no engine is at"):
        RemoteEngine(server.address)


def test_a_dead_engines_socket_is_replaced(engine, tmp_path):
    path = tmp_path / "engine"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with EngineServer(engine, {"nothing": NOTHING}, f"ipc://{path}") as server:
        RemoteEngine(server.address).close()


def test_over_tcp(engine):
    async def main() -> None:
        address = "tcp://127.0.0.1:0"
        with EngineServer(engine, {"nothing": NOTHING}, address) as server:
            async with await RemoteEngine.connect(server.address) as remote:
                with remote.open("nothing") as session:
                    assert (await session.step(hop(4)))[0, :, 0].tolist() == [4, 4.5, 1]
            with pytest.raises(TransportError, match="already"):
                EngineServer(engine, {"nothing": NOTHING}, server.address)
        with pytest.raises(TransportError, match="no engine is at"):
            RemoteEngine(server.address)

    run(main)


# ----- clients that do not keep to the protocol


def turn(*entries: object, received: int = 0, rows: tuple = ()) -> list[bytes]:
    out = Outgoing(of_client=True)
    for entry in entries:
        out.entry(1, entry)
    for tag, session, array in rows:
        out.row(tag, session, [array])
    return out.frames(Turn(received, out.table))


OPEN = Open(1, 1, "nothing", False, 1, None)
OFFENCES = {
    "of an unknown session": (turn(Call(1, 7, "flush")), "never opened"),
    "opened twice": (turn(OPEN, OPEN), "opens session 1 twice"),
    "closed twice": (turn(OPEN, Close(1), Close(1)), "which it never opened"),
    "too deep": (
        turn(OPEN, *[Call(t, 1, "flush") for t in range(2, 12)]),
        "of a session in flight",
    ),
    "too many rows": (
        turn(OPEN, rows=[(t, 1, hop(0)) for t in range(2, 12)]),
        "of a session in flight",
    ),
    "answers that never came": (turn(received=5), "5 answers came, of 0"),
    "codebooks": (turn(OPEN, Choose(1, 3)), "chooses what its session cannot give"),
    "an unknown call": (turn(OPEN, Call(2, 1, "explode")), "which is unknown"),
    "frames left over": ([*turn(OPEN), b"more"], "more frames than it says"),
    "frames missing": (turn(rows=[(1, 1, hop(0))])[:-1], "fewer frames"),
    "a short frame": ([*turn(OPEN, rows=[(1, 1, hop(0))])[:-1], b"1234"], "4 bytes of 1 rows"),
    "nonsense": ([protocol.MAGIC + bytes((protocol.VERSION,)) + b"\xc1\xff"], "damaged"),
    "another protocol": ([b"GET / HTTP/1.1"], "no message of streamenc's engines"),
    "another version": ([protocol.MAGIC + b"\x07"], "speaks version 7 .* same streamenc for both"),
    "a second hello": ([head(protocol.Hello(1))], "does not know you"),
}


@pytest.mark.parametrize(("frames", "message"), OFFENCES.values(), ids=OFFENCES)
def test_an_offence_harms_nobody_else(server, engine, frames, message):
    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as honest:
            with honest.open("nothing") as session:
                await session.step(hop(0))
                rogue = connection.Connection(server.address, 5)
                rogue.send(frames)
                told: list = []
                await eventually(lambda: told.append(rogue.receive()) or bool(refusal(told)))
                assert re.search(message, refusal(told))
                rogue.close()
                assert (await session.step(hop(1)))[0, 2, 0] == 2
            statistics = server.statistics()
            assert (statistics.dismissed, statistics.clients) == (1, 1)
            assert re.search(message, statistics.last_offence)
        await eventually(lambda: not engine.sessions)

    run(main)


def refusal(told: list) -> str:
    messages = [protocol.read_engine(frames) for frames in told if frames]
    return next((m.why for m in messages if isinstance(m, protocol.Refused)), "")


def test_arbitrary_bytes_are_refused(server, engine):
    """A message with any byte changed is taken or refused, and the engine goes on."""
    rng = np.random.default_rng(0)
    whole = turn(OPEN, rows=[(2, 1, hop(0)), (3, 1, np.zeros((1, 9), np.float32))])
    context = zmq.Context()
    for _ in range(60):
        frames = [bytearray(frame) for frame in whole]
        for _ in range(rng.integers(1, 4)):
            frame = frames[rng.integers(len(frames))]
            frame[rng.integers(len(frame))] = rng.integers(256)
        with context.socket(zmq.DEALER) as rogue:
            rogue.connect(server.address)
            rogue.send_multipart([head(protocol.Hello(1))])
            rogue.send_multipart([bytes(frame) for frame in frames])
            rogue.poll(2000)
    context.destroy(0)

    async def main() -> None:
        async with await RemoteEngine.connect(server.address) as remote:
            await eventually(lambda: not engine.sessions)
            with remote.open("nothing") as session:
                assert (await session.step(hop(1)))[0, 2, 0] == 1

    run(main)


def test_a_client_of_another_version_is_refused(server, monkeypatch):
    monkeypatch.setattr(connection, "head", lambda message: protocol.MAGIC + b"\x09")
    with pytest.raises(TransportError, match="speaks version 9 .* install the same streamenc"):
        RemoteEngine(server.address)


def test_another_loop_and_a_fork_are_told(server):
    remote = RemoteEngine(server.address)

    async def opened() -> None:
        with remote.open("nothing") as session:
            await session.step(hop(0))

    anyio.run(opened)
    anyio.run(opened)  # the first loop is closed: that one may go on with it

    async def main() -> None:
        await opened()

        async def elsewhere() -> None:
            with pytest.raises(UsageError, match="from another event loop"):
                remote.open("nothing")

        await asyncio.to_thread(anyio.run, elsewhere)
        assert await asyncio.to_thread(in_fork, remote) == "UsageError: is a fork of it"

    anyio.run(main)
    remote.close()
    remote.close()


def in_fork(remote: RemoteEngine) -> str:
    read, write = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        try:
            remote._attached()
        except StreamencError as error:
            write.send(f"{type(error).__name__}: {'is a fork of it' * ('fork' in str(error))}")
        remote.close()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    told: str = read.recv() if read.poll(10) else "nothing"
    process.join(10)
    return told


# ----- processes that die

CLIENT = """
import asyncio, sys
import numpy as np
from streamenc.engine.remote.remoteengine import RemoteEngine

async def main():
    engine = await RemoteEngine.connect(sys.argv[1])
    sessions = [engine.open("nothing") for _ in range(3)]
    for session in sessions:
        await session.step(np.zeros((1, 320), np.float32))
    assert "torch" not in sys.modules, "a client has no torch"
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_client_gives_its_places_back(server, engine):
    """It has neither torch nor a GPU."""
    with started(CLIENT, server.address) as process:
        assert engine.sessions == 3
        process.send_signal(signal.SIGKILL)
        until = time.monotonic() + 20
        while engine.sessions:
            assert time.monotonic() < until, "its sessions were not noticed to be gone"
            time.sleep(0.02)
        process.wait()
    told = server.statistics()
    assert (told.gone, told.clients, told.dismissed) == (1, 0, 0)


def test_a_killed_engine_is_told_and_its_streams_go_on_elsewhere(tmp_path):
    """From snapshots, bit for bit; and its address is free."""
    address = f"ipc://{tmp_path}/killed"
    program = (
        "import sys, streamenc\n"
        "from streamenc.engine.engine import Engine\n"
        "from streamenc.engine.remote.engineserver import EngineServer\n"
        "codec = streamenc.load('nano', part='encoder')\n"
        "server = EngineServer(Engine(), {'nano': codec}, sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "server.wait()\n"
    )
    bundled = streamenc.load("nano", part="encoder")
    sound = np.random.default_rng(6).normal(0, 0.1, (1, 30 * 320)).astype(np.float32)
    alone = Stream(bundled.encoder).push(sound).numpy()

    async def main(process: subprocess.Popen[str]) -> None:
        remote = await RemoteEngine.connect(address)
        session = remote.open("nano")
        begun = await session.step(sound[:, :3000])
        blob = await session.snapshot()
        process.send_signal(signal.SIGSTOP)  # so that it is in the middle of something
        waiting = [asyncio.ensure_future(session.step(sound[:, 3000:])) for _ in range(3)]
        await asyncio.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        for call in waiting:
            with pytest.raises(TransportError, match="is gone: its process ended"):
                await call
        with pytest.raises(TransportError, match="is gone"):
            await session.flush()
        assert remote.client_statistics().lost == 3
        await asyncio.to_thread(process.wait)  # giving its memory back, it still has the address
        with Engine() as engine, EngineServer(engine, {"nano": bundled}, address) as again:
            async with await RemoteEngine.connect(again.address) as other:
                with other.open("nano") as session:
                    await session.restore(blob)
                    rest = await session.step(sound[:, 3000:])
        assert np.array_equal(np.concatenate((begun, rest), axis=2), alone)

    with started(program, address) as process:
        run(lambda: main(process))
