"""Products in full while a step runs, on every road to one, and torch's switches as they were."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import streamenc
from streamenc.codec import Codec
from streamenc.engine.engine import Engine
from streamenc.engine.lanes import Lanes
from streamenc.stream import Stream
from streamenc_kernels import FullFloat32, full_float32, reduced_products
from tests.support import zoo

backends = torch.backends
SWITCHES = {
    "cudnn.conv": (backends.cudnn.conv, "tf32"),
    "cudnn.rnn": (backends.cudnn.rnn, "tf32"),
    "cuda.matmul": (backends.cuda.matmul, "tf32"),
    "mkldnn.conv": (backends.mkldnn.conv, "bf16"),
    "mkldnn.rnn": (backends.mkldnn.rnn, "bf16"),
    "mkldnn.matmul": (backends.mkldnn.matmul, "bf16"),
}
ON_A_GPU = {"cudnn.conv", "cudnn.rnn", "cuda.matmul"}


def switches() -> dict[str, str]:
    return {name: holder.fp32_precision for name, (holder, _) in SWITCHES.items()}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = switches()
    yield
    for name, (holder, _) in SWITCHES.items():
        holder.fp32_precision = before[name]


@pytest.fixture
def reduced() -> dict[str, str]:
    """A program that had asked for less than float32 in everything."""
    for holder, value in SWITCHES.values():
        holder.fp32_precision = value
    return switches()


def full(device: str) -> None:
    """Asserts that the switches of a device stand on float32."""
    inside = switches()
    names = ON_A_GPU if device == "cuda" else SWITCHES.keys() - ON_A_GPU
    assert {inside[name] for name in names} <= {"ieee", "none"}, inside


class Watched:
    """A model's step and its two ends, which look at the switches."""

    def __init__(self, model, monkeypatch) -> None:
        self.model, self.seen = model, []
        for name in ("step", "after", "before"):
            monkeypatch.setattr(model, name, self._watching(getattr(model, name), name))

    def _watching(self, function, name):
        def watching(*given, **named):
            if name != "before" or self.model.spec.input.kind == "codes":
                full("cpu")
                self.seen.append(name)
            return function(*given, **named)

        return watching


def chunk(model, items: int):
    return zoo.signal(model, items)


def by_stream(model):
    stream, spec = Stream(model), model.spec
    stream.push(chunk(model, spec.lead + spec.hop + 1))
    stream.flush()


def by_codec(model):
    side = {"encoder": model, "decoder": None}
    if model.spec.input.kind == "codes":
        Codec("some", None, model).decode(chunk(model, 5))
    else:
        Codec("some", **side).encode(chunk(model, model.spec.lead + 3 * model.spec.hop))


def by_lanes(model):
    lanes, streams, spec = Lanes(model, 2), [Stream(model), Stream(model)], model.spec
    for stream in streams:
        stream.push(chunk(model, spec.lead))
        lanes.join(stream)
    with torch.inference_mode():
        for stream in streams:
            stream.take(chunk(model, spec.hop))
    lanes.step(dict.fromkeys(streams))


def by_engine(model):
    async def go():
        with Engine(max_sessions=2, max_wait_ms=1) as engine:
            sessions = [engine.open(model) for _ in range(2)]
            x = chunk(model, model.spec.lead + 2 * model.spec.hop)
            await asyncio.gather(*(session.step(x) for session in sessions))
            await asyncio.gather(*(session.flush() for session in sessions))
            for session in sessions:
                session.close()

    asyncio.run(go())


@pytest.mark.parametrize("road", [by_stream, by_codec, by_lanes, by_engine])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_every_road_to_a_step_computes_in_full(side, road, reduced, monkeypatch):
    watched = Watched(zoo.model("mimi", side, torch.float32), monkeypatch)
    road(watched.model)
    wanted = {"step", "after", "before"} if side == "decoder" else {"step", "after"}
    assert {*watched.seen} == wanted
    assert switches() == reduced


def test_weights_are_prepared_in_full(reduced, monkeypatch):
    from streamenc.models.model import Model

    prepare, calls = Model.prepare, []

    def watching(self):
        full("cpu")
        calls.append(self)
        prepare(self)

    monkeypatch.setattr(Model, "prepare", watching)
    streamenc.load("nano", part="encoder")
    assert calls and switches() == reduced


def test_latents_stay_in_a_program_that_asked_for_bfloat16():
    """Where the processor multiplies in it, as those with AMX do: else both are float32 anyway."""
    model = streamenc.load("nano", part="encoder").encoder
    x = chunk(model, 40 * model.spec.hop)
    kept = []

    def watching(latents, codebooks=None):
        kept.append(latents)
        return after(latents, codebooks)

    after, model.after = model.after, watching
    Codec("nano", model, None).encode(x)
    for holder, value in SWITCHES.values():
        holder.fp32_precision = value
    Codec("nano", model, None).encode(x)
    wanted, given = kept
    assert torch.equal(given, wanted)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_scopes_within_each_other_and_in_threads(device, reduced):
    entered, go_on = threading.Barrier(3, timeout=20), threading.Event()

    def step() -> None:
        with FullFloat32(device):
            entered.wait()
            with FullFloat32(device):
                full(device)
            full(device)
            assert go_on.wait(20)
            full(device)

    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(step) for _ in range(2)]
        entered.wait()
        with FullFloat32(device):
            full(device)
        full(device)  # the others still step
        go_on.set()
        for one in steps:
            one.result()
    assert switches() == reduced


def test_a_step_that_fails_puts_them_back(reduced):
    with pytest.raises(ZeroDivisionError), FullFloat32("cuda"):
        full("cuda")
        raise ZeroDivisionError
    assert switches() == reduced


def test_what_is_chosen_anew_meanwhile_stays(reduced):
    backends.cudnn.conv.fp32_precision = "tf32"
    with FullFloat32("cuda"):
        backends.cuda.matmul.fp32_precision = "none"
    assert switches()["cuda.matmul"] == "none" and switches()["cudnn.conv"] == "tf32"


@pytest.mark.parametrize("ask", ["old", "new", "not"])
def test_both_ways_to_ask_may_have_been_used(ask):
    """torch refuses to read its older switches while they contradict the newer; steps read none."""
    before = torch.get_float32_matmul_precision()
    try:
        if ask == "old":
            torch.set_float32_matmul_precision("high")
            assert reduced_products("cuda")["linear layers"] == "tf32"
        elif ask == "new":
            backends.cuda.matmul.fp32_precision = "tf32"
        outside = switches()
        with FullFloat32("cuda"), FullFloat32("cpu"):
            full("cuda"), full("cpu")
        assert switches() == outside
        if ask == "old":
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_it_tells_what_is_reduced():
    for holder, _ in SWITCHES.values():
        holder.fp32_precision = "ieee"
    assert reduced_products("cuda") == reduced_products("cpu") == {}
    backends.cudnn.conv.fp32_precision = "tf32"
    assert reduced_products("cuda") == {"convolutions": "tf32"}
    with FullFloat32("cuda"):
        assert reduced_products("cuda") == {}
    assert reduced_products("mps") == {}


def test_torchs_older_switches_do_as_well(monkeypatch):
    class Old:
        allow_tf32 = True

    class Backends:
        cudnn, mkldnn = Old(), Old()

        class cuda:
            matmul = Old()

    monkeypatch.setattr(torch, "backends", Backends)
    monkeypatch.setattr(full_float32, "_SWITCHES", full_float32._found())
    assert reduced_products("cuda") == {
        "convolutions and recurrent layers": "tf32",
        "linear layers": "tf32",
    }
    with FullFloat32("cuda"), FullFloat32("cpu"):
        assert not (Backends.cudnn.allow_tf32 or Backends.cuda.matmul.allow_tf32)
    assert Backends.cudnn.allow_tf32 and Backends.cuda.matmul.allow_tf32
