"""wav2vec 2.0, HuBERT and WavLM against transformers' own modules, given the chunks' masks."""

from __future__ import annotations

import os
import wave
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import streamenc
from streamenc.errors import UsageError
from streamenc.layers.attention.chunked import chunk_mask
from streamenc.layers.positions import PositionalConv
from streamenc.models.model import Model
from streamenc.models.wav2vec2 import encoder
from streamenc.stream import Stream
from tests.support import references, zoo
from tests.support.compare import assert_close, poisoned_memory
from tests.support.speech import (
    VARIANTS,
    load,
    masked_layer,
    saved,
    signal,
    streamed,
    z_normalised,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

variants = pytest.mark.parametrize("variant", VARIANTS)
families = pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
CHUNK, LEFT = 4, 3


def running(x: Tensor, first: int, block: int, memory: float, eps: float) -> Tensor:
    """Running statistics, written down as weights on all that came before."""
    edges = [0, *range(first, x.shape[-1], block), x.shape[-1]]
    y, seen = [], 0.0
    weights = x.new_zeros(0)
    for start, stop in zip(edges, edges[1:], strict=False):
        seen = min(seen + stop - start, memory)
        share = min(1.0, (stop - start) / seen)
        new = torch.full((stop - start,), share / (stop - start), dtype=x.dtype)
        weights = torch.cat((weights * (1 - share), new))
        mean = (x[..., :stop] * weights).sum(-1, keepdim=True)
        variance = ((x[..., :stop] - mean).square() * weights).sum(-1, keepdim=True)
        y.append((x[..., start:stop] - mean) / (variance + eps).sqrt())
    return torch.cat(y, dim=-1)


@torch.no_grad()
def chunked_reference(
    reference: Any, x: Tensor, memory: int, ahead: int = 0, wait: bool = False
) -> list[Tensor]:
    """All hidden states by transformers' modules, in one go over the whole signal."""
    config = reference.config
    positions = (config.num_conv_pos_embeddings - 1) // 2 if wait else 0
    frames = CHUNK * (1 + ahead) + positions
    first = (frames - 1) * 20 + 30
    x = running(x, first, CHUNK * 20, memory, 1e-7)
    h = x
    for index, conv in enumerate(reference.feature_extractor.conv_layers):
        if config.feat_extract_norm == "layer" or index:
            h = conv(h)
            continue
        norm = conv.layer_norm
        h = conv.conv(h)
        h = running(h, (first - 10) // 5 + 1, CHUNK * 4, memory // 5, norm.eps)
        h = conv.activation(h * norm.weight[:, None] + norm.bias[:, None])
    h = reference.feature_projection(h.transpose(1, 2))
    h = h[0] if isinstance(h, tuple) else h
    encoder = reference.encoder
    if wait:
        h = h + encoder.pos_conv_embed(h)
    else:
        # The embedding of everything up to a chunk's end, of which the chunk is kept.
        parts = []
        for start in range(0, h.shape[1], CHUNK):
            parts.append(encoder.pos_conv_embed(h[:, : start + CHUNK])[:, start:])
        h = h + torch.cat(parts, dim=1)
    if not config.do_stable_layer_norm:
        h = encoder.layer_norm(h)
    hidden, bias = [h], None
    for index, layer in enumerate(encoder.layers):
        visible = chunk_mask(h.shape[1], CHUNK, LEFT, ahead=index < ahead)
        mask = torch.zeros(h.shape[1], h.shape[1], dtype=h.dtype).masked_fill(
            ~visible, float("-inf")
        )
        h, bias = masked_layer(layer, h, mask, bias)
        hidden.append(h)
    if config.do_stable_layer_norm:
        hidden[-1] = encoder.layer_norm(h)
    return [h.transpose(1, 2) for h in hidden]


@families
@variants
@pytest.mark.parametrize(("ahead", "wait"), [(0, False), (2, False), (0, True), (1, True)])
def test_chunked_is_transformers_under_the_mask(tmp_path, family, variant, ahead, wait):
    reference = saved(tmp_path, family, **VARIANTS[variant])
    x = signal(30 + 20 * 61 + 7, batch=2)
    hidden = chunked_reference(reference, x, 800, ahead, wait)
    options = {
        "chunk_ms": 5,
        "left": LEFT,
        "ahead": ahead,
        "positions": "wait" if wait else "cut",
        "norm_seconds": 0.05,
    }
    everything = streamed(load(tmp_path, layers="all", **options), x)
    assert_close(everything, torch.cat(hidden, dim=1), 1e-10)
    assert_close(streamed(load(tmp_path, **options), x), hidden[-1], 1e-10)
    if not ahead:
        assert_close(streamed(load(tmp_path, layer=1, **options), x), hidden[1], 1e-10)
        some = load(tmp_path, layers="2,0", mean="true", **options)
        assert_close(streamed(some, x), (hidden[0] + hidden[2]) / 2, 1e-10)


@families
@variants
def test_one_chunk_without_edges_is_the_published_model(tmp_path, family, variant):
    """A stream within one chunk sees what the published model sees: all of it."""
    reference = saved(tmp_path, family, **VARIANTS[variant])
    x = signal(30 + 20 * 45 + 3)
    model = load(tmp_path, chunk_ms=100, layers="all")
    with torch.no_grad():
        given = reference(z_normalised(x)[:, 0], output_hidden_states=True)
    # The last hidden state comes with the norm that the stable models end in.
    expected = [*given.hidden_states[:-1], given.last_hidden_state]
    y = streamed(model, x)
    # The ragged tail is in the statistics of both, but in no frame.
    assert_close(y, torch.cat([h.transpose(1, 2) for h in expected], dim=1), 1e-10)


@families
def test_the_layer_norm_stem_is_exact(tmp_path, family):
    reference = saved(tmp_path, family, **references.STABLE)
    model = load(tmp_path, chunk_ms=5, normalize=False)
    stem = copy_of_stem(model)
    x = signal(30 + 20 * 100 + 11)
    with torch.no_grad():
        expected = reference.feature_extractor(x[:, 0])
    state, outputs, start = None, [], 0
    for size in [model.spec.lead, *[model.spec.hop] * 20]:
        y, state = stem.step(x[..., start : start + size], state)
        outputs.append(y)
        start += size
    outputs.append(stem.step(x[..., start:], state, end=True)[0])
    assert_close(torch.cat(outputs, dim=-1), expected, 1e-12)


def copy_of_stem(model: Model) -> Any:
    layers = list(model.chain.layers)
    last = next(i for i, layer in enumerate(layers) if isinstance(layer, encoder.Projection))
    return encoder.Chain(layers[:last])


@families
@variants
@pytest.mark.parametrize("ahead_ms", [0, 5])
@pytest.mark.parametrize("normalize", [True, False])
def test_sliding_is_transformers_on_these_windows(tmp_path, family, variant, ahead_ms, normalize):
    reference = saved(tmp_path, family, **VARIANTS[variant])
    window, hop, ahead = 24, 4, ahead_ms * 4 // 5
    x = signal(2100)
    starts = range(0, x.shape[-1] - (window * 20 + 10) + 1, hop * 20)
    windows = [x[..., start : start + window * 20 + 10] for start in starts]
    last = x[..., starts[-1] + hop * 20 :]
    expected = []
    for index, part in enumerate([*windows, last]):
        part = z_normalised(part) if normalize else part
        with torch.no_grad():
            h = reference(part[:, 0], output_hidden_states=True).hidden_states[2].transpose(1, 2)
        new = h[..., window - hop - ahead if index else 0 :]
        expected.append(new if part.shape == last.shape else new[..., : new.shape[-1] - ahead])
    model = load(
        tmp_path,
        mode="sliding",
        window_ms=30,
        hop_ms=5,
        ahead_ms=ahead_ms,
        layer=2,
        normalize=normalize,
    )
    y = streamed(model, x)
    assert_close(y, torch.cat(expected, dim=-1), 1e-10)
    assert y.shape[-1] == (2100 - 30) // 20 + 1


def test_frozen_statistics_are_those_of_the_clip(tmp_path):
    reference = saved(tmp_path, "hubert")
    clip = signal(170_000, seed=3)  # several steps of the calibration
    model = load(tmp_path, chunk_ms=5, norm="frozen", calibration=clip[0, 0].numpy())
    size = model.spec.lead + (170_000 - model.spec.lead) // model.spec.hop * model.spec.hop
    clip = clip[..., :size].float().double()
    waveform, conv = model.norms()
    assert_close(waveform.mean[0], clip.mean(-1)[0], 1e-5)
    assert_close(waveform.variance[0], clip.var(-1, correction=0)[0], 1e-5)
    with torch.no_grad():
        h = reference.feature_extractor.conv_layers[0].conv(z_normalised(clip))
    assert_close(conv.mean[:, 0], h.mean(-1)[0], 1e-5)
    assert_close(conv.variance[:, 0], h.var(-1, correction=0)[0], 1e-5)
    other = load(tmp_path, chunk_ms=5, norm="frozen", calibration=clip[0, 0, 1000:].numpy())
    assert model.fingerprint() != other.fingerprint() != load(tmp_path, chunk_ms=5).fingerprint()


def test_frozen_statistics_make_frames_independent_of_the_past(tmp_path):
    """Nothing remembers more than the attention's context: later frames forget the start."""
    saved(tmp_path, "hubert")
    model = load(tmp_path, chunk_ms=5, left=1, norm="frozen", calibration=zoo.CLIP)
    x, other = signal(4000), signal(4000)
    other[..., :1000] = 0.3
    assert_close(streamed(model, x)[..., 100:], streamed(model, other)[..., 100:], 1e-12)


@pytest.mark.parametrize(("samples", "bits"), [(8000, 16), (8000, 32), (100, 16)])
def test_calibration_from_a_wav_file(tmp_path, samples, bits):
    saved(tmp_path / "model", "hubert")
    clip = np.sin(np.arange(samples) / 7) * 0.5
    path = tmp_path / "clip.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(bits // 8)
        file.setframerate(16_000)
        file.writeframes((clip * 2 ** (bits - 1)).astype(f"<i{bits // 8}").tobytes())
    options = {"chunk_ms": 5, "norm": "frozen"}
    if samples < 1600:
        with pytest.raises(UsageError, match=r"0\.1 s or more"):
            load(tmp_path / "model", calibration=path, **options)
        return
    from_file = load(tmp_path / "model", calibration=str(path), **options)
    from_array = load(tmp_path / "model", calibration=clip, **options)
    for ours, theirs in zip(from_file.norms(), from_array.norms(), strict=True):
        assert_close(ours.mean, theirs.mean, 1e-3)
        assert_close(ours.variance, theirs.variance, 1e-3)


def test_a_bad_calibration_file_is_named(tmp_path):
    saved(tmp_path / "model", "hubert")
    path = tmp_path / "clip.wav"
    for content in (b"", b"RIFF1234WAVE", b"\x80\x04\x95" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"clip\.wav.*16000 Hz and 16 bits"):
            load(tmp_path / "model", norm="frozen", calibration=path)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 44_100, 0, "NONE", ""))
        file.writeframes(bytes(2000))
    with pytest.raises(UsageError, match="44100 Hz"):
        load(tmp_path / "model", norm="frozen", calibration=path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="it is no file"):
        load(tmp_path / "model", norm="frozen", calibration=path)


# Layouts


# What is refused


# Units


# What the specs promise


@pytest.mark.parametrize("options", [{}, {"ahead": 2}, {"positions": "wait"}])
def test_what_is_promised_waits_no_longer(tmp_path, options):
    """The last frame of a chunk comes out with its last sample and the delay, and not later."""
    saved(tmp_path, "hubert")
    model = load(tmp_path, chunk_ms=5, **options)
    stream, x = Stream(model), signal(4000)
    pushed = 0
    for part in x.split(1, dim=-1):
        stream.push(part)
        pushed += 1
        assert pushed - stream.emitted * 20 < model.spec.hop + model.spec.delay


# Layers


@pytest.mark.parametrize("kernel", [5, 10, 16])
@pytest.mark.parametrize("frames", [3, 70])
def test_positions_as_a_product_and_as_a_convolution(kernel, frames):
    layer = PositionalConv(12, kernel, 3, None).double().requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 12, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    padded = F.pad(x, (kernel // 2, (kernel - 1) // 2))
    expected = x + F.gelu(F.conv1d(padded, layer.weight, layer.bias, groups=3))
    assert_close(layer(x), expected, 1e-12)
    layer.prepare()
    assert_close(layer(x), expected, 1e-12)


@pytest.mark.parametrize("options", [{}, {"ahead": 1, "layers": "1,3"}, {"mode": "sliding"}])
def test_many_streams_in_one_step_equal_solo_streams(tmp_path, options):
    """They join at different times, idle, and one leaves."""
    from streamenc.engine.lanes import Lanes

    saved(tmp_path, "hubert")
    lengths = {"window_ms": 30, "hop_ms": 5} if "mode" in options else {"chunk_ms": 5}
    model = streamenc.load(tmp_path, part="encoder", **options, **lengths).encoder
    spec = model.spec
    signals = [signal(spec.lead + (30 + n) * spec.hop, seed=n).float() for n in range(4)]
    lanes, streams = Lanes(model, 4), [Stream(model) for _ in signals]
    outputs: list[list[Tensor]] = [[] for _ in signals]
    for tick in range(30):
        for n, stream in enumerate(streams):
            if tick == 3 * n:
                outputs[n].append(stream.push(signals[n][..., : spec.lead]))
                lanes.join(stream)
        ready = {}
        for n, stream in enumerate(streams):
            if stream in lanes and (tick + n) % 4:
                start = stream.pushed
                stream.take(signals[n][..., start : start + spec.hop])
                ready[stream] = None
        for stream, y in lanes.step(ready).items() if ready else ():
            outputs[streams.index(stream)].append(y)
        if tick == 20:
            lanes.leave(streams[1])
    for stream in streams:
        if stream in lanes:
            lanes.leave(stream)
    for n, stream in enumerate(streams):
        y = [*outputs[n], stream.push(signals[n][..., stream.pushed :]), stream.flush()]
        assert_close(torch.cat(y, dim=-1), streamed(model, signals[n]), 1e-5)
