"""Staging: what becomes of chunks and of outputs on their way, with a device of stand-ins too."""

from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.cpu.nothing import Nothing
from streamenc.engine.engine import Engine
from streamenc.engine.exchange.door import Batch
from streamenc.engine.exchange.staging import Staging, Timing
from streamenc.errors import InputError
from streamenc.models.signal import Scaled
from streamenc.spec import Port, ScaledCodes
from streamenc.stream import MAX_SAMPLE, Stream

MODEL = Nothing()
HOP = MODEL.spec.hop
RANDOM = np.random.default_rng(5)
BAD = [np.nan, np.inf, -np.inf, 1e300, 65.0, -1000.0]


def sound(*shape: int, dtype: str = "float32"):
    return RANDOM.uniform(-1, 1, shape).astype(dtype)


@pytest.mark.parametrize(
    "chunk",
    [
        sound(HOP),
        sound(1, HOP),
        sound(1, 1, HOP),
        sound(1, 1, 7),
        sound(3 * HOP + 1),
        sound(1, 1, HOP, dtype="float64"),
        sound(1, HOP, dtype="float16"),
        sound(2 * HOP)[::2],
        sound(HOP)[::-1],
        torch.from_numpy(sound(1, 1, HOP)),
        torch.from_numpy(sound(2 * HOP, dtype="float64"))[::2],
        np.array([MAX_SAMPLE, -MAX_SAMPLE]),
    ],
    ids=lambda chunk: f"{type(chunk).__name__}-{chunk.dtype}-{tuple(chunk.shape)}",
)
def test_what_is_staged_is_what_a_stream_takes(chunk):
    staging, stream = Staging(MODEL), Stream(MODEL)
    data, count = staging.staged(chunk)
    stream.take(chunk)
    (taken,) = stream._waiting
    assert count == taken.shape[2]
    matrix = staging.matrix([data, data])
    assert matrix.shape == (2, 1, count) and staging.unusual(matrix) == []
    assert np.array_equal(matrix[:1], taken) and np.array_equal(matrix[1:], taken)


@pytest.mark.parametrize(
    "chunk",
    [
        [0.0] * HOP,
        np.zeros(HOP, np.int16),
        np.zeros((1, 2, HOP), np.float32),
        np.zeros((2, 1, HOP), np.float32),
        np.zeros((1, 1, 1, HOP), np.float32),
        np.float32(0),
        np.zeros(0, np.float32),
        torch.zeros(HOP, dtype=torch.float16),
        torch.zeros(HOP, requires_grad=True),
        "no sound",
        None,
    ],
    ids=str,
)
def test_the_rest_is_left_to_the_stream(chunk):
    assert Staging(MODEL).staged(chunk) is None


def test_a_chunk_is_copied():
    staging, chunk = Staging(MODEL), sound(1, 1, HOP)
    before = chunk.copy()
    data, _ = staging.staged(chunk)
    rows = staging.staged_rows(chunk)
    chunk[:] = 9
    assert np.array_equal(staging.matrix([data]), before)
    assert np.array_equal(staging.matrix([rows[0][0]]), before)


@pytest.mark.parametrize("items", [1, 7, HOP, 2 * HOP + 1])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_array_of_chunks_is_staged_as_each_would_be(items, dtype):
    staging, chunks = Staging(MODEL), sound(9, 1, 2 * items, dtype=dtype)[:, :, ::2]
    assert staging.staged_rows(chunks) == [staging.staged(chunk) for chunk in chunks]


@pytest.mark.parametrize(
    "chunks",
    [
        np.zeros((3, 1, HOP), np.int16),
        np.zeros((3, 2, HOP), np.float32),
        np.zeros((3, 1, 0), np.float32),
    ],
    ids=lambda chunks: f"{chunks.dtype}-{chunks.shape}",
)
def test_an_array_of_what_is_not_staged_is_not(chunks):
    assert Staging(MODEL).staged_rows(chunks) is None


@pytest.mark.filterwarnings("error")
def test_the_quick_look_finds_what_no_stream_takes():
    """In any place of any row; and nothing else."""
    staging = Staging(MODEL)
    for seed in range(60):
        chance = np.random.default_rng(seed)
        matrix = chance.uniform(-MAX_SAMPLE, MAX_SAMPLE, (12, 1, 9))
        bad = np.flatnonzero(chance.random(12) < 0.2)
        for row in bad:
            matrix[row, 0, chance.integers(9)] = chance.choice(BAD)
        rows = [data for data, _ in staging.staged_rows(matrix)]
        assert staging.unusual(staging.matrix(rows)) == list(bad)
        for row, chunk in enumerate(matrix):
            stream = Stream(MODEL)
            if row in bad:
                with pytest.raises(InputError):
                    stream.take(chunk)
            else:
                stream.take(chunk)


class Collected:
    """An outlet that keeps all answers, by their tag."""

    def __init__(self, count):
        self.count, self.found, self.there = count, {}, threading.Event()

    def deliver(self, answers):
        for _, tag, result, error in answers:
            assert tag not in self.found, "answered twice"
            self.found[tag] = error if error is not None else result
        if len(self.found) == self.count:
            self.there.set()


@pytest.mark.parametrize("bad", [*BAD, "text", "other length", "other channels"], ids=str)
def test_a_chunk_that_is_refused_leaves_its_stream_and_its_neighbours_alone(bad):
    """As a first step, and as a later one; the message is that of a stream by itself."""
    rounds, seats_count, odd = 4, 6, 2
    chunks = [[sound(1, HOP, dtype="float64") for _ in range(seats_count)] for _ in range(rounds)]
    unusual = sound(1, HOP, dtype="float64")
    if bad == "text":
        unusual = "no sound"
    elif bad == "other length":
        unusual = unusual[:, : HOP // 2]
    elif bad == "other channels":
        unusual = np.repeat(unusual, 2, axis=0)
    else:
        unusual[0, HOP // 3] = bad
    for row in chunks[:2]:
        row[odd] = unusual
    outlet = Collected(rounds * seats_count)
    with Engine(max_sessions=seats_count) as engine:
        seats = [engine.seat(MODEL) for _ in range(seats_count)]
        for number, row in enumerate(chunks):
            engine.submit(Batch(seats, row, [(number, at) for at in range(seats_count)], outlet))
        assert outlet.there.wait(30)
    for at in range(seats_count):
        alone = Stream(MODEL)
        for number in range(rounds):
            answer = outlet.found[number, at]
            try:
                expected = alone.push(chunks[number][at])
            except InputError as error:
                assert at == odd and bad != "other length"
                assert type(answer) is InputError and str(answer) == str(error)
            else:
                assert np.array_equal(answer, expected)


class Late(Tensor):
    """Memory that looks pinned; what is copied there without waiting arrives with an event."""

    under_way: list = []

    def copy_(self, source, non_blocking=False):
        if non_blocking:
            self.under_way.append((self, source))
            return self
        self.as_subclass(Tensor).copy_(source)
        return self


class OnDevice(Tensor):
    is_cuda = True


class Event:
    """Marks what was under way when it was recorded; a wait lets that arrive."""

    made: list = []

    def __init__(self, **options):
        self.options, self.marked = options, None
        self.made.append(self)

    def record(self, stream):
        self.marked = len(Late.under_way)

    def synchronize(self):
        assert self.marked is not None, "waits for what was never recorded"
        for host, source in Late.under_way[: self.marked]:
            host.as_subclass(Tensor).copy_(source.as_subclass(Tensor))
        del Late.under_way[: self.marked]

    def elapsed_time(self, last):
        assert self.options["enable_timing"] and last.options["enable_timing"]
        return 2.5


@pytest.fixture
def device():
    """A stand-in for one: memory, pinned or not, is the host's."""
    pinned, empty = [], torch.empty

    def stand_in(*args, pin_memory=False, **options):
        made = empty(*args, **options)
        if not pin_memory:
            return made
        pinned.append(made)
        if made.is_floating_point():
            made.fill_(torch.nan)  # what has not arrived is not right by chance
        else:
            made.zero_()
        return made.as_subclass(Late)

    Late.under_way.clear()
    Event.made.clear()
    stream = mock.patch.object(torch.cuda, "current_stream", lambda device: device)
    events = mock.patch.object(torch.cuda, "Event", Event)
    with mock.patch.object(torch, "empty", stand_in), events, stream:
        yield pinned


def test_to_a_device_it_goes_through_pinned_memory_that_is_used_again(device):
    staging = Staging(MODEL)
    staging._like = SimpleNamespace(is_cuda=True, device="cpu", dtype=torch.float32)
    for rows in (5, 3, 10, 11, 5):
        matrix = sound(rows, 1, HOP)
        assert np.array_equal(staging.to_device(matrix), matrix)
    assert [memory.numel() for memory in device] == [10 * HOP, 22 * HOP]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_from_a_device_codes_come_back_with_one_event(device, dtype):
    staging = Staging(_gives(Port("codes", Fraction(50), 4, dtype)))
    codes = torch.randint(0, min(np.iinfo(dtype).max, 2**20) + 1, (7, 4, 1))
    codes[0, 0] = min(np.iinfo(dtype).max, 2**20)
    found = staging.to_host(codes.as_subclass(OnDevice))
    assert found.dtype == dtype and np.array_equal(found, codes)
    (event,) = Event.made
    assert event.options["blocking"], "the worker sleeps meanwhile"
    assert [memory.dtype.itemsize for memory in device] == [max(1, np.dtype(dtype).itemsize)] or (
        dtype == "int32"
    )


def test_from_a_device_scaled_codes_come_back_with_one_event_for_both(device):
    staging = Staging(_gives(Port("codes", Fraction(50), 4, "uint16")))
    codes, scale = torch.randint(0, 1024, (7, 4, 2)), torch.rand(7, 1, 2)
    found = staging.to_host(Scaled(codes.as_subclass(OnDevice), scale.as_subclass(OnDevice)))
    assert isinstance(found, ScaledCodes) and found.codes.dtype == "uint16"
    assert np.array_equal(found.codes, codes) and np.array_equal(found.scale, scale)
    assert len(Event.made) == 1 and len(device) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_from_a_device_features_come_back_as_numbers_that_numpy_has(device, dtype):
    values = torch.rand(7, 3, 1).to(dtype)
    found = Staging(MODEL).to_host(values.as_subclass(OnDevice))
    wanted = values if dtype in (torch.float32, torch.float64) else values.float()
    assert np.array_equal(found, wanted) and found.dtype == wanted.numpy().dtype


def test_a_step_on_a_device_is_timed_by_events(device):
    with Timing(torch.device("cuda")) as timing:
        pass
    assert timing.by_events and timing.duration_ns == 2_500_000
    assert all(event.marked is not None and event.options["blocking"] for event in Event.made)


def test_a_step_that_fails_on_a_device_is_timed_by_the_clock(device):
    timing = Timing(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="out of memory"), timing:
        raise RuntimeError("out of memory")
    assert 0 < timing.duration_ns < 2_500_000 and len(Event.made) == 1


def test_a_step_on_a_cpu_is_timed_by_the_clock():
    with Timing(torch.device("cpu")) as timing:
        pass
    assert not timing.by_events and timing.duration_ns > 0


def _gives(port: Port) -> Nothing:
    model = Nothing()
    model.spec = replace(model.spec, output=port)
    return model
