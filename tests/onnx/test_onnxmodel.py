"""An ONNX step computes what torch computes, on the same state: alone, in lanes, in turns."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import streamenc
from streamenc.engine.engine import Engine
from streamenc.errors import InputError, UsageError
from streamenc.models.model import Model
from streamenc.onnx.onnxmodel import OnnxModel
from streamenc.stream import Stream
from tests.support.answers import joined
from tests.support.compare import assert_close
from tests.support.pieces import pushed
from tests.support.zoo import cut, model, raw, rope_theta, save_mimi, signal

CASES = [("mimi", "encoder"), ("encodec", "encoder"), ("nano", "encoder")]
MORE = [(name, "encoder") for name in ("wav2vec2", "wav2vec2-stable", "hubert-frozen-mean")]
MORE += [(name, "decoder") for name in ("mimi", "encodec", "nano")]
HOPS = 60  # past the window of the small Mimi, 20 positions


def in_onnx(of: Model) -> OnnxModel:
    return OnnxModel(of)


@pytest.mark.parametrize(
    ("name", "side"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_equals_torch_in_any_pieces(name, side):
    of = model(name, side, torch.float32)
    plain, fast = raw(of), raw(in_onnx(of))
    items = of.spec.lead + HOPS * of.spec.hop + of.spec.hop // 2
    x = signal(of, items)
    expected = pushed(Stream(plain), x, 0)
    assert_close(pushed(Stream(fast), x, 1), expected, 1e-5)
    again = Stream(fast)
    assert torch.equal(pushed(again, x, 2), pushed(again, x, 3))  # bit for bit


def test_the_onnx_step_is_what_runs_and_the_state_is_torchs(monkeypatch):
    of = model("mimi", "encoder", torch.float32)
    fast = in_onnx(of)
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
    fast = in_onnx(of)
    fast.warm_up(1)
    x = signal(of, of.spec.lead + 12 * of.spec.hop, batch=4)
    together = raw(fast)
    batch = Stream(together, batch=4)
    expected = [Stream(raw(of)).push(x[lane : lane + 1]) for lane in range(4)]
    assert_close(batch.push(x), torch.cat(expected), 1e-5)


def test_sessions_in_lanes_get_what_a_stream_alone_gets():
    of = model("mimi", "encoder", torch.float32)
    fast = raw(in_onnx(of))
    hop, hops, count = of.spec.hop, 40, 6
    sounds = [signal(of, hops * hop, seed=seed) for seed in range(count)]

    async def client(engine: Engine, index: int) -> torch.Tensor:
        parts = []
        with engine.open(fast) as session:
            for i in range(hops - 5 * index):  # they leave one after the other
                parts.append(await session.step(cut(sounds[index], i * hop, (i + 1) * hop)))
        return joined(parts)

    async def all_clients() -> list[torch.Tensor]:
        with Engine(max_sessions=count) as engine:
            outputs = await asyncio.gather(*(client(engine, index) for index in range(count)))
            assert engine.statistics().lanes_per_tick > 1.5
        return outputs

    outputs = asyncio.run(all_clients())
    for index, output in enumerate(outputs):
        items = (hops - 5 * index) * hop
        assert_close(output, Stream(raw(of)).push(cut(sounds[index], 0, items)), 1e-5)


def test_loading_exports_the_step_so_that_opening_a_session_does_not(monkeypatch):
    codec = streamenc.load("nano", part="encoder", backend="onnx")
    monkeypatch.setattr("streamenc.onnx.onnxmodel.build", lambda *a: pytest.fail("exported a step"))
    with Engine() as engine, engine.open(codec.encoder) as session:
        assert session.codebooks is None


def test_a_step_is_exported_once(steps_folder, monkeypatch):
    from streamenc.onnx import build

    of = model("nano", "decoder", torch.float32)
    in_onnx(of).warm_up(1)
    with monkeypatch.context() as patch:
        patch.setattr(build, "export_step", lambda *a, **k: pytest.fail("exported again"))
        in_onnx(of).warm_up(1)
    (damaged,) = (steps_folder / build.STEPS_FOLDER / build._key(of, 1)).glob("*.onnx")
    assert damaged.stat().st_mode & 0o777 == 0o600
    assert damaged.parent.stat().st_mode & 0o777 == 0o700
    whole = damaged.read_bytes()
    for spoilt in (b"no step", whole[:-1000] + bytes(1000)):
        damaged.write_bytes(spoilt)
        in_onnx(of).warm_up(1)
        assert damaged.read_bytes() != spoilt


@pytest.mark.slow
def test_each_folder_runs_its_own_step(tmp_path, monkeypatch):
    """Equal weights under another config, one cache: neither takes the other's step."""
    monkeypatch.setenv("STREAMENC_CACHE", str(tmp_path / "cache"))
    save_mimi(tmp_path)
    path, made = tmp_path / "config.json", []
    for changed in (False, True):
        if changed:
            config = json.loads(path.read_text())
            rope_theta(config)
            path.write_text(json.dumps(config))
        plain = streamenc.load(tmp_path, part="encoder", backend="torch").encoder
        fast = streamenc.load(tmp_path, part="encoder", backend="onnx").encoder
        x = signal(plain, HOPS * plain.spec.hop)
        made.append(Stream(raw(plain)).push(x))
        assert_close(Stream(raw(fast)).push(x), made[-1], 1e-5)
    assert not torch.allclose(*made, rtol=0.1)


@pytest.mark.slow
def test_load_runs_the_bundled_model_in_onnx():
    codec = streamenc.load("nano", backend="onnx")
    x = 0.1 * signal(codec.encoder, codec.spec.lead + 20 * codec.spec.hop)
    codes = codec.stream(codebooks=6).push(x)
    plain = streamenc.load("nano", backend="torch").stream(codebooks=6).push(x)
    assert (codes == plain).double().mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend is 'torch', 'compiled' or 'onnx'"),
        ({"precision": "int8"}, "precision of backend='compiled' is one of int16, float32"),
        ({"backend": "onnx", "precision": "int4"}, "precision of backend='onnx' is one of float32"),
        ({"backend": "onnx", "dtype": torch.float64}, "start from float32"),
    ],
)
def test_what_cannot_run_says_why(options, message):
    with pytest.raises(UsageError, match=message):
        streamenc.load("nano", **options)


def test_models_without_weights_stay_in_torch():
    with pytest.raises(UsageError, match="mel has no weights"):
        streamenc.load("mel", backend="onnx")


def test_streams_of_other_threads_go_on_in_torch_meanwhile(monkeypatch):
    """Tracing takes other paths than streams do, in its own thread alone; two take turns."""
    monkeypatch.setenv("STREAMENC_CACHE", "/dev/null/nowhere")  # so that all are made
    of = model("nano", "encoder", torch.float32)
    x = signal(of, of.spec.lead + 20 * of.spec.hop)
    expected, wrong = Stream(raw(of)).push(x), torch.full((1, 2, 1), 10**6)
    decoder, done = model("nano", "decoder", torch.float32), threading.Event()

    def live() -> int:
        runs = 0
        while not done.is_set():
            assert torch.equal(Stream(raw(of)).push(x), expected)
            with pytest.raises(InputError, match="of another model"):
                Stream(decoder).push(wrong)
            runs += 1
        return runs

    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(live)
        made = [threads.submit(in_onnx(part).warm_up) for part in (of, decoder)]
        try:
            for one in made:
                one.result()
        finally:
            done.set()
        assert running.result() > 0


def test_a_restored_stream_has_the_step_of_its_hops():
    of = model("nano", "encoder", torch.float32)
    fast, heir = in_onnx(of), in_onnx(of)
    x = signal(of, of.spec.lead + 30 * of.spec.hop)
    stream, other = Stream(fast, hops=3), Stream(heir)
    half = of.spec.lead + 15 * of.spec.hop
    stream.push(cut(x, 0, half))
    other.restore(stream.snapshot())
    assert heir._runners.keys() == {3 * of.spec.hop}
    rest = cut(x, half, x.shape[-1])
    assert torch.equal(other.push(rest), stream.push(rest))


def test_the_weights_of_an_onnx_step_are_fixed():
    fast = in_onnx(model("nano", "encoder", torch.float32))
    fast.warm_up()
    with pytest.raises(UsageError, match="load it again"):
        fast.double()
    again = copy.deepcopy(fast)
    x = signal(fast, fast.spec.lead + 3 * fast.spec.hop)
    assert torch.equal(Stream(again).push(x), Stream(fast).push(x))


def test_a_state_that_was_used_up_is_refused():
    fast = in_onnx(model("nano", "encoder", torch.float32))
    fast.warm_up()
    x = signal(fast, fast.spec.lead + 3 * fast.spec.hop)
    lead, hop = fast.spec.lead, fast.spec.hop
    with torch.inference_mode():
        _, state = fast.step(cut(x, 0, lead), None)
        _, first = fast.step(cut(x, lead, lead + hop), state)
        fast.step(cut(x, lead + hop, lead + 2 * hop), first)
        with pytest.raises(AssertionError, match="used up"):
            fast.step(cut(x, lead + hop, lead + 2 * hop), first)
