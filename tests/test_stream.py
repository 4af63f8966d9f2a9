"""Stream: what may be pushed, what is counted, and what the caller may do with its own memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamenc import state as states
from streamenc import stream as stream_module
from streamenc.errors import InputError, SnapshotError
from streamenc.models import model as model_module
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import zoo

HOP = 24


@pytest.fixture
def model() -> Model:
    return zoo.model("mimi", "encoder", torch.float32)


def audio(samples: int) -> torch.Tensor:
    return 0.3 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(1))


def encode(model: Model, *chunks: object) -> torch.Tensor:
    stream = Stream(model)
    return torch.cat([*(stream.push(chunk) for chunk in chunks), stream.flush()], dim=-1)


def test_a_callers_buffer_may_be_filled_anew(model):
    """As sound cards do: every chunk arrives in the same memory."""
    x = audio(10 * HOP)
    for kind in ("numpy", "torch"):
        buffer = torch.empty(1, 1, 10)
        memory = buffer.numpy() if kind == "numpy" else buffer
        stream, parts = Stream(model), []
        for part in x.split(10, dim=-1):
            buffer[:] = part
            parts.append(stream.push(memory))
        buffer.fill_(99)
        assert torch.equal(torch.cat([*parts, stream.flush()], dim=-1), encode(model, x)), kind


@pytest.mark.parametrize("form", ["plain", "frozen", "reversed"])
def test_an_array_is_copied_once(model, form, monkeypatch):
    copies, as_signal = [], model_module.as_signal

    def watched(chunk):
        copies.append(as_signal(chunk))
        return copies[-1]

    monkeypatch.setattr(model_module, "as_signal", watched)
    x = np.zeros((1, 1, 10), np.float32)
    if form == "frozen":
        x.flags.writeable = False
    elif form == "reversed":
        x = x[..., ::-1]
    stream = Stream(model)
    stream.push(x)
    (kept,) = stream._waiting
    assert [copy.data_ptr() for copy in copies] == [kept.data_ptr()]
    assert not np.shares_memory(kept.numpy(), x) and kept.is_contiguous()


def test_every_form_of_the_same_samples(model):
    x, expected = audio(5 * HOP + 7), encode(model, audio(5 * HOP + 7))
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    forms = [
        x[0],
        x[0, 0],
        x.numpy(),
        x[0, 0].numpy(),
        x[0, 0].tolist(),
        frozen,
        x.numpy()[..., ::-1].copy()[..., ::-1],
        np.frombuffer(x.numpy().tobytes(), dtype=np.float32),
        x.double(),
        x.numpy().astype(np.float64),
    ]
    for form in forms:
        assert torch.equal(encode(model, form), expected)


def test_every_form_of_the_same_codes():
    model = zoo.model("mimi", "decoder", torch.float32)
    codes = zoo.signal(model, 5)
    expected = encode(model, codes)
    for kind in (np.uint16, np.int32, np.uint8, np.int64):
        assert torch.equal(encode(model, codes.numpy().astype(kind)), expected)
    assert torch.equal(encode(model, codes[0].tolist()), expected)


def test_counts(model):
    stream = Stream(model, hops=2)
    assert (stream.pushed, stream.pending, stream.emitted) == (0, 0, 0)
    for samples, pending, emitted in ((10, 10, 0), (14, 0, 1), (47, 47, 1), (2, 1, 3), (0, 1, 3)):
        stream.push(torch.zeros(1, 1, samples))
        assert (stream.pending, stream.emitted) == (pending, emitted)
    assert stream.pushed == 73
    assert stream.flush().shape == (1, 6, 1)
    assert (stream.pushed, stream.pending, stream.emitted) == (0, 0, 0)


def test_empty_outputs_have_their_final_form(model):
    for dtype, side in ((torch.float32, "encoder"), (torch.float64, "decoder")):
        stream = Stream(zoo.model("mimi", side, dtype), batch=2)
        nothing = stream.flush()
        something = stream.push(zoo.signal(stream.model, HOP, batch=2))
        assert nothing.shape[:2] == something.shape[:2] and nothing.dtype == something.dtype
    stream = Stream(model, codebooks=2)
    assert stream.push(torch.zeros(3)).shape == (1, 2, 0)


def test_leaving_the_context_ends_the_stream(model):
    with Stream(model) as stream:
        stream.push(audio(100))
    assert stream.pushed == 0 and stream.state is None


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"hops": 0}, {"batch": -1}])
def test_impossible_sizes(model, sizes):
    with pytest.raises(InputError):
        Stream(model, **sizes)


def test_messages_say_what_came_and_what_to_do(model):
    stream = Stream(model)
    bad = audio(50)
    bad[..., 7] = float("inf")
    for chunk, message in (
        (torch.zeros(2, 3, 9), r"\(2, 3, 9\).*1 channel.*24000 Hz"),
        (np.zeros(9, np.int16), "int16.*divide 16-bit samples by 32768"),
        (bad, "1 of 50 samples are not finite, the first at 7"),
        (1000 * audio(50), r"samples up to [\d.]+; wanted floats in \[-1, 1\].*16 bits by 32768"),
        (torch.full((1, 9), 1e30), "samples up to 1e\\+30"),
        (torch.zeros(2, 1, 9), "batch of 2.*batch=1"),
        (object(), "got a object; wanted a tensor"),
        ([[0.0], [0.0, 1.0]], "got a list"),
    ):
        with pytest.raises(InputError, match=message):
            stream.push(chunk)


def test_arrays_of_all_byte_orders_and_strides(model):
    x = audio(100)[0, 0].double().numpy()
    expected = Stream(model).push(x)
    backwards = x[::-1].copy()[::-1]
    for array in (x.astype(">f8"), backwards, np.repeat(x, 2)[::2], list(x)):
        assert torch.equal(Stream(model).push(array), expected)


@pytest.mark.parametrize(
    "name",
    ["nano", "mimi", "encodec", "mel", "whisper-chunked", "whisper-window", "wav2vec2",
     "wav2vec2-stable", "wav2vec2-sliding"],
)  # fmt: skip
def test_a_stream_comes_back_from_the_largest_sample(name):
    """Running statistics forget it, and no memory of a model holds on to it."""
    model = zoo.model(name, "encoder")
    spec = model.spec
    hops = min(400, 40_000 // spec.hop)
    clean = zoo.signal(model, spec.lead + hops * spec.hop, seed=4)
    struck = clean.clone()
    struck[..., 10] = stream_module.MAX_SAMPLE
    outputs = [Stream(model, hops=hops).push(x) for x in (clean, struck)]
    assert torch.isfinite(outputs[1]).all()
    outputs = [y[..., -3:] for y in outputs]
    if spec.output.kind == "codes":
        assert torch.equal(*outputs)
    else:
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hops", 0), ("hops", True), ("pushed", -1), ("codebooks", 99), ("codebooks", "2")],
)
def test_a_snapshot_with_impossible_counters_is_refused(model, key, value):
    """Well formed, but not made by a stream: it must neither be believed nor hang."""
    stream = Stream(model)
    stream.push(audio(100))
    state, header = states.from_bytes(stream.snapshot())
    with pytest.raises((SnapshotError, InputError)):
        stream.restore(states.to_bytes(state, {**header, key: value}))
    after, same = states.from_bytes(stream.snapshot())
    assert same == header
    for old, new in zip(states.leaves(state), states.leaves(after), strict=True):
        assert torch.equal(old, new)


def test_a_snapshot_does_not_share_the_streams_memory(model):
    x, stream = audio(40 * HOP), Stream(model)
    stream.push(x[..., :200])
    blob = stream.snapshot()
    first = stream.push(x[..., 200:])
    stream.restore(blob)
    assert torch.equal(stream.push(x[..., 200:]), first)
    stream.restore(blob)
    assert torch.equal(stream.push(x[..., 200:]), first)
