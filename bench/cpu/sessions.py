"""How many live streams one machine encodes: sessions against answer times, up to the knee.

Each session sends a frame of 80 ms every 80 ms, like a microphone, whether or not the one before
was answered, and waits for its codes. Its time counts from when the frame was due to when its codes
are there, so that whoever falls behind is seen to. One session joins each frame, and times count
once all are there. The knee is the most sessions of which 99 % of the frames are answered within a
frame.

Sessions are not in step with each other: their frames are due evenly spread over the 80 ms. In a
second table all are due at once, which suits batches best. The peer, moshi, has one batch of fixed
size that steps as a whole, so its bare step on a full batch is timed, once a frame, without
sessions or an event loop around it; on a thread that is not the main one, as ours, since there
torch's helper threads behave differently.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import torch
from torch import Tensor

from bench import peers, signals, weights
from bench.cores import OthersCpu
from bench.cpu.ways import PLAIN, Way, loaded, ways
from bench.harness import Row, Settings, Table, percentile
from streamenc.engine.engine import Engine
from streamenc.engine.statistics import EngineStatistics
from streamenc.models.model import Model

MOST, QUICK_MOST = 256, 2
# Once more, before a count of streams is said to be too many: machines have bad moments.
TRIES = 2
CODEBOOKS = 8
WARMUP_FRAMES = 5
# Beyond the knee a queue only grows; there is no need to watch it for long.
HOPELESS = 4


def tables(settings: Settings) -> Iterator[Table]:
    """Spread over the frame with the peer's batches beside, then all at once."""
    torch.set_num_threads(settings.threads)
    checkpoint = str(weights.mimi(settings.folder))
    found, absent = ways(settings)
    models: dict[str, Model] = {}
    for way in (Way("", PLAIN), *found):
        # Those whose codes are other codecs' have no place here.
        if way.how.endswith("int8"):
            continue
        codec = loaded(checkpoint, way, part="encoder")
        if isinstance(codec, str):
            absent.append(Row(way.name, note=codec))
        else:
            models[way.name] = codec.encoder
    moshi = peers.start(peers.Moshi, Path(checkpoint))
    yield _raised("due evenly spread", models, moshi, absent, settings, spread=True)
    yield _raised("due all at once", models, None, absent, settings, spread=False)


def _raised(
    how: str,
    models: dict[str, Model],
    moshi: Any,
    absent: list[Row],
    settings: Settings,
    *,
    spread: bool,
) -> Table:
    """Searches each one's knee; all take turns, so that they meet the same machine."""
    spec = next(iter(models.values())).spec
    frame_ms = 1e3 * float(spec.hop / spec.input.rate)
    rows: list[Row] = []
    # What a quick run takes does not matter.
    limits = (math.inf, QUICK_MOST) if settings.quick else (frame_ms, MOST)
    knees = {name: Knee(*limits) for name in models}
    if isinstance(moshi, peers.Moshi):
        knees["moshi"] = Knee(*limits)
    others = OthersCpu()
    while running := [(name, knee) for name, knee in knees.items() if knee.next is not None]:
        for name, knee in running:
            count = knee.next
            assert count is not None
            model = models.get(name)
            again = ", once more" * knee.again
            if model is None:
                some = next(iter(models.values()))
                sound = _sound(some, count, settings)
                with ThreadPoolExecutor(1) as thread:
                    timed = thread.submit(_batched, some, moshi, sound, settings.frames)
                    times_ms = timed.result()
                note = _late(times_ms, frame_ms)
                rows.append(Row.of(f"{name}, a batch of {count}{again}", times_ms, note=note))
            else:
                sound = _sound(model, count, settings)
                times_ms, statistics = anyio.run(_live, model, sound, settings.frames, spread)
                note = f"{_late(times_ms, frame_ms)}; {statistics.hops_per_tick:.1f} hops on "
                note += f"{statistics.lanes_per_tick:.1f} lanes a tick"
                rows.append(Row.of(f"{name}, {count} sessions{again}", times_ms, note=note))
                rows.append(_ticks(f"{name}, {count} sessions{again}: a tick", statistics))
            knee.see(times_ms)
    rows += absent
    if isinstance(moshi, str):
        rows.append(Row("moshi", note=moshi))
    facts = {"a frame": f"{frame_ms:g} ms", "CPU used by others meanwhile": str(others)}
    facts |= {f"knee of {name}": f"{knee.most} streams" for name, knee in knees.items()}
    title = f"Live {spec.name} sessions, {CODEBOOKS} codebooks, {how}"
    return Table(title, "ms per frame", rows, threads=settings.threads, facts=facts)


class Knee:
    """Searches the most streams whose p99 is within a frame: doubles their count until that fails,
    then halves what lies between.

    Attributes:
        most: Of those that were seen to keep up.
        next: How many to look at next; None once it is known.
        again: Whether that many were too many the first time.
    """

    def __init__(self, frame_ms: float, limit: int) -> None:
        self.frame_ms, self.limit = frame_ms, limit
        self.most = 0
        self.next: int | None = 1
        self._too_many = limit + 1
        self._tries = 0

    @property
    def again(self) -> bool:
        return self._tries > 0

    def see(self, times_ms: list[float]) -> None:
        """What `next` streams took."""
        assert self.next is not None
        self._tries += 1
        if percentile(times_ms, 99) <= self.frame_ms:
            self.most = self.next
        elif self._tries < TRIES:
            return
        else:
            self._too_many = self.next
        self._tries = 0
        if self._too_many - self.most <= 1:
            self.next = None
        elif self._too_many > self.limit:
            self.next = min(2 * self.most, self.limit) if self.most else 1
        else:
            self.next = (self.most + self._too_many) // 2


def _late(times_ms: list[float], frame_ms: float) -> str:
    return f"{sum(ms > frame_ms for ms in times_ms)} of {len(times_ms)} late"


def _ticks(name: str, statistics: EngineStatistics) -> Row:
    tick = statistics.tick
    return Row(name, tick.count, p50_ms=tick.p50_ms, p99_ms=tick.p99_ms, max_ms=tick.max_ms)


def _sound(model: Model, count: int, settings: Settings) -> Tensor:
    """(streams, 1, samples), each from another place of the clip."""
    samples = (count + WARMUP_FRAMES + settings.frames) * model.spec.hop
    clip = torch.from_numpy(signals.speech(int(model.spec.input.rate), samples))
    return torch.stack([clip.roll(7919 * index)[None] for index in range(count)])


async def _live(
    model: Model, sound: Tensor, frames: int, spread: bool
) -> tuple[list[float], EngineStatistics]:
    """Milliseconds from when each of the last frames was due to its codes, and the engine's own."""
    count, hop = sound.shape[0], model.spec.hop
    frame_seconds = float(hop / model.spec.input.rate)
    times_ms: list[float] = []

    async def client(engine: Engine, index: int, start: float) -> None:
        chunks = sound[index : index + 1].split(hop, dim=-1)
        with engine.open(model, codebooks=CODEBOOKS) as session:
            for number, chunk in enumerate(chunks[index:], index):
                due = start + number * frame_seconds
                await anyio.sleep(max(0.0, due - time.perf_counter()))
                await session.step(chunk)
                seconds = time.perf_counter() - due
                if number >= len(chunks) - frames:
                    times_ms.append(1e3 * seconds)
                    if seconds > HOPELESS * frame_seconds:
                        return

    engine = Engine(max_sessions=count)
    try:
        async with anyio.create_task_group() as clients:
            start = time.perf_counter() + frame_seconds
            for index in range(count):
                offset = index / count * frame_seconds if spread else 0.0
                clients.start_soon(client, engine, index, start + offset)
        return times_ms, engine.statistics()
    finally:
        await engine.aclose()


def _batched(model: Model, moshi: peers.Moshi, sound: Tensor, frames: int) -> list[float]:
    """Milliseconds of each step of all streams together, one every frame."""
    step = moshi.encoder(CODEBOOKS, batch=sound.shape[0])
    hop = model.spec.hop
    frame_seconds = float(hop / model.spec.input.rate)
    times_ms = []
    with torch.inference_mode():
        due = time.perf_counter()
        for chunk in sound[..., -(WARMUP_FRAMES + frames) * hop :].split(hop, dim=-1):
            due = max(due + frame_seconds, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
            start = time.perf_counter()
            step(chunk)
            times_ms.append(1e3 * (time.perf_counter() - start))
    return times_ms[WARMUP_FRAMES:]
