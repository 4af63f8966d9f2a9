"""Models that are loaded as compiled steps, as users load and run them."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import streamenc
from streamenc.engine.engine import Engine
from streamenc.errors import UsageError
from streamenc.stream import Stream
from streamenc.testing import check_model
from streamenc_kernels.compiled.entry import CannotCompile
from tests.support.answers import joined
from tests.support.compare import assert_close, poisoned_memory
from tests.support.pieces import pushed
from tests.support.zoo import cut, raw, save_mimi, signal

pytest.importorskip("numba")
__all__ = ["poisoned_memory"]
HOPS = 60  # past the window of the small Mimi, 20 positions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mimi")
    save_mimi(path)
    return path


@pytest.fixture(scope="module", params=["int16", "float32"])
def codec(folder, request):
    return streamenc.load(folder, backend="compiled", precision=request.param)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_whole_contract(codec, side):
    print(check_model(getattr(codec, side), examples=3))


@pytest.mark.parametrize("hops", [1, 3])
def test_a_stream_equals_offline_in_any_pieces(codec, hops):
    of = codec.encoder
    x = signal(of, HOPS * of.spec.hop + of.spec.hop // 2)
    codes = pushed(codec.stream(hops=hops), x, hops)
    assert torch.equal(codes, codec.encode(x))
    latents = pushed(Stream(raw(of), hops=hops), x, 7)
    assert_close(latents, of.model(x), 1e-5)
    assert torch.equal(latents, pushed(Stream(raw(of), hops=hops), x, 8))
    assert_close(pushed(codec.decode_stream(hops=hops), codes, 9), codec.decode(codes), 1e-5)


def test_programs_run_in_midstream_and_torch_at_the_ends(codec, monkeypatch):
    of = codec.encoder
    assert of.runs_in == "compiled"
    x = signal(of, 20 * of.spec.hop)
    stream = Stream(of)
    stream.push(cut(x, 0, of.spec.lead))
    monkeypatch.setattr(type(of.model), "step", lambda *a, **k: pytest.fail("torch ran"))
    stream.push(cut(x, of.spec.lead, 20 * of.spec.hop))
    with pytest.raises(pytest.fail.Exception, match="torch ran"):
        stream.flush()


def test_snapshots_go_on_in_torch_and_back(codec, folder):
    plain = streamenc.load(folder, backend="torch", part="encoder").encoder
    fast = raw(codec.encoder)
    assert plain.fingerprint() == fast.fingerprint()
    most = 1e-5 if codec.encoder.precision == "float32" else 1e-3
    x = signal(fast, HOPS * fast.spec.hop)
    expected = Stream(raw(plain)).push(x)
    for first, then in ((raw(plain), fast), (fast, raw(plain))):
        stream, other, half = Stream(first), Stream(then), 30 * fast.spec.hop + 5
        parts = [stream.push(cut(x, 0, half))]
        other.restore(stream.snapshot())
        parts.append(other.push(cut(x, half, x.shape[-1])))
        assert_close(torch.cat(parts, dim=2), expected, most)


def test_float32_is_as_near_as_torch_and_int16_as_its_rounding(codec, folder):
    plain = streamenc.load(folder, backend="torch")
    x = signal(plain.encoder, HOPS * plain.encoder.spec.hop)
    expected = Stream(raw(plain.encoder)).push(x)
    error = assert_close(Stream(raw(codec.encoder)).push(x), expected, 1e-3)
    assert (error < 1e-5) == (codec.encoder.precision == "float32")
    assert (codec.stream().push(x) == plain.encode(x)).double().mean() > 0.99


def test_sessions_come_and_go_and_idle(codec):
    of = raw(codec.encoder)
    hop, hops, count = of.spec.hop, 40, 5
    sounds = [signal(of, hops * hop, seed=seed) for seed in range(count)]

    async def client(engine: Engine, index: int) -> torch.Tensor:
        parts = []
        with engine.open(of) as session:
            for i in range(hops - 5 * index):  # they leave one after the other
                parts.append(await session.step(cut(sounds[index], i * hop, (i + 1) * hop)))
                if i % 7 == index:
                    await asyncio.sleep(0.01)  # while the others go on
        return joined(parts)

    async def all_clients() -> list[torch.Tensor]:
        with Engine(max_sessions=count) as engine:
            return await asyncio.gather(*(client(engine, index) for index in range(count)))

    for index, output in enumerate(asyncio.run(all_clients())):
        alone = Stream(of).push(cut(sounds[index], 0, (hops - 5 * index) * hop))
        assert_close(output, alone, 1e-5)  # first steps are torch's, for several at once


def test_streams_of_two_threads(codec):
    of = raw(codec.encoder)
    sounds = [signal(of, HOPS * of.spec.hop, seed=seed) for seed in range(2)]
    expected = [Stream(of).push(x) for x in sounds]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):
            found = list(threads.map(lambda x: pushed(Stream(of), x, 1), sounds))
            for y, alone in zip(found, expected, strict=True):
                assert torch.equal(y[..., : alone.shape[-1]], alone)


def test_what_is_not_finite_stays_so(codec):
    of = codec.encoder
    with torch.inference_mode():
        _, state = of.step(signal(of, of.spec.lead), None)
        x = signal(of, of.spec.hop)
        x[0, 0, 3] = float("nan")
        y, _ = of.step(x, state)
    assert y.isnan().any()


def test_gradients_flow_through_torch(codec):
    of = codec.encoder
    x = signal(of, of.spec.lead + of.spec.hop)
    first, rest = cut(x, 0, of.spec.lead), cut(x, of.spec.lead, x.shape[-1]).requires_grad_()
    _, state = of.step(first, None)
    of.step(rest, state)[0].square().sum().backward()
    assert rest.grad.abs().sum() > 0


def test_the_weights_are_fixed(codec):
    of = codec.encoder
    with pytest.raises(UsageError, match="load it again"):
        of.double()
    with pytest.raises(UsageError, match="in the other process too"):
        pickle.dumps(of)
    assert copy.deepcopy(of) is of
    assert of.chain is of.model.chain
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = of.nothing_like_it


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nano", {"backend": "tensorrt"}, "backend is 'torch', 'compiled' or 'onnx'"),
        ("nano", {"backend": "compiled", "precision": "int4"}, "is one of"),
        ("nano", {"backend": "compiled", "dtype": torch.float64}, "start from float32"),
        ("mel", {"backend": "compiled"}, "MelEncoder has no instructions yet"),
    ],
)
def test_what_cannot_run_says_why(name, options, message):
    with pytest.raises(UsageError, match=message):
        streamenc.load(name, **options)


def test_without_numba_it_says_which_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UsageError, match=r"numba is missing: pip install 'streamenc\[cpu\]'"):
        streamenc.load(folder, backend="compiled")


class TestDefault:
    """What runs where no backend is named."""

    def test_compiled_where_the_layers_have_instructions(self, folder):
        codec = streamenc.load(folder)
        assert (codec.encoder.runs_in, codec.encoder.precision) == ("compiled", "int16")
        assert streamenc.load(folder, precision="float32").decoder.precision == "float32"
        assert streamenc.load("mel").encoder.runs_in == "torch"

    @pytest.mark.parametrize(
        "options", [{"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"backend": "torch"}]
    )
    def test_torch_where_it_was_asked_for(self, folder, options):
        assert streamenc.load(folder, **options).encoder.runs_in == "torch"

    def test_torch_by_the_environment(self, folder, monkeypatch):
        monkeypatch.setenv("STREAMENC_BACKEND", "torch")
        assert streamenc.load(folder).encoder.runs_in == "torch"
        assert streamenc.load(folder, backend="compiled").encoder.runs_in == "compiled"
        monkeypatch.setenv("STREAMENC_BACKEND", "tensorrt")
        with pytest.raises(UsageError, match="STREAMENC_BACKEND is 'tensorrt'; wanted auto or tor"):
            streamenc.load(folder)

    def test_torch_without_numba(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "numba", None)
        assert streamenc.load(folder).encoder.runs_in == "torch"

    def test_torch_with_a_warning_where_numba_fails(self, folder, monkeypatch, caplog):
        def fails() -> None:
            raise CannotCompile("numba fails to compile here: no such processor")

        monkeypatch.setattr("streamenc.compiled.team.team", fails)
        with caplog.at_level("WARNING"):
            encoder = streamenc.load(folder, part="encoder").encoder
        assert "mimi runs in torch: numba fails to compile here" in caplog.text
        # The weights are whole: nothing was rounded.
        plain = streamenc.load(folder, part="encoder", backend="torch").encoder
        for ours, theirs in zip(encoder.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        with pytest.raises(UsageError, match="no such processor"):
            streamenc.load(folder, backend="compiled")


def test_what_is_rounded_is_not_exported(codec, tmp_path):
    pytest.importorskip("onnxruntime")
    from streamenc.onnx.portable import export_files

    with pytest.raises(UsageError, match="backend='torch' to export it"):
        export_files(codec.encoder, tmp_path / "step.onnx")
