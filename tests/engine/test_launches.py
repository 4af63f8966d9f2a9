"""What a step launches on a GPU, and that it never waits for the host, on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

import streamenc
from streamenc.models.encodec import encodec
from streamenc.models.mimi import MimiDecoder, MimiEncoder, MimiShape
from streamenc.models.model import Model
from streamenc.models.wav2vec2 import wav2vec2
from tests.support import zoo
from tests.support.launches import FakeGpu, HostMetError, Launches
from tests.support.profile import FULL

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

LANES = 3
# With each commit the first row of each module shows what its family launches.
FIRST = {zoo.FAMILIES[zoo.row(name).family]: name for name, _ in reversed(zoo.CASES)}
CASES = [case for case in zoo.CASES if FULL or case[0] in FIRST.values()]


@pytest.mark.parametrize(("name", "side"), CASES, ids=["-".join(case) for case in CASES])
def test_a_captured_step_never_waits_for_the_host(name, side):
    model, gpu = zoo.model(name, side, torch.float32), FakeGpu()
    if model.uncapturable:
        pytest.skip(f"is never captured: {model.uncapturable}")
    spec = model.spec
    with torch.no_grad():
        x = model.before(zoo.signal(model, spec.lead + spec.hop))
        _, state = model.step(x[:, :, : spec.lead], None)
    placed, x = gpu.module(model), gpu.empty(x[:, :, spec.lead :], LANES)
    y, launches = gpu.step(placed, x, state)
    assert y.is_cuda and y.shape[0] == LANES and launches.total()
    if spec.output.kind == "codes":
        gpu.trace(lambda: placed.after(y))


def mimi_encoder() -> Model:
    return MimiEncoder(MimiShape({}), "moshi")


def mimi_decoder() -> Model:
    return MimiDecoder(MimiShape({}))


def encodec_encoder() -> Model:
    shape = encodec._EncodecShape.of(encodec.PUBLISHED)
    return shape.encoder(shape.quantizer(), exact=True)


def encodec_decoder() -> Model:
    shape = encodec._EncodecShape.of(encodec.PUBLISHED)
    return shape.decoder(shape.quantizer(), exact=True)


def hubert() -> Model:
    options = wav2vec2.options_of(wav2vec2.BASE, {})
    return wav2vec2.SpeechEncoder("hubert", wav2vec2.BASE, options)


def nano(side: str) -> Callable[[], Model]:
    # Its window is computed from a config, not read, so that it cannot lie on the meta device.
    return lambda: getattr(streamenc.load("nano", backend="torch"), side)


# Launches of one hop of published models, at 8 codebooks where there are any. Upper bounds: whoever
# takes launches away writes the new number here.
MOST = {
    "mimi encoder": (mimi_encoder, 76),
    "mimi decoder": (mimi_decoder, 77),
    "encodec encoder": (encodec_encoder, 49),
    "encodec decoder": (encodec_decoder, 49),
    "nano encoder": (nano("encoder"), 40),
    "nano decoder": (nano("decoder"), 59),
    "hubert": (hubert, 299),
}


def one_hop(make: Callable[[], Model], lanes: int) -> Launches:
    """Step, commit and quantiser of a published model in mid-stream."""
    with torch.device("meta"):
        model = make()
    gpu = FakeGpu()
    placed, spec = gpu.module(model), model.spec

    def inputs(items: int) -> torch.Tensor:
        """As `before` gives them; a decoder has looked its codes up."""
        channels = spec.input.channels
        if isinstance(placed, MimiDecoder):
            channels = placed.project.weight.shape[1]
        elif spec.input.kind == "codes":
            channels = placed.quantizer.codebooks.shape[2]
        return gpu.empty(torch.empty(1, channels, items, device="meta"), lanes)

    lead, hop = inputs(spec.lead), inputs(spec.hop)
    (_, state), _ = gpu.trace(lambda: placed.step(lead, None), strict=False)
    y, launches = gpu.step(placed, hop, state)
    if spec.output.kind == "codes":
        launches += gpu.trace(lambda: placed.after(y, 8))[1]
    return launches


@needs_triton
@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("lanes", [pytest.param(1, marks=pytest.mark.slow), 64])
def test_published_models_launch_no_more_than_they_have(name, lanes):
    make, most = MOST[name]
    launches = one_hop(make, lanes)
    print(name, lanes, launches)
    assert launches.total() <= most, launches


HOST = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: 1 if x.any() else 0,
    "numpy": lambda x: x.cpu(),
    "list": lambda x: x.flatten().tolist(),
    "mask": lambda x: x[x > 0],
    "masked store": lambda x: x.__setitem__(x > 0, torch.zeros_like(x[0])),
    "where": lambda x: torch.where(x > 0),
    "repeats": lambda x: x.repeat_interleave(x[:, 0].long(), dim=0),
    "equal": lambda x: torch.equal(x, x),
    "new tensor": lambda x: x + torch.tensor([1.0, 2.0], device=x.device),
    "one number": lambda x: x + torch.tensor(1.0, device=x.device),
    "index by a list": lambda x: x[[0, 1]],
    "host tensor": lambda x: torch.arange(3),
    "from the host": lambda x: x.new_empty(2).copy_(torch.zeros(2)),
}


@pytest.mark.parametrize("kind", HOST)
def test_the_tracer_finds_what_waits_for_the_host(kind):
    gpu = FakeGpu()
    x = gpu.empty(torch.zeros(2, 2))
    with pytest.raises(HostMetError):
        gpu.trace(lambda: HOST[kind](x))


def test_the_tracer_counts_launches_and_no_views():
    gpu = FakeGpu()
    shapes = ((2, 3, 4), (5, 3, 2), (5,), (7, 5))
    x, weight, bias, product = (gpu.empty(torch.zeros(*shape)) for shape in shapes)

    def call() -> torch.Tensor:
        y = torch.nn.functional.conv1d(x, weight, bias)
        y = torch.nn.functional.linear(y.transpose(1, 2).contiguous(), product)
        y[:, 0] = 1.0
        return y.unfold(1, 2, 1) * 2.0

    y, launches = gpu.trace(call)
    assert y.shape == (2, 2, 7, 2) and y.is_cuda
    wanted = ("convolution", "bias of a convolution", "clone", "mm", "fill_", "mul")
    assert dict(launches) == dict.fromkeys(wanted, 1)


@needs_triton
def test_the_tracer_counts_what_triton_launches():
    from streamenc_kernels import plan_ring, ring_attention

    gpu = FakeGpu()
    q, k, v = (gpu.empty(torch.zeros(2, 4, 2, 64)) for _ in range(3))
    keys, values = (gpu.empty(torch.zeros(2, 4, 251, 64)) for _ in range(2))
    position = gpu.empty(torch.zeros(2, dtype=torch.int64))
    plan, _ = gpu.trace(lambda: plan_ring(position, 2, keys, 250, 1e4))
    y, launches = gpu.trace(lambda: ring_attention(q, k, v, keys, values, plan))
    assert y.shape == q.shape and dict(launches) == {"ring_attention_kernel": 1}


def test_without_a_fake_gpu_nothing_of_it_is_left():
    """What stands in for torch's and Triton's own is put back."""
    gpu = FakeGpu()
    gpu.trace(lambda: None)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")
    assert torch.nn.LSTM(2, 2)(torch.zeros(1, 1, 2))[0].shape == (1, 1, 2)
