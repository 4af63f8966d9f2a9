"""The cache-aware FastConformer against transformers': every length and look-ahead, its layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import recognisers
from tests.support.compare import assert_close
from tests.support.references import transformers


@pytest.fixture(scope="module")
def reference() -> Any:
    return recognisers.exact_nemotron(recognisers.nemotron())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nemotron")
    recognisers.nemotron().save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Model:
    return streamenc.load(folder, part="encoder", **options).encoder


def noise(samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    return 0.1 * torch.randn(1, 1, samples, generator=generator, dtype=torch.float64)


def published(reference: Any, frames: Tensor, lookahead: int = 2) -> Tensor:
    """Of log-mel frames (1, bands, frames), with the frame more that its extractor gives."""
    count = frames.shape[-1]
    mask = torch.arange(count + 1)[None] < count
    x = F.pad(frames, (0, 1)).transpose(1, 2)
    with torch.inference_mode():
        found = reference(x, attention_mask=mask, num_lookahead_tokens=lookahead)
    states = int(found.attention_mask.sum())
    return found.last_hidden_state[:, :states].transpose(1, 2)


def test_the_log_mel_is_the_published_feature_extractors(folder):
    extractor = transformers.NemotronAsrStreamingFeatureExtractor(feature_size=12)
    front = load(folder).front
    for samples in (160, 199, 200, 9999, 16_000):
        x = noise(samples).float()
        theirs = extractor(x[0, 0].numpy(), sampling_rate=16_000, return_tensors="pt")
        ours = front(x)
        assert ours.shape[-1] == theirs.attention_mask.sum() == samples // 160
        assert_close(ours, theirs.input_features[:, : ours.shape[-1]].transpose(1, 2), 1e-5)


@pytest.mark.parametrize("lookahead", [0, 1, 2, 3, 7])
def test_it_is_the_published_encoder(folder, reference, lookahead):
    """With chunks that fit into what is seen, that do not, and that are all of it."""
    encoder = load(folder, dtype=torch.float64, lookahead=str(lookahead))
    for samples in (160, 1599, 2560, 16_001, 40_000, 64_321):
        x = noise(samples)
        theirs = published(reference, encoder.front(x), lookahead)
        assert_close(encoder(x), theirs, 1e-12)
    assert encoder.steps.lead_out == lookahead + 1


def test_it_is_so_in_pieces(folder, reference):
    x = noise(33_333)
    encoder = load(folder, dtype=torch.float64)
    stream = Stream(encoder)
    ours = [stream.push(piece) for piece in x.split(777, dim=-1)]
    ours.append(stream.flush())
    theirs = published(reference, encoder.front(x))
    assert_close(torch.cat(ours, dim=-1), theirs, 1e-12)


def test_nothing_of_ours_in_the_oracle(folder):
    """From the waveform to the states, in float32."""
    model = recognisers.nemotron().encoder
    extractor = transformers.NemotronAsrStreamingFeatureExtractor(feature_size=12)
    x = noise(30_000).float()
    found = extractor(x[0, 0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**found, num_lookahead_tokens=2)
    states = int(theirs.attention_mask.sum())
    assert_close(load(folder)(x), theirs.last_hidden_state[:, :states].transpose(1, 2), 1e-4)


def test_without_biases_and_scale(tmp_path):
    model = recognisers.nemotron(
        attention_bias=False, convolution_bias=False, scale_input=False, conv_kernel_size=3
    )
    model.encoder.save_pretrained(tmp_path)
    encoder = load(tmp_path, dtype=torch.float64)
    x = noise(20_000)
    theirs = published(recognisers.exact_nemotron(model), encoder.front(x))
    assert_close(encoder(x), theirs, 1e-12)


def test_the_log_mel_stays_in_float32(folder):
    encoder, half = load(folder), load(folder, dtype=torch.bfloat16)
    x = noise(20_000).float()
    assert half.like.dtype == torch.float32
    assert_close(half.front(x), encoder.front(x), 1e-6)
    assert_close(half(x), encoder(x), 0.05)


def rewritten(folder: Path, target: Path, **config: Any) -> Path:
    stated = json.loads((folder / "config.json").read_text())
    stated["encoder_config"].update(config)
    (target / "config.json").write_text(json.dumps(stated))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"subsampling_factor": 4}, "subsampling_factor=4"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "num_attention_heads=3"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1"),
        ({"num_mel_bins": 0}, "num_mel_bins=0"),
        ({"scale_input": "yes"}, "scale_input"),
        ({"default_num_lookahead_tokens": 8}, "default_num_lookahead_tokens=8"),
        ({"sliding_window": None, "conv_kernel_size": 7}, "wants"),
        ({"intermediate_size": 24}, "wants"),
        ({"num_hidden_layers": 1}, "belongs to no layer"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1 << 16}, "a whole number from 1 to 256"),
    ],
)
def test_configs_are_not_trusted(folder, tmp_path, config, message):
    with pytest.raises(CheckpointError, match=message):
        load(rewritten(folder, tmp_path, **config))


def test_what_cannot_be_had_is_said(folder, tmp_path):
    with pytest.raises(UsageError, match="writes text"):
        streamenc.load(folder, part="decoder")
    with pytest.raises(UsageError, match="lookahead"):
        load(folder, lookahead=8)
    rewritten(folder, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"mel_filters_dtype": "bfloat16"}')
    with pytest.raises(CheckpointError, match="mel_filters_dtype='bfloat16'"):
        load(tmp_path)
