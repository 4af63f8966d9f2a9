"""A static graph computes what torch computes, on the same state: alone, in lanes, in turns."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch

import streamenc
from streamenc.engine.session import Engine
from streamenc.errors import UsageError
from streamenc.models.base import Model
from streamenc.static.model import StaticModel
from streamenc.stream import Stream
from tests.compare import assert_close
from tests.models.zoo import cut, model, raw, signal

CASES = [(name, side) for name in ("mimi", "encodec", "nano") for side in ("encoder", "decoder")]
HOPS = 60  # past the window of the small Mimi, 20 positions


def static(of: Model, precision: str = "float32") -> StaticModel:
    return StaticModel(of, precision)


def pushed(stream: Stream, x: torch.Tensor, seed: int) -> torch.Tensor:
    """The whole stream in random pieces."""
    rng, parts, start = random.Random(seed), [], 0
    while start < x.shape[-1]:
        stop = start + rng.randint(1, 3 * stream.model.spec.hop)
        parts.append(stream.push(cut(x, start, stop)))
        start = stop
    parts.append(stream.flush())
    return torch.cat([part for part in parts if part.shape[-1]], dim=-1)


@pytest.mark.parametrize(("name", "side"), CASES)
def test_equals_torch_in_any_pieces(name, side):
    of = model(name, side, torch.float32)
    plain, fast = raw(of), raw(static(of))
    items = of.spec.lead + HOPS * of.spec.hop + of.spec.hop // 2
    x = signal(of, items)
    expected = pushed(Stream(plain), x, 0)
    assert_close(pushed(Stream(fast), x, 1), expected, 1e-5)
    again = Stream(fast)
    assert torch.equal(pushed(again, x, 2), pushed(again, x, 3))  # bit for bit


def test_the_graph_is_what_runs_and_the_state_is_torchs(monkeypatch):
    of = model("mimi", "encoder", torch.float32)
    fast = static(of)
    x = signal(of, 30 * of.spec.hop)
    stream, plain = Stream(fast), Stream(of)
    stream.push(cut(x, 0, of.spec.lead))
    plain.push(cut(x, 0, of.spec.lead))
    with monkeypatch.context() as patch:  # in mid-stream, torch is not asked
        patch.setattr(type(of), "step", lambda *a, **k: pytest.fail("torch ran"))
        for i in range(1, 20):
            stream.push(cut(x, i * of.spec.hop, (i + 1) * of.spec.hop))
    # A snapshot goes on in torch.
    for i in range(1, 20):
        plain.push(cut(x, i * of.spec.hop, (i + 1) * of.spec.hop))
    other = Stream(of)
    other.restore(stream.snapshot())
    rest = cut(x, 20 * of.spec.hop, 30 * of.spec.hop)
    assert torch.equal(other.push(rest), plain.push(rest))


@pytest.mark.parametrize("name", ["mimi", "nano"])
def test_lanes_do_not_touch_each_other(name):
    of = model(name, "encoder", torch.float32)
    fast = static(of)
    fast.ready(1)
    x = signal(of, of.spec.lead + 12 * of.spec.hop, batch=4)
    together = raw(fast)
    batch = Stream(together, batch=4)
    expected = [Stream(raw(of)).push(x[lane : lane + 1]) for lane in range(4)]
    assert_close(batch.push(x), torch.cat(expected), 1e-5)


def test_sessions_in_lanes_get_what_a_stream_alone_gets():
    of = model("mimi", "encoder", torch.float32)
    fast = raw(static(of))
    hop, hops, count = of.spec.hop, 40, 6
    sounds = [signal(of, hops * hop, seed=seed) for seed in range(count)]

    async def client(engine: Engine, index: int) -> torch.Tensor:
        parts = []
        with engine.open(fast) as session:
            for i in range(hops - 5 * index):  # they leave one after the other
                parts.append(await session.step(cut(sounds[index], i * hop, (i + 1) * hop)))
        return torch.cat(parts, dim=-1)

    async def all_clients() -> list[torch.Tensor]:
        with Engine(max_sessions=count) as engine:
            outputs = await asyncio.gather(*(client(engine, index) for index in range(count)))
            assert engine.statistics().lanes_per_tick > 1.5
        return outputs

    outputs = asyncio.run(all_clients())
    for index, output in enumerate(outputs):
        items = (hops - 5 * index) * hop
        assert_close(output, Stream(raw(of)).push(cut(sounds[index], 0, items)), 1e-5)


def test_loading_makes_the_graph_so_that_opening_a_session_does_not(monkeypatch):
    codec = streamenc.load("nano", part="encoder", backend="onnx")
    monkeypatch.setattr("streamenc.static.model.build", lambda *a: pytest.fail("made a graph"))
    with Engine() as engine, engine.open(codec.encoder) as session:
        assert session.codebooks is None


@pytest.mark.parametrize(("precision", "most"), [("int16", 5e-3), ("int8", 0.3)])
def test_fewer_bits_stay_near(precision, most, monkeypatch):
    monkeypatch.setattr("streamenc.static.precision.LEAST_WEIGHTS", 64)
    monkeypatch.setenv("STREAMENC_CACHE", "/dev/null/nowhere")  # these graphs are not kept
    of = model("mimi", "encoder", torch.float32)
    x = signal(of, 40 * of.spec.hop)
    reduced = Stream(raw(static(of, precision))).push(x)
    error = assert_close(reduced, Stream(raw(of)).push(x), most)
    assert error > 1e-6  # it is another arithmetic


def test_a_graph_is_made_once(graphs_folder, monkeypatch):
    from streamenc.static import build

    of = model("nano", "decoder", torch.float32)
    static(of).ready(1)
    with monkeypatch.context() as patch:
        patch.setattr(build, "make", lambda *a, **k: pytest.fail("made again"))
        static(of).ready(1)
    (damaged,) = (graphs_folder / "graphs" / build._key(of, 1, "float32")).glob("*.onnx")
    damaged.write_bytes(b"no graph")
    static(of).ready(1)
    assert damaged.stat().st_size > 1000


def test_load_runs_the_bundled_model_as_a_graph():
    codec = streamenc.load("nano", backend="onnx")
    x = 0.1 * signal(codec.encoder, codec.spec.lead + 20 * codec.spec.hop)
    codes = codec.stream(codebooks=6).push(x)
    plain = streamenc.load("nano").stream(codebooks=6).push(x)
    assert (codes == plain).double().mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend is 'torch' or 'onnx'"),
        ({"precision": "int8"}, "is for backend='onnx'"),
        ({"backend": "onnx", "precision": "int4"}, "precision is one of"),
        ({"backend": "onnx", "dtype": torch.float64}, "start from float32"),
    ],
)
def test_what_cannot_run_says_why(options, message):
    with pytest.raises(UsageError, match=message):
        streamenc.load("nano", **options)
