"""Voxtral Realtime against transformers': every length, past its window, its layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import recognisers
from tests.support.compare import assert_close
from tests.support.references import transformers

ORIGINAL = "mm_streams_embeddings.embedding_module."
# From transformers' names to Mistral's.
RENAMED = [
    (r"^audio_tower\.embedder\.conv1", "whisper_encoder.conv_layers.0.conv"),
    (r"^audio_tower\.embedder\.conv2", "whisper_encoder.conv_layers.1.conv"),
    (r"^audio_tower\.", "whisper_encoder.transformer."),
    (r"self_attn\.([qkvo])_proj", r"attention.w\1"),
    (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.down_proj", "feed_forward.w2"),
    (r"mlp\.up_proj", "feed_forward.w3"),
    (r"self_attn_layer_norm", "attention_norm"),
    (r"final_layer_norm", "ffn_norm"),
    (r"^multi_modal_projector\.linear_1", "audio_language_projection.0"),
    (r"^multi_modal_projector\.linear_2", "audio_language_projection.2"),
]


@pytest.fixture(scope="module")
def reference() -> Any:
    return recognisers.exact_voxtral(recognisers.voxtral()).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voxtral")
    recognisers.voxtral().save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Model:
    return streamenc.load(folder, part="encoder", **options).encoder


def noise(samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(1, 1, samples, generator=generator, dtype=torch.float64)
    swell = torch.sin(torch.arange(samples, dtype=torch.float64) / 2000)
    return 0.2 * x * 10 ** (3 * swell - 3)  # parts of it lie below the log-mel's floor


def published(reference: Any, encoder: Model, x: Tensor, output: str) -> Tensor:
    """From the log-mel on; that is proved by itself."""
    frames = encoder.mel(x)
    with torch.inference_mode():
        states = reference.audio_tower(frames).last_hidden_state
        if output == "states":
            return states.transpose(1, 2)
        whole = states.shape[1] // 4
        groups = states[:, : 4 * whole].reshape(1, whole, 80)
        return reference.multi_modal_projector(groups).transpose(1, 2)


def test_the_log_mel_is_the_published_feature_extractors(folder):
    extractor = transformers.VoxtralRealtimeFeatureExtractor(feature_size=16)
    x = noise(9999).float()
    theirs = extractor(x[0, 0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    assert_close(load(folder).mel(x), theirs, 1e-5)


@pytest.mark.parametrize("output", ["states", "embeddings"])
def test_it_is_the_published_encoder(folder, reference, output):
    """Of all kinds of tails, and far past the window of all layers together."""
    encoder = load(folder, dtype=torch.float64, output=output)
    for samples in (320, 479, 480, 640, 1279, 1280, 5001, 33_333):
        x = noise(samples)
        theirs = published(reference, encoder, x, output)
        assert_close(encoder(x), theirs, 1e-12)
        assert encoder(x).shape[-1] == samples // (320 if output == "states" else 1280)


def test_nothing_of_ours_in_the_oracle(folder):
    """From the waveform to the embeddings, in float32, as the published code computes."""
    model = recognisers.voxtral().model
    extractor = transformers.VoxtralRealtimeFeatureExtractor(feature_size=16)
    x = noise(12_800).float()
    found = extractor(x[0, 0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        theirs = model.get_audio_features(found).pooler_output.transpose(1, 2)
    assert_close(load(folder, output="embeddings")(x), theirs, 1e-4)


def test_it_is_so_in_pieces(folder, reference):
    x = noise(9999)
    encoder = load(folder, dtype=torch.float64)
    stream = Stream(encoder)
    ours = [stream.push(piece) for piece in x.split(333, dim=-1)]
    ours.append(stream.flush())
    assert_close(torch.cat(ours, dim=-1), published(reference, encoder, x, "states"), 1e-12)


def original(folder: Path, target: Path) -> Path:
    """The same weights in Mistral's own file."""
    made = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.startswith(("audio_tower.", "multi_modal_projector.")):
            continue
        if "q_proj" in name or "k_proj" in name:
            value = value.view(3, 2, 4, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
        for pattern, to in RENAMED:
            name = re.sub(pattern, to, name)
        made[ORIGINAL + name] = value.contiguous()
    save_file(made, target / "consolidated.safetensors")
    return target / "consolidated.safetensors"


@pytest.mark.parametrize("output", ["states", "embeddings"])
def test_mistrals_own_layout(folder, tmp_path, output):
    file = original(folder, tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    x = noise(5000).float()
    assert torch.equal(load(file, output=output)(x), load(folder, output=output)(x))


def test_mistrals_own_file_alone_has_the_published_heads_and_window(folder, tmp_path):
    with pytest.raises(CheckpointError, match="heads of 64"):
        load(original(folder, tmp_path))
    wide = tmp_path / "wide"
    wide.mkdir()
    recognisers.voxtral(head_dim=64).save_pretrained(wide)
    tensors = load_file(wide / "model.safetensors")
    shape = load(wide).shape
    made = {}
    for name, value in tensors.items():
        if name.startswith("audio_tower."):
            for pattern, to in RENAMED:
                name = re.sub(pattern, to, name)
            made[ORIGINAL + name] = value
    save_file(made, tmp_path / "alone.safetensors")
    found = load(tmp_path / "alone.safetensors").shape
    assert (found.width, found.heads, found.hidden, found.layers) == (20, 3, 28, 2)
    assert (found.head_dim, found.window, found.rope_theta) == (64, 750, 1e6)
    assert shape.window == 6


def rewritten(folder: Path, target: Path, **config: Any) -> Path:
    stated = json.loads((folder / "config.json").read_text())
    for key, value in config.items():
        place = stated if key in stated else stated["audio_config"]
        place[key] = value
    (target / "config.json").write_text(json.dumps(stated))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1"),
        ({"num_mel_bins": 500}, "num_mel_bins=500"),
        ({"sliding_window": None}, "without an end"),
        ({"sliding_window": -5}, "sliding_window=-5"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta=-1"),
        ({"audio_config": 7}, "audio_config=7"),
        ({"intermediate_size": 30}, "wants"),
        ({"num_hidden_layers": 1}, "belongs to no layer"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1 << 16}, "a whole number from 1 to 256"),
        ({"downsample_factor": 0}, "downsample_factor=0"),
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
    recognisers.voxtral().model.audio_tower.save_pretrained(tmp_path)
    assert load(tmp_path).spec.output.channels == 20
    with pytest.raises(CheckpointError, match=r"linear_1.*encoder alone"):
        load(tmp_path, output="embeddings")
    (tmp_path / "preprocessor_config.json").write_text('{"global_log_mel_max": null}')
    with pytest.raises(CheckpointError, match="global_log_mel_max=None"):
        load(tmp_path)
