"""Whisper's encoder against transformers': whole windows, chunks under their mask, all layouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc import registry
from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.engine.lanes import Lanes
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.io.reading import read_file
from streamenc.models.mel import PRESETS, filterbank
from streamenc.models.whisper import whisper
from streamenc.pipeline.builder import Pipeline
from streamenc.stream import Stream
from tests.support import references, zoo
from tests.support.compare import assert_close
from tests.support.media import write_wav

transformers = pytest.importorskip("transformers")

HOP = 320  # samples of a state
WINDOW = 40  # states
CHUNK = 10
SMALL = {"chunk_ms": 200, "ahead_ms": 0}
WINDOWS = {"mode": "window", "hop_ms": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    zoo.save_whisper(folder)
    return folder


@pytest.fixture(scope="module")
def reference() -> Any:
    return references.whisper().model.encoder.double()


def noise(samples: int, seed: int = 0) -> Tensor:
    """(1, 1, samples) whose loudness changes, so that windows have floors of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 1, samples, generator=generator, dtype=torch.float64)
    swell = torch.sin(torch.arange(samples, dtype=torch.float64) / 9000)
    return 0.3 * x * 10 ** (3 * swell - 3)


def log_mel(x: Tensor, bands: int = 20) -> Tensor:
    """log10 of the frames of (1, 1, samples), as the published feature extractor computes them."""
    window = torch.hann_window(400, dtype=torch.float64)
    spectrum = torch.stft(x[0], 400, 160, window=window, return_complex=True)[..., :-1].abs() ** 2
    filters = filterbank(replace(PRESETS["whisper"], bands=bands))
    return (filters @ spectrum).clamp_min(1e-10).log10()


def published(reference: Any, x: Tensor) -> Tensor:
    """transformers' encoder over (1, 1, up to a window of samples), padded with zeros."""
    frames = log_mel(F.pad(x, (0, WINDOW * HOP - x.shape[-1])))
    frames = (torch.maximum(frames, frames.amax() - 8) + 4) / 4
    with torch.inference_mode():
        return reference(frames).last_hidden_state.transpose(1, 2)


def test_the_mel_is_the_published_feature_extractors():
    """In float64, so that the oracle above may stand for it."""
    x = noise(16_000)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    theirs = extractor(x[0, 0].float().numpy(), sampling_rate=16_000, return_tensors="pt")
    frames = log_mel(x, 80)
    ours = (torch.maximum(frames, frames.amax() - 8) + 4) / 4
    assert_close(ours.float(), theirs.input_features, 1e-4)


@pytest.mark.parametrize("bands", [80, 128])
def test_windows_with_the_published_feature_extractor(bands, tmp_path):
    """From the waveform to the states with nothing of ours in the oracle; float32."""
    model = references.whisper(num_mel_bins=bands, max_source_positions=100)
    model.save_pretrained(tmp_path)
    codec = streamenc.load(tmp_path, mode="window", hop_ms=500, emit="window")
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=2)
    x = noise(35_000).float()
    ours = codec.encode(x).split(100, dim=-1)
    ends = [8000, 16_000, 24_000, 32_000, 35_000]
    assert len(ours) == len(ends)
    for states, end in zip(ours, ends, strict=True):
        start = max(0, -(-end // 8000) * 8000 - 32_000)
        sound = x[0, 0, start:end].numpy()
        features = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            theirs = model.model.encoder(features).last_hidden_state.transpose(1, 2)
        assert_close(states, theirs, 1e-4)


@pytest.mark.parametrize("samples", [1, 159, 3200, 9999, 12_800, 12_801, 16_000, 30_123])
def test_each_window_is_the_published_encoder(folder, reference, samples):
    """While it grows, once it is full, and long after; at a hop's end and at the stream's."""
    x, hop = noise(samples, seed=samples), CHUNK * HOP
    codec = streamenc.load(folder, mode="window", hop_ms=200, emit="window", dtype=torch.float64)
    ours = codec.encode(x).split(WINDOW, dim=-1)
    ends = [*range(hop, samples, hop), samples]
    assert len(ours) == len(ends)
    for states, end in zip(ours, ends, strict=True):
        # A tail is a hop that is not full.
        start = max(0, -(-end // hop) * hop - WINDOW * HOP)
        assert_close(states, published(reference, x[..., start:end]), 1e-10)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("samples", [100, 3000, 3200, 7000, 12_799, 12_800, 31_111, 32_000])
def test_a_hop_is_cut_from_its_window(folder, samples, lookahead):
    options = {"mode": "window", "hop_ms": 200, "dtype": torch.float64}
    x = noise(samples)
    whole = streamenc.load(folder, emit="window", **options).encode(x).split(WINDOW, dim=-1)
    ours = streamenc.load(folder, ahead_ms=lookahead * 200, **options).encode(x)
    total = -(-(samples // 160) // 2)
    expected = []
    for index, window in enumerate(whole):
        # States before this window, of which the newest hop is hop number `index`.
        before = max(0, (index + 1) * CHUNK - WINDOW)
        start, stop = (index - lookahead) * CHUNK, (index - lookahead + 1) * CHUNK
        if index == len(whole) - 1:
            start, stop = max(0, start), total
            if not samples % (CHUNK * HOP):
                stop = total
        if stop > max(start, 0):
            expected.append(window[..., max(start, 0) - before : stop - before])
    assert_close(ours, torch.cat(expected, dim=-1) if expected else ours[..., :0], 1e-12)
    assert ours.shape[-1] == total


def test_window_keeps_its_mel_frames(folder, monkeypatch):
    """A hop computes its own frames, and a few at the edges: no more for a longer window."""
    codec = streamenc.load(folder, mode="window", hop_ms=200)
    computed = []
    step = codec.encoder.mel.step

    def counted(x, state, *, end=False):
        y, after = step(x, state, end=end)
        computed.append(y.shape[-1])
        return y, after

    monkeypatch.setattr(codec.encoder.mel, "step", counted)
    with codec.stream() as stream:
        for _ in range(9):
            computed.clear()
            stream.push(noise(CHUNK * HOP).float())
            assert sum(computed) <= 2 * CHUNK + 2 + 1 + 4


def masked(reference: Any, x: Tensor, chunk: int, left: int, lookahead: int) -> list[Tensor]:
    """All layers of transformers' encoder over a whole stream, under the mask of the chunks.

    What a chunk sees ahead of it are copies, which attend as the chunk does and are seen by it
    alone. Positions and floors are those that are documented, and zeros follow the end.
    """
    group = 2 * chunk
    states = -(-(x.shape[-1] // 160) // 2)
    frames = log_mel(F.pad(x, (0, (chunk + lookahead) * HOP)))
    count = frames.shape[-1]
    first = 2 * (chunk + lookahead) + 1
    of = torch.tensor([0 if f < first else (f - first) // group + 1 for f in range(count)])
    loudest = torch.stack([frames[..., of == c].amax() for c in range(int(of.max()) + 1)])
    kept = -(-WINDOW // chunk)
    recent = [loudest[max(0, c - kept + 1) : c + 1].amax() for c in range(len(loudest))]
    frames = (torch.maximum(frames, torch.stack(recent)[of] - 8) + 4) / 4
    h = F.gelu(reference.conv1(frames))
    h = F.gelu(reference.conv2(h)).transpose(1, 2)
    h = h + reference.embed_positions.weight[torch.arange(h.shape[1]) % WINDOW]

    index, owner, own = [], [], []
    for c in range(-(-states // chunk)):
        seen = range(c * chunk, (c + 1) * chunk + lookahead)
        index += seen
        owner += [c] * len(seen)
        own += [i < (c + 1) * chunk for i in seen]
    index, owner, own = torch.tensor(index), torch.tensor(owner), torch.tensor(own)
    same = owner[:, None] == owner
    before = own & (index < owner[:, None] * chunk) & (index >= owner[:, None] * chunk - left)
    bias = torch.zeros(same.shape, dtype=torch.float64).masked_fill(~(same | before), -torch.inf)
    layers = [h[:, index]]
    for layer in reference.layers:
        layers.append(layer(layers[-1], bias[None, None]))
    layers[-1] = reference.layer_norm(layers[-1])
    return [layer[:, own][:, :states].transpose(1, 2) for layer in layers]


@pytest.mark.parametrize(
    ("chunk", "left", "lookahead"),
    [(10, 2, 0), (10, 2, 5), (10, 1, 15), (5, 8, 5), (7, 0, 3), (7, 1, 0), (40, 1, 0), (3, 3, 9)],
)
@pytest.mark.parametrize("samples", [500, 4000, 12_800, 41_234])
def test_chunks_are_the_published_layers_under_their_mask(
    folder, reference, chunk, left, lookahead, samples
):
    x = noise(samples, seed=samples)
    with torch.inference_mode():
        theirs = masked(reference, x, chunk, left * chunk, lookahead)
    options: dict[str, Any] = {
        "chunk_ms": chunk * 20,
        "left": left,
        "ahead_ms": lookahead * 20,
        "dtype": torch.float64,
    }
    wanted = {None: [3], 0: [0], "1": [1], "0,2,-1": [0, 2, 3], "all": range(4)}
    for layers, numbers in wanted.items():
        stream = streamenc.load(folder, layers=layers, **options).stream()
        pieces = [*(stream.push(part) for part in x.split(777, dim=-1)), stream.flush()]
        expected = torch.cat([theirs[n] for n in numbers], dim=1)
        assert_close(torch.cat(pieces, dim=-1), expected, 1e-10)


def test_floor_of_quiet_sound_after_loud(folder):
    """The loudest bin of the last 30 s sets the floor, and no longer than that."""
    codec = streamenc.load(folder, dtype=torch.float64, **SMALL)
    quiet = 1e-4 * noise(10 * WINDOW * HOP, seed=1)
    loud = torch.cat((30 * noise(CHUNK * HOP), quiet), dim=-1)
    with codec.stream() as stream:
        stream.push(loud)
        kept = stream.state[1]
    with codec.stream() as stream:
        stream.push(torch.cat((quiet[..., : CHUNK * HOP], quiet), dim=-1))
        assert torch.equal(kept, stream.state[1])


def openai_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' layout under OpenAI's names."""
    names = {
        "embed_positions.weight": "positional_embedding",
        "layer_norm.": "ln_post.",
        "layers.": "blocks.",
        "self_attn_ln_post.": "attn_ln.",
        "self_attn.q_proj": "attn.query",
        "self_attn.k_proj": "attn.key",
        "self_attn.v_proj": "attn.value",
        "self_attn.out_proj": "attn.out",
        "final_ln_post.": "mlp_ln.",
        "fc1": "mlp.0",
        "fc2": "mlp.2",
    }
    out = {}
    for name, tensor in state.items():
        if name.startswith("model.encoder."):
            name = name.removeprefix("model.")
            for theirs, original in names.items():
                name = name.replace(theirs, original)
            out[name] = tensor
    return out


@pytest.mark.parametrize("bands", [80, 128])
def test_all_layouts_give_the_same(tmp_path, bands):
    """transformers' whole folder, its encoder alone, and OpenAI's pickles with and without dims."""
    model = references.whisper(
        num_mel_bins=bands, d_model=128, encoder_attention_heads=2, encoder_layers=2
    ).half()
    model.save_pretrained(tmp_path / "whole")
    model.model.encoder.save_pretrained(tmp_path / "encoder")
    original = openai_state(model.state_dict())
    original["decoder.token_embedding.weight"] = torch.zeros(3, 128).half()
    torch.save({"dims": {"n_mels": bands}, "model_state_dict": original}, tmp_path / "tiny.pt")
    save_file({k: v.contiguous() for k, v in original.items()}, tmp_path / "tiny.safetensors")
    options = {**SMALL, "left": 2}
    x = noise(9000).float()
    expected = streamenc.load(tmp_path / "whole", **options).encode(x)
    for name in ("encoder", "tiny.pt", "tiny.safetensors"):
        assert torch.equal(streamenc.load(tmp_path / name, **options).encode(x), expected), name


def test_the_decoder_is_not_read(folder, monkeypatch):
    read: list[str] = []
    get = Checkpoint.get

    def noted(checkpoint, name, *shape):
        read.append(name)
        return get(checkpoint, name, *shape)

    monkeypatch.setattr(Checkpoint, "get", noted)
    codec = streamenc.load(folder, layer=2, **SMALL)
    assert read and all(name.startswith("model.encoder.") for name in read)
    # Nor are the layers behind the one whose output is given.
    assert not [name for name in read if "layers.2" in name or "layer_norm.weight" in name[:26]]
    assert not codec.has_decoder
    with pytest.raises(UsageError, match="writes text"):
        streamenc.load(folder, part="decoder")


def test_half_precision_hears_in_float32(folder):
    for options in (SMALL, WINDOWS):
        exact = streamenc.load(folder, **options)
        half = streamenc.load(folder, dtype=torch.bfloat16, **options)
        x = noise(9000).float()
        assert half.encoder.net.conv1.weight.dtype == torch.bfloat16
        ours, theirs = half.encode(x), exact.encode(x)
        assert ours.dtype == torch.float32
        similarity = torch.cosine_similarity(ours, theirs, dim=1)
        assert similarity.mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "offline"}, "chunked, window"),
        ({"chunk_ms": 50}, "multiple of 20"),
        ({"chunk_ms": "x"}, "whole number"),
        ({"chunk_ms": 20}, "from 40 to"),
        ({"chunk_ms": float("nan")}, "whole number"),
        ({"chunk_ms": float("inf")}, "whole number"),
        ({"chunk_ms": True}, "whole number"),
        ({"chunk_ms": 200, "ahead_ms": -20}, "from 0 to"),
        ({"chunk_ms": 500, "ahead_ms": 500}, "positions for"),
        ({**SMALL, "left": -1}, "from 0 to"),
        ({**SMALL, "left": 1.5}, "whole number"),
        ({**SMALL, "hop_ms": 200}, "hop_ms would have no effect"),
        ({**WINDOWS, "hop_ms": 300}, "whole part of 800"),
        ({**WINDOWS, "ahead_ms": 100}, "multiple of it"),
        ({**WINDOWS, "left": 1, "chunk_ms": 200}, "chunk_ms, left would have no effect"),
        ({**WINDOWS, "emit": "window", "ahead_ms": 200}, "leave ahead_ms out"),
        ({"emit": "window"}, "in mode window"),
        ({"emit": "frame"}, "emit is hop"),
        ({**SMALL, "layer": 4}, "whole number from -4 to 3"),
        ({**SMALL, "layer": -5}, "from -4 to 3"),
        ({**SMALL, "layer": 1.5}, "whole number"),
        ({**SMALL, "layers": "1,x"}, "whole number"),
        ({**SMALL, "layers": []}, "each once"),
        ({**SMALL, "layer": 1, "layers": [1]}, "one of them"),
        ({"chunk": 1}, "no option 'chunk'; it has mode"),
    ],
)
def test_options_that_cannot_be(folder, options, message):
    with pytest.raises(UsageError, match=message):
        streamenc.load(folder, **options)


def test_options_from_a_command_line(folder):
    """They come as text."""
    given = {"chunk_ms": "200", "ahead_ms": "100", "left": "2", "layers": "2,-1"}
    plain = {"chunk_ms": 200, "ahead_ms": 100, "left": 2, "layers": [2, 3]}
    ours, theirs = (streamenc.load(folder, **options).encoder for options in (given, plain))
    assert ours.fingerprint() == theirs.fingerprint()
    assert ours.spec.delay == HOP * 5 + 201 and ours.spec.lead == HOP * 15 + 201
    assert ours.spec.output.channels == 32
    others = [
        streamenc.load(folder, **{**plain, **more}).encoder.fingerprint()
        for more in ({"left": 1}, {"layers": [1, 3]}, {"layers": [3, 2]}, {"layers": [2, 1, 3]})
    ]
    assert len({ours.fingerprint(), *others}) == 5


def test_what_is_no_whisper(folder, tmp_path):
    zoo.save_mimi(tmp_path / "mimi")
    with pytest.raises(CheckpointError, match="named as in Whisper"):
        streamenc.load(f"whisper:{tmp_path / 'mimi'}")
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    wrong = {
        "activation": ({"activation_function": "relu"}, "only 'gelu'"),
        "heads": ({"encoder_attention_heads": 3}, "heads divide"),
        "sizes": ({"encoder_layers": "many"}, "sizes"),
        "width": ({"d_model": 18}, "wants"),
        "layers": ({"encoder_layers": 4}, "is missing"),
    }
    for name, (change, message) in wrong.items():
        there = tmp_path / name
        there.mkdir()
        save_file(tensors, there / "model.safetensors")
        (there / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            streamenc.load(there, **SMALL)


def test_published_sizes():
    for name in registry.LISTED:
        if "whisper" in name and not name.startswith("mel"):
            spec = registry.published_spec(name)
            assert spec.output.channels == (1280 if "large" in name else 384)
            assert spec.latency_seconds == pytest.approx(2.0126, abs=1e-3)
    config = transformers.WhisperConfig()
    assert whisper._published("tiny").positions == config.max_source_positions


def test_sound_at_another_rate_is_refused_by_shape(folder):
    stream = streamenc.load(folder, **SMALL).stream()
    with pytest.raises(InputError):
        stream.push(torch.zeros(2, 100))


@pytest.mark.parametrize("mode", ["chunked", "window"])
def test_lanes_of_any_age_step_together(folder, mode):
    """One stream past its window, one that has just begun: as each alone."""
    step = "chunk_ms" if mode == "chunked" else "hop_ms"
    options = {"mode": mode, step: 200, "ahead_ms": 200, "dtype": torch.float64}
    model = streamenc.load(folder, **options).encoder
    lanes = Lanes(model, 4)
    hop = model.spec.hop
    sounds = [noise(30 * hop, seed=seed) for seed in range(3)]
    streams = [Stream(model) for _ in sounds]
    alone = [Stream(model) for _ in sounds]
    expected = [one.push(sound) for one, sound in zip(alone, sounds, strict=True)]
    outputs: list[list[Tensor]] = [[], [], []]
    for tick in range(30):
        for index, (stream, sound) in enumerate(zip(streams, sounds, strict=True)):
            if tick % (index + 1) == 0:
                stream.take(sound[..., tick // (index + 1) * hop :][..., :hop])
            if stream not in lanes and stream.ready:
                outputs[index].append(stream.step(None))
                lanes.join(stream)
        ready = {stream: None for stream in streams if stream in lanes and stream.ready}
        if ready:
            for stream, y in lanes.step(ready).items():
                outputs[streams.index(stream)].append(y)
    for ours, theirs in zip(outputs, expected, strict=True):
        y = torch.cat(ours, dim=-1)
        assert_close(y, theirs[..., : y.shape[-1]], 1e-10)
        assert y.shape[-1] > 7 * CHUNK


def test_from_a_file_to_a_recording(folder, tmp_path):
    """Frames of features with their times, as a subscriber gets them."""
    sound = noise(9600 + 1600).float()
    write_wav(tmp_path / "sound.wav", sound[0].numpy(), 16_000)
    for options in ({**SMALL, "ahead_ms": 100}, {**WINDOWS, "emit": "window"}):
        codec = streamenc.load(folder, **options)
        path = tmp_path / f"{len(options)}.arrows"
        with Pipeline() as pipeline:
            states = pipeline.encode(
                "encode", codec, pipeline.source("in", str(tmp_path / "sound.wav"))
            )
            pipeline.sink("out", str(path), states)
            pipeline.graph.run_blocking()
        info, frames = read_file(str(path))
        assert info.kind == "features" and info.rate == codec.spec.output.rate
        frames = list(frames)
        assert frames[0].pts == 0 and sum(frame.duration for frame in frames) == sound.shape[-1]
        ours = torch.cat([torch.from_numpy(frame.data.copy()) for frame in frames], dim=-1)
        # The file holds 16 bits a sample.
        assert torch.cosine_similarity(ours, codec.encode(sound)[0], dim=0).mean() > 0.999
