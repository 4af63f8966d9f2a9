"""The batch door: hundreds of streams from threads without coroutines equal streams by themselves.

Each answer comes once, to its outlet, in the order of its seat's calls.
"""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from streamenc.engine.engine import Engine
from streamenc.engine.exchange.door import Batch
from streamenc.errors import EngineFull, InputError, UsageError
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.answers import as_signal
from tests.support.profile import FULL
from tests.support.solo import equals_solo

STREAMS = 600 if FULL else 200
ROUNDS = 12 if FULL else 7
PAIRS = [
    (("mel", "encoder"), ("nano", "encoder")),
    (("encodec", "encoder"), ("mimi", "decoder")),
]


class Outlet:
    """Keeps what came, in its order."""

    def __init__(self):
        self.answers, self._came = [], threading.Condition()

    def deliver(self, answers):
        with self._came:
            self.answers += answers
            self._came.notify_all()

    def until(self, count):
        with self._came:
            assert self._came.wait_for(lambda: len(self.answers) >= count, 60), (
                "answers are missing"
            )


class Life:
    """One stream: what it was given, and what is expected for each of its calls."""

    def __init__(self, engine, model, seed):
        self.engine, self.model, self.seed = engine, model, seed
        self.seat = engine.seat(model)
        self.inputs, self.calls, self.outputs, self.blob = [], [], [], None

    def tag(self, what):
        self.calls.append(what)
        return self, len(self.calls) - 1

    def chunk(self, items):
        self.inputs.append(zoo.signal(self.model, items, seed=self.seed + 7 * len(self.inputs)))
        return self.inputs[-1]


class Caller:
    """A thread that serves some of the streams of one model, whose calls it never waits for but
    to move some: what many clients' connections do."""

    def __init__(self, engine, model, seeds):
        self.engine, self.model, self.chance = engine, model, random.Random(seeds[0])
        self.lives = [Life(engine, model, seed) for seed in seeds]
        self.outlet, self.sent = Outlet(), 0
        self.failure = None

    def run(self):
        try:
            for number in range(ROUNDS):
                self.round()
                if number == ROUNDS // 2:
                    self.move()
            self.ask(self.lives, Stream.flush, "end")
            self.outlet.until(self.sent)
        except BaseException as failure:
            self.failure = failure

    def round(self):
        spec, chance = self.model.spec, self.chance
        some = chance.sample(self.lives, chance.randint(1, len(self.lives)))
        if chance.random() < 0.5 and spec.input.kind == "audio":
            # All in one array, whose memory is used anew at once.
            chunks = np.concatenate([life.chunk(spec.hop).numpy() for life in some])
            self.submit(some, chunks, "step")
            chunks[:] = 7
        else:
            lengths = [spec.hop] * 6 + [spec.lead, spec.hop // 3, 3 * spec.hop + 1]
            some += chance.sample(some, len(some) // 4)  # twice in one batch
            self.submit(some, [life.chunk(chance.choice(lengths)) for life in some], "step")
        self.submit(chance.sample(self.lives, 2), ["no sound", None], "refused")
        if chance.random() < 0.3:
            self.ask(chance.sample(self.lives, 3), Stream.flush, "end")

    def submit(self, lives, chunks, what):
        tags = [life.tag(what) for life in lives]
        self.engine.submit(Batch([life.seat for life in lives], chunks, tags, self.outlet))
        self.sent += len(lives)

    def ask(self, lives, call, what):
        for life in lives:
            if what == "end":
                life.inputs.append(None)
            self.engine.ask(life.seat, call, life.tag(what), self.outlet)
        self.sent += len(lives)

    def move(self):
        """To seats that others had; calls of the seat that was given up are answered by errors."""
        moved = self.chance.sample(self.lives, 5)
        self.ask(moved, Stream.snapshot, "snapshot")
        self.outlet.until(self.sent)
        blobs = {tag[0]: blob for _, tag, blob, _ in self.outlet.answers if type(blob) is bytes}
        for life in moved:
            self.engine.give_up(life.seat, "it moves")
        self.submit(moved, [zoo.signal(self.model, self.model.spec.hop)] * 5, "closed")
        for life in moved:
            life.seat = self.engine.seat(self.model)
            self.ask([life], lambda stream, blob=blobs[life]: stream.restore(blob), "restore")

    def check(self):
        if self.failure is not None:
            raise self.failure
        assert len(self.outlet.answers) == self.sent
        at = dict.fromkeys(self.lives, 0)
        for _, (life, number), result, error in self.outlet.answers:
            assert number == at[life], "out of order, or twice"
            at[life] += 1
            what = life.calls[number]
            wanted = {"refused": InputError, "closed": UsageError}.get(what, type(None))
            assert type(error) is wanted, (what, error)
            if what in ("step", "end"):
                life.outputs.append((as_signal(result), None))
        for life in self.lives:
            equals_solo(self.model, life.inputs, life.outputs)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join("-".join(m) for m in pair))
def test_hundreds_of_streams_equal_their_solo_streams(pair):
    models = [zoo.model(*case) for case in pair]
    with Engine(max_sessions=STREAMS, max_wait_ms=1) as engine:
        each = STREAMS // 4
        callers = [
            Caller(engine, models[at % 2], range(at * each, (at + 1) * each)) for at in range(4)
        ]
        with pytest.raises(EngineFull):
            engine.seat(models[0])
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        statistics = engine.statistics()
    for caller in callers:
        caller.check()
    assert statistics.hops > 1.5 * statistics.ticks, "hardly anything was batched"


def test_a_batch_of_uneven_parts_is_refused_whole():
    model, outlet = zoo.model("mel", "encoder"), Outlet()
    with Engine() as engine:
        seats = [engine.seat(model) for _ in range(2)]
        with pytest.raises(UsageError, match="2 seats, 1 chunks and 2 tags"):
            engine.submit(Batch(seats, [zoo.signal(model, 3)], [0, 1], outlet))
        engine.ask(seats[0], Stream.flush, 2, outlet)
        outlet.until(1)
    assert [tag for _, tag, _, _ in outlet.answers] == [2]


def test_a_closed_engine_takes_no_batch_and_answers_what_it_has_taken():
    model, outlet = zoo.model("mel", "encoder"), Outlet()
    engine = Engine(max_wait_ms=10_000)
    seats = [engine.seat(model) for _ in range(2)]
    chunks = [zoo.signal(model, model.spec.lead)] * 2
    engine.submit(Batch(seats, chunks, ["a", "b"], outlet))
    outlet.until(2)
    # One hop of two waits for the other's.
    engine.submit(Batch(seats[:1], [zoo.signal(model, model.spec.hop)], ["c"], outlet))
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.submit(Batch(seats, chunks, [0, 1], outlet))
    (_, tag, result, error) = outlet.answers[-1]
    assert tag == "c" and result is None and type(error) is UsageError
    assert len(outlet.answers) == 3
