"""Token streams over ZeroMQ: `zmq+tcp://host:port` and `zmq+ipc:///path`.

mode=pub     For live streams: nobody waits for anybody. A subscriber that is too slow falls behind
             until the queues on the way are full, then misses frames, which both ends count;
             `max_age_ms` bounds by how much. Any SUB socket can read it (examples/read_wire.py).
mode=credit  Lossless: each subscriber says how many packets it can hold, and the sink waits.

docs/io/wire.md describes both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

import anyio
import zmq

from streamenc import options
from streamenc.errors import TransportError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.packetsource import PacketSource, end_task
from streamenc.io.network.peers.broadcast import Broadcast
from streamenc.io.network.peers.credited import MAX_SUBSCRIBERS, MAX_WINDOW, Credited
from streamenc.io.network.wire import Bye, Credit, encode_bye, encode_credit
from streamenc.io.network.zeromq_link import FROM_PUBLISHERS, SPARE_OF_PUBLISHERS, Link

logger = logging.getLogger(__name__)

MODES = ("pub", "credit")
BEAT_S = 1.0
LINGER_S = 2.0
LOOK_S = 0.1
# A publisher repeats what it sends every BEAT_S: one that is silent for so long is gone, or stuck.
SILENT_S = 5.0
CURES = {
    "pub": "read faster, raise 'hwm' at both ends, or use mode=credit at both, which waits",
    "credit": "the connection broke, or this end was silent for longer than the other waits for it",
}


class ZmqSink(Sink):
    """Publishes a stream.

    address           zmq+tcp://host:port (`*` is every interface, port 0 any free one) or
                      zmq+ipc:///path.
    mode              "pub", which drops, or "credit", which waits; see the module.
    bind              Whether this end binds the address; the other end then connects.
    hwm               pub: packets that may wait for a subscriber before it misses some.
    join_ms           pub: the first frames are sent when the address has been open for so long, for
                      subscribers that were started before; without `wait_subscribers`.
    wait_subscribers  `open` waits for so many subscribers, for at most `wait_s`.
    wait_s            Seconds; where fewer are there by then, `open` fails.
    timeout_s         credit: a subscriber that is silent or takes nothing for so long is given up.
    keys              zmq+tcp: file of our pair of keys, which `streamenc keys FILE` makes; the
                      connection is then encrypted.
    allow             Where this end binds: file with the public keys of those who may come in, one
                      a line; "any" lets in anybody who knows our public key.
    server            Where this end connects: the other end's public key, or a file with it.

    `endpoint` is the address that was bound, `subscribers` how many listen, `dropped` how many
    frames a subscriber missed, `unheard` how many frames had no subscriber at all.
    In credit mode `write` waits until there is a subscriber and every one has room; of a stream
    that was stopped, what nobody waits for is dropped and counted.
    """

    def __init__(
        self,
        address: str,
        mode: str = "pub",
        bind: bool | str = True,
        hwm: int | str = 64,
        wait_subscribers: int | str = 0,
        wait_s: float | str = 30.0,
        timeout_s: float | str = 10.0,
        join_ms: float | str = 300.0,
        keys: str = "",
        allow: str = "",
        server: str = "",
    ) -> None:
        self._mode = options.choice("mode", mode, MODES)
        self._link = Link(address, options.flag("bind", bind), keys, server, allow)
        self._hwm = options.integer("hwm", hwm, 1, 1_000_000)
        self._wait_subscribers = options.integer(
            "wait_subscribers", wait_subscribers, 0, MAX_SUBSCRIBERS
        )
        self._wait_s = options.number("wait_s", wait_s, 0.0, 86_400.0)
        self._timeout_s = options.number("timeout_s", timeout_s, 2 * BEAT_S, 86_400.0)
        self._join_ms = options.number("join_ms", join_ms, 0.0, 60_000.0)
        self._joining: asyncio.Task[None] | None = None
        self._held: list[Frame] = []
        self._outlet: Broadcast | Credited | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.unheard = 0
        self._stopped = False

    @property
    def endpoint(self) -> str:
        return self._link.endpoint

    @property
    def subscribers(self) -> int:
        return self._outlet.subscribers if self._outlet else 0

    async def open(self, info: StreamInfo) -> None:
        writer = PacketWriter(info, self.clock)
        outlet: Broadcast | Credited
        if self._mode == "pub":
            outlet = Broadcast(self._link, writer, self._hwm)
        else:
            outlet = Credited(self._link, writer, self._timeout_s)
        self._link.open(outlet.kind, outlet.settings)
        self._outlet = outlet
        if self._mode == "pub" and not self._wait_subscribers:
            self._joining = asyncio.create_task(self._join(outlet))
        self._task = asyncio.create_task(self._pump(outlet))
        self._task.add_done_callback(lambda _: self._changed.set())
        try:
            async with asyncio.timeout(self._wait_s if self._wait_subscribers else None):
                while outlet.subscribers < self._wait_subscribers:
                    await self._wait(self._task)
        except TimeoutError:
            raise TransportError(
                f"{outlet.subscribers} of {self._wait_subscribers} subscribers came to "
                f"{self.endpoint} within {self._wait_s:g} s"
                + (f" ({self._link.refusal})" if self._link.refusal else "")
            ) from None

    async def write(self, frame: Frame) -> None:
        assert self._outlet is not None and self._task is not None, "write before open"
        if self._joining is not None:
            if not self._joining.done():
                # Held here, not by waiting: a source that nobody waits for would drop some.
                self._held.append(frame)
                if 2 * len(self._held) >= self._hwm:
                    await asyncio.wait({self._joining})
                return
            self._joining.result()
            self._joining = None
        while not self._outlet.ready():
            if self._stopped and isinstance(self._outlet, Credited) and not self.subscribers:
                self._outlet.drop(frame)
                self.dropped, self.remarks = self._outlet.dropped, self._outlet.remarks
                return
            await self._wait(self._task)
        self._send(self._outlet, (frame,))
        await asyncio.sleep(0)  # without, a fast source would let nothing else run

    def _send(self, outlet: Broadcast | Credited, frames: Sequence[Frame]) -> None:
        for frame in frames:
            outlet.write(frame)
        self.dropped, self.unheard = outlet.dropped, outlet.unheard
        self.remarks = outlet.remarks

    async def _join(self, outlet: Broadcast | Credited) -> None:
        """Sends the first frames when those had time to find us that looked for us before."""
        await asyncio.sleep(self._join_ms / 1e3)
        outlet.read()
        held, self._held = self._held, []
        self._send(outlet, held)

    def stop(self) -> None:
        self._stopped = True
        self._changed.set()

    async def aclose(self) -> None:
        task, self._task = self._task, None
        joining, self._joining = self._joining, None
        with anyio.CancelScope(shield=True):
            if joining is not None:
                if not self._held:
                    joining.cancel()
                await asyncio.wait({joining})
            if task is not None and self._outlet is not None:
                # Where packets are kept for somebody, it has as long as it would have had before.
                deadline = time.monotonic() + self._timeout_s
                while self._outlet.owes and not (self.broken or task.done()):
                    if time.monotonic() > deadline:
                        break
                    await asyncio.sleep(0.02)
                deadline = time.monotonic() + LINGER_S
                while not (self._outlet.finished(self.broken) or task.done()):
                    if time.monotonic() > deadline:
                        self.remarks = [
                            *self._outlet.remarks,
                            f"closed after {LINGER_S:g} s, before all subscribers had the end",
                        ]
                        break
                    await asyncio.sleep(0.02)
            await end_task(task)
            await self._link.aclose(LINGER_S)
        if joining is not None and not joining.cancelled():
            joining.result()

    async def _wait(self, task: asyncio.Task[None]) -> None:
        """Until subscribers or their credit changed. Raises what ended the task."""
        if task.done():
            task.result()
        self._changed.clear()
        with anyio.move_on_after(LOOK_S):  # to give up those who take nothing
            await self._changed.wait()

    async def _pump(self, outlet: Broadcast | Credited) -> None:
        """Reads what subscribers say, and repeats the info."""
        beat_s = 0.0
        while True:
            await self._link.readable(max(0.0, beat_s - time.monotonic()))
            outlet.read()
            await asyncio.sleep(0)  # whoever sends without end does not stop the others
            if time.monotonic() >= beat_s:
                outlet.beat()
                beat_s = time.monotonic() + BEAT_S
            self._changed.set()


class ZmqSource(PacketSource):
    """Subscribes to a stream.

    address     As in ZmqSink, with a host and a port to connect to.
    mode        "pub" or "credit", as the sink has it.
    bind        Whether this end binds the address; the sink then connects. Others may, too: the
                first one is read until nothing comes from it, see docs/io/network.md.
    hwm         pub: packets that may wait here before some are missed.
    window      credit: packets that may be on their way to us.
    timeout_s   `open` waits so long for a stream. credit: a publisher that is silent for so long
                later on is gone (TransportError); pub: it is waited for.
    max_age_ms  Frames that took so much longer to get here, and be taken, than the quickest of
                the last minutes are dropped and counted, and the next one is flagged; 0 drops
                none, however far this end falls behind.
    keys, allow, server  As of ZmqSink.
    """

    def __init__(
        self,
        address: str,
        mode: str = "pub",
        bind: bool | str = False,
        hwm: int | str = 64,
        window: int | str = 16,
        timeout_s: float | str = 30.0,
        max_age_ms: float | str = 0.0,
        keys: str = "",
        allow: str = "",
        server: str = "",
    ) -> None:
        self._credit = options.choice("mode", mode, MODES) == "credit"
        self.live = not self._credit
        self._link = Link(address, options.flag("bind", bind), keys, server, allow)
        self.shared = options.flag("bind", bind)  # whoever finds the address may publish there
        self._hwm = options.integer("hwm", hwm, 1, 1_000_000)
        self._window = options.integer("window", window, 1, MAX_WINDOW)
        self._reported = 0
        # One more than the window, so that info and end are read while nobody consumes.
        bound = self._window + 1 if self._credit else self._hwm
        super().__init__(address, timeout_s, max_age_ms, bound, CURES[mode])

    @property
    def endpoint(self) -> str:
        return self._link.endpoint

    async def open(self) -> StreamInfo:
        try:
            return await super().open()
        except TransportError as error:
            if self._link.refusal:
                raise TransportError(f"{error} ({self._link.refusal})") from None
            raise

    async def _connect(self) -> None:
        if self._credit:
            # Few may wait while nobody is connected: they would be stale.
            self._link.open(zmq.DEALER, FROM_PUBLISHERS | {zmq.SNDHWM: 8}, *SPARE_OF_PUBLISHERS)
        else:
            self._link.open(zmq.SUB, FROM_PUBLISHERS, *SPARE_OF_PUBLISHERS)
            self._link.socket.subscribe(b"")

    async def _pump(self) -> None:
        beat_s = heard_s = time.monotonic()
        warned = False
        while not self._reader.ended:
            now_s = time.monotonic()
            if self._credit and now_s >= beat_s:
                self._grant()
                beat_s = now_s + BEAT_S
            if not self._has_room():
                heard_s = now_s
                with anyio.move_on_after(BEAT_S):
                    await self._room.wait()
            elif await self._link.readable(self._reader.ends_in_s or BEAT_S):
                heard_s, warned = now_s, False
                self._read()
                await asyncio.sleep(0)
            elif self._reader.ends_in_s is not None:
                self._settle()
            elif now_s - heard_s > min(SILENT_S, self._timeout_s):
                self._gone("the publisher vanished without an end")
                if now_s - heard_s > self._timeout_s and not warned:
                    message = f"nothing came from {self.address} for {self._timeout_s:g} s"
                    if self._credit:
                        raise TransportError(f"{message}; the publisher is gone")
                    logger.warning("%s; still waiting", message)
                    warned = True
        self._say(encode_bye(Bye(self._reader.stream)))

    def _read(self) -> None:
        for parts, _ in self._link.messages():
            if not parts:
                continue
            stream = self._reader.stream
            self._take(parts[-1])
            if self._reader.stream != stream:
                self._grant()
            if self._reader.ended or not self._has_room():
                return

    def _consumed(self) -> None:
        super()._consumed()
        if self._taken() - self._reported >= (self._window + 1) // 2:
            self._grant()

    def _taken(self) -> int:
        return max(0, self._reader.received - len(self._frames))

    def _grant(self) -> None:
        self._reported = self._taken()
        self._say(encode_credit(Credit(self._reader.stream, self._reported, self._window)))

    def _say(self, packet: bytes) -> None:
        if self._credit and self._link.socket is not None and not self._link.socket.closed:
            with contextlib.suppress(zmq.Again):  # nobody is connected: the next beat repeats it
                self._link.send(packet)

    async def _disconnect(self) -> None:
        if self._task is not None and not self._reader.ended:
            self._say(encode_bye(Bye(self._reader.stream)))
        await self._link.aclose(LINGER_S / 4 if self._credit else 0)
