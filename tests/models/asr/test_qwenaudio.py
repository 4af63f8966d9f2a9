"""The audio encoder of Qwen3-ASR and Qwen3-Omni against transformers', and what streams change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.asr.qwenaudio import sinusoids
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import recognisers
from tests.support.compare import assert_close
from tests.support.references import transformers

SEGMENT = 32_000  # samples
LENGTHS = (160, 1599, 15_999, 16_160, 40_000, 64_000, 79_999)

# As the published processor calls its feature extractor.
EXTRACTED: dict[str, Any] = {
    "sampling_rate": 16_000,
    "padding": True,
    "return_attention_mask": True,
    "return_tensors": "pt",
}


def exact(tower: Any) -> Any:
    """In float64, with positions as precise as those of a checkpoint in float32."""
    tower.set_attn_implementation("sdpa")
    tower.positional_embedding.positional_embedding = sinusoids(13, 12).float()
    return tower.double()


@pytest.fixture(scope="module")
def asr() -> Any:
    model = recognisers.qwen_asr().double().model
    exact(model.audio_tower)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3-asr")
    recognisers.qwen_asr().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def omni_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3-omni")
    recognisers.qwen_omni().save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Model:
    return streamenc.load(folder, part="encoder", **options).encoder


def noise(samples: int, *, loud_first: bool = True) -> Tensor:
    """Loudest at its start, or from its second segment on."""
    generator = torch.Generator().manual_seed(samples)
    x = 1e-3 * torch.randn(1, 1, samples, generator=generator, dtype=torch.float64)
    x *= 10 ** (2 * torch.sin(torch.arange(samples, dtype=torch.float64) / 5000) - 2)
    if loud_first:
        x[..., :300] = 0.9 * torch.sin(torch.arange(min(samples, 300)) / 2)
    else:
        x[..., SEGMENT:] *= 1000
    return x


def frames_of(encoder: Model, x: Tensor) -> Tensor:
    """As the published feature extractor makes them, which is proved below."""
    frames = encoder.mel(x)
    return (torch.maximum(frames, frames.amax() - 8) + 4) / 4


def published(model: Any, frames: Tensor, output: str) -> Tensor:
    missing = -frames.shape[-1] % 100
    mask = F.pad(torch.ones(1, frames.shape[-1], dtype=torch.int64), (0, missing))
    with torch.inference_mode():
        found = model.get_audio_features(F.pad(frames, (0, missing)), mask)
    return (found.last_hidden_state if output == "states" else found.pooler_output).T[None]


def test_the_log_mel_is_the_published_feature_extractors(folder):
    extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=10)
    x = noise(30_111)
    theirs = extractor(x[0, 0].numpy(), n_window=0, **EXTRACTED)
    ours = frames_of(load(folder, dtype=torch.float64), x)
    assert theirs.attention_mask.sum() == ours.shape[-1]
    assert_close(ours.float(), theirs.input_features, 1e-5)


@pytest.mark.parametrize("output", ["states", "embeddings"])
def test_it_is_the_published_encoder_where_the_loudest_bin_comes_first(folder, asr, output):
    encoder = load(folder, dtype=torch.float64, output=output)
    for samples in LENGTHS:
        x = noise(samples)
        assert_close(encoder(x), published(asr, frames_of(encoder, x), output), 1e-12)


def test_each_segment_is_the_published_encoders_up_to_its_end(folder, asr):
    x = noise(3 * SEGMENT + 20_000, loud_first=False)
    encoder = load(folder, dtype=torch.float64)
    ours, frames = encoder(x), encoder.mel(x)
    for index in range(4):
        heard = frames[..., : (index + 1) * 200]
        heard = (torch.maximum(heard, heard.amax() - 8) + 4) / 4
        theirs = published(asr, heard, "states")[..., index * 26 :]
        assert_close(ours[..., index * 26 : (index + 1) * 26], theirs, 1e-12)
    whole = published(asr, frames_of(encoder, x), "states")
    assert (ours - whole).abs().max() > 1e-3


def test_a_fixed_maximum_makes_segments_independent(folder, asr):
    encoder = load(folder, dtype=torch.float64, log_max="1.5")
    x = noise(2 * SEGMENT + 5000, loud_first=False)
    ours, frames = encoder(x), encoder.mel(x)
    assert frames.min() >= (1.5 - 8 + 4) / 4
    assert_close(ours, published(asr, frames, "states"), 1e-12)
    field = encoder.spec.receptive_field
    assert field == SEGMENT + 400 - 160 and load(folder).spec.receptive_field is None


def test_omni_is_the_same_with_a_projection_of_its_own(omni_folder):
    tower = exact(recognisers.qwen_omni())
    encoder = load(omni_folder, dtype=torch.float64, output="embeddings")
    for samples in (15_999, 40_000, 79_999):
        x = noise(samples)
        frames = frames_of(encoder, x)
        with torch.inference_mode():
            theirs = tower(frames[0], torch.tensor([frames.shape[-1]])).last_hidden_state
        assert_close(encoder(x), theirs.T[None], 1e-12)


def test_it_is_so_in_pieces(folder, asr):
    x = noise(70_000)
    encoder = load(folder, dtype=torch.float64)
    stream = Stream(encoder)
    ours = [stream.push(piece) for piece in x.split(7777, dim=-1)]
    ours.append(stream.flush())
    theirs = published(asr, frames_of(encoder, x), "states")
    assert_close(torch.cat(ours, dim=-1), theirs, 1e-12)


def test_nothing_of_ours_in_the_oracle(folder):
    """From the waveform to the embeddings, in float32, eagerly."""
    model = recognisers.qwen_asr().model
    model.audio_tower.set_attn_implementation("eager")
    extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=10)
    x = noise(50_000).float()
    found = extractor(x[0, 0].numpy(), **EXTRACTED)
    with torch.inference_mode():
        theirs = model.get_audio_features(found.input_features, found.attention_mask)
    ours = load(folder, output="embeddings")(x)
    assert_close(ours, theirs.pooler_output.T[None], 1e-4)


@pytest.mark.parametrize("prefix", ["thinker.audio_tower.", "model.audio_tower.", "audio_tower."])
def test_other_names_before_the_same(omni_folder, tmp_path, prefix):
    """Of Qwen's own files the configs lie deeper, too."""
    tensors = load_file(omni_folder / "model.safetensors")
    save_file({prefix + name: x for name, x in tensors.items()}, tmp_path / "model.safetensors")
    config = json.loads((omni_folder / "config.json").read_text())
    deep = {"model_type": "qwen3_asr", "thinker_config": {"audio_config": config}}
    (tmp_path / "config.json").write_text(json.dumps(deep))
    x = noise(20_000).float()
    for output in ("states", "embeddings"):
        ours = load(tmp_path, output=output)(x)
        assert torch.equal(ours, load(omni_folder, output=output)(x))


def rewritten(folder: Path, target: Path, **config: Any) -> Path:
    stated = json.loads((folder / "config.json").read_text())
    stated["audio_config"].update(config)
    (target / "config.json").write_text(json.dumps(stated))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"encoder_attention_heads": 5}, "encoder_attention_heads=5"),
        ({"num_mel_bins": 500}, "num_mel_bins=500"),
        ({"n_window_infer": 250}, "n_window_infer=250"),
        ({"n_window": True}, "n_window=True"),
        ({"d_model": "wide"}, "d_model='wide'"),
        ({"encoder_ffn_dim": 24}, "wants"),
        ({"num_mel_bins": 20}, "wants"),
        ({"encoder_layers": 1}, "belongs to no layer"),
        ({"encoder_layers": 3}, "missing"),
        ({"encoder_layers": 1 << 16}, "a whole number from 1 to 256"),
    ],
)
def test_configs_are_not_trusted(folder, tmp_path, config, message):
    with pytest.raises(CheckpointError, match=message):
        load(rewritten(folder, tmp_path, **config))


def test_what_cannot_be_had_is_said(folder, tmp_path):
    with pytest.raises(UsageError, match="writes text"):
        streamenc.load(folder, part="decoder")
    with pytest.raises(UsageError, match="output"):
        load(folder, output="tokens")
    with pytest.raises(UsageError, match="log_max"):
        load(folder, log_max="loud")
    recognisers.qwen_asr().model.audio_tower.save_pretrained(tmp_path)
    assert load(tmp_path).spec.output.channels == 12
    with pytest.raises(CheckpointError, match=r"linear_2.*encoder alone"):
        load(tmp_path, output="embeddings")
