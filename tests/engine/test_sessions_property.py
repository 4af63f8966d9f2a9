"""Dozens of sessions that come, idle, restart, move and go at random equal streams by themselves.

Models are in float64, where rounding decides no code: outputs of codes have to be the same, all
others up to rounding. What float32 does is tested in test_slots.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import anyio
import pytest

from streamenc.codec import Codec
from streamenc.engine.engine import Engine
from streamenc.engine.exchange.outputs import Output
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.engine.session import Session
from streamenc.errors import EngineFull, InputError
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from tests.support import zoo
from tests.support.answers import as_signal
from tests.support.profile import FULL
from tests.support.solo import equals_solo

# Always more than there are places, so that some are refused.
SESSIONS, PLACES = (60, 24) if FULL else (24, 10)
PAIRS = [
    (("mimi", "encoder"), ("mimi", "decoder")),
    (("nano", "encoder"), ("nano", "decoder")),
    (("encodec", "encoder"), ("mimi", "encoder")),
    (("encodec-48k", "encoder"), ("encodec", "decoder")),
    (("encodec-48k", "decoder"), ("mel", "encoder")),
]
# The models do not matter to the door for others: with each commit one pair goes through it.
CASES = [
    pytest.param(
        *(pair, where),
        id="+".join("-".join(model) for model in (*pair, (where,))),
        marks=[pytest.mark.slow] if where == "remote" and pair[0][0] != "nano" else [],
    )
    for pair in PAIRS
    for where in ("here", "remote")
]


class Client:
    """The user of one stream, who does what users do; a move takes it to another session.

    inputs   What the stream was given; None for an end.
    outputs  What came, with the number of codebooks that was wanted; None where a call between
             was cancelled, whose own number may be smaller.
    """

    def __init__(
        self, engine: Engine | RemoteEngine, model: Model, seed: int, served: RemoteModel | None
    ) -> None:
        self.engine, self.model, self.seed, self.served = engine, model, seed, served
        self.chance = random.Random(seed)
        self.inputs: list[Signal | None] = []
        self.outputs: list[tuple[Signal, int | None]] = []
        self.cancelled = False

    async def live(self) -> None:
        session = await self.admitted()
        ways = {
            self.step: 12,
            self.burst: 1,
            self.cancelled_step: 3,
            self.idle: 3,
            self.end: 1,
            self.refused_step: 1,
            self.choose_codebooks: 3,
        }
        for way in self.chance.choices(list(ways), list(ways.values()), k=30):
            await way(session)
            if self.chance.random() < 0.04:
                session = await self.moved(session)
        await self.end(session)
        if self.chance.random() < 0.9:
            session.close()  # the others are found by the collector

    async def admitted(self) -> Session:
        while True:
            try:
                if isinstance(self.engine, RemoteEngine):
                    return await self.engine.open(self.served).admitted()
                return self.engine.open(self.model)
            except EngineFull:
                await asyncio.sleep(self.chance.random() * 0.02)

    async def step(self, session: Session) -> None:
        spec = self.model.spec
        lengths = [spec.hop] * 4 + [spec.lead, spec.hop + spec.hop // 2, spec.hop // 3, 0]
        self.took(session, await session.step(self.chunk(self.chance.choice(lengths))))

    async def burst(self, session: Session) -> None:
        self.took(session, await session.step(self.chunk(6 * self.model.spec.hop)))

    async def cancelled_step(self, session: Session) -> None:
        """The next call brings its output, unless it was already there."""
        step = asyncio.ensure_future(session.step(self.chunk(self.model.spec.hop)))
        for _ in range(self.chance.randint(1, 3)):
            await asyncio.sleep(self.chance.choice([0, 0, 0.001]))
        step.cancel()
        try:
            output = await step
        except asyncio.CancelledError:
            self.cancelled = True
        else:
            self.took(session, output)

    async def idle(self, session: Session) -> None:
        await asyncio.sleep(self.chance.random() * 0.01)

    async def end(self, session: Session) -> None:
        """As before a gap: the next step starts another stream."""
        self.took(session, await session.flush())
        self.inputs.append(None)

    async def refused_step(self, session: Session) -> None:
        with pytest.raises(InputError):
            await session.step("no sound")

    async def choose_codebooks(self, session: Session) -> None:
        if self.model.spec.output.kind == "codes":
            most = self.model.spec.output.channels
            session.codebooks = self.chance.choice([None, *range(1, most + 1)])

    async def moved(self, session: Session) -> Session:
        """Another session, which had a stream of its own, goes on with this one."""
        blob = await session.snapshot()
        if not self.cancelled:  # what was not taken stays behind
            session.close()
            session = await self.admitted()
            await session.step(zoo.signal(self.model, 2 * self.model.spec.lead, seed=self.seed))
        await session.restore(blob)
        return session

    def chunk(self, items: int) -> Signal:
        self.inputs.append(zoo.signal(self.model, items, seed=len(self.inputs) + 99 * self.seed))
        return self.inputs[-1]

    def took(self, session: Session, output: Output) -> None:
        self.outputs.append((as_signal(output), None if self.cancelled else session.codebooks))
        self.cancelled = False

    def check(self) -> None:
        equals_solo(self.model, self.inputs, self.outputs)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("pair", "where"), CASES)
def test_every_session_equals_its_solo_stream(pair, where, tmp_path):
    """On an engine in this process, and through the door for others."""
    models = [zoo.model(*case) for case in pair]

    async def main() -> list[Client]:
        async with asyncio.timeout(60):
            with Engine(max_sessions=PLACES, max_wait_ms=1) as engine:
                if where == "here":
                    clients = await lived([engine], models, [None, None])
                else:
                    codecs = {
                        str(index): Codec("", model, None) for index, model in enumerate(models)
                    }
                    with EngineServer(engine, codecs, f"ipc://{tmp_path}/engine") as server:
                        engines = [await RemoteEngine.connect(server.address) for _ in range(2)]
                        served = [engines[0].model(name) for name in codecs]
                        clients = await lived(engines, models, served)
                        for remote in engines:
                            assert remote.client_statistics().lost == 0
                            remote.close()
                    came = server.statistics()
                    assert (came.dismissed, came.gone, came.lost) == (0, 0, 0), came
                statistics = engine.statistics()
                print(statistics)
                assert statistics.opened >= SESSIONS and (statistics.refused or where == "remote")
                assert statistics.hops > 1.2 * statistics.ticks, "hardly anything was batched"
                return clients

    for client in anyio.run(main):
        client.check()


async def lived(
    engines: Sequence[Engine | RemoteEngine],
    models: Sequence[Model],
    served: Sequence[RemoteModel | None],
) -> list[Client]:
    """Clients after their life, those of one model in turn with those of the other."""
    clients = [
        Client(engines[seed // 2 % len(engines)], models[seed % 2], seed, served[seed % 2])
        for seed in range(SESSIONS)
    ]
    await asyncio.gather(*(client.live() for client in clients))
    return clients
