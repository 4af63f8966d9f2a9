"""wav2vec 2.0 and HuBERT: layouts, options, units, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamenc.errors import CheckpointError, UsageError
from streamenc.models.wav2vec2 import wav2vec2
from tests.support import references, zoo
from tests.support.compare import assert_close, poisoned_memory
from tests.support.speech import VARIANTS, as_kept, load, saved, signal, streamed, z_normalised

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]


def to_fairseq(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names -> fairseq's, and those of WavLM's own files."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in (
            ("feature_projection.projection", "post_extract_proj"),
            ("feature_projection.layer_norm", "layer_norm"),
            ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
            (".attention.", ".self_attn."),
            (".feed_forward.intermediate_dense", ".fc1"),
            (".feed_forward.output_dense", ".fc2"),
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
            ("rel_attn_embed", "relative_attention_bias"),
            ("gru_rel_pos_linear", "grep_linear"),
            ("gru_rel_pos_const", "grep_a"),
        ):
            name = name.replace(theirs, ours)
        parts = name.split(".")
        if parts[:2] == ["encoder", "layers"] and parts[3] == "layer_norm":
            parts[3] = "self_attn_layer_norm"
        if parts[:2] == ["feature_extractor", "conv_layers"]:
            norm = "2" if "layer" not in state else "2.1"
            parts[3] = {"conv": "0", "layer_norm": norm}[parts[3]]
        renamed[".".join(parts)] = tensor
    return renamed


@pytest.mark.parametrize("variant", ["group", "stable"])
@pytest.mark.parametrize("prefix", ["", "w2v_encoder.w2v_model."])
def test_fairseq_names_and_shape_from_the_tensors(tmp_path, variant, prefix):
    """Its published shapes: kernels of 10 with stride 5, heads of 64."""
    shape = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_conv_pos_embeddings": 16,
        "conv_kernel": [10, 3, 2],
    }
    saved(tmp_path / "folder", "hubert", **shape, **VARIANTS[variant])
    state = load_file(tmp_path / "folder" / "model.safetensors")
    if variant == "stable":
        state["layer"] = torch.zeros(1)
    renamed = {prefix + key: value for key, value in to_fairseq(state).items() if key != "layer"}
    save_file({**renamed, "final_proj.weight": torch.zeros(3)}, tmp_path / "checkpoint.safetensors")
    normalize = variant == "stable"
    ours = load(Path(f"hubert:{tmp_path}/checkpoint.safetensors"), chunk_ms=5)
    theirs = load(tmp_path / "folder", chunk_ms=5, normalize=normalize)
    assert ours.spec == theirs.spec and ours.spec.name == "hubert"
    x = signal(900)
    assert torch.equal(streamed(ours, x), streamed(theirs, x))


def test_a_model_below_a_head_and_one_without_layer_norm_before_the_projection(tmp_path):
    config = references.transformers.HubertConfig(
        **references.SPEECH_SMALL, feat_proj_layer_norm=False
    )
    head = references.transformers.HubertForCTC(config).eval()
    references.randomise(head)
    head.save_pretrained(tmp_path)
    x = signal(30 + 20 * 40)
    with torch.no_grad():
        expected = as_kept(head.hubert)(z_normalised(x)[:, 0]).last_hidden_state
    assert_close(streamed(load(tmp_path, chunk_ms=100), x), expected.transpose(1, 2), 1e-10)


def test_old_names_of_weight_norm_in_a_pickle(tmp_path):
    saved(tmp_path, "wav2vec2")
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    new = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    x = signal(9000)
    assert torch.equal(streamed(load(tmp_path), x), streamed(new, x))


def test_normalisation_is_read_from_the_preprocessor(tmp_path):
    saved(tmp_path, "wav2vec2")
    assert load(tmp_path).shape.normalize
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert not load(tmp_path).shape.normalize
    assert load(tmp_path, normalize="true").shape.normalize


def test_layers_beyond_the_last_that_is_wanted_are_not_read(tmp_path):
    saved(tmp_path, "hubert")
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if ".layers.2." not in k}, tmp_path / "model.safetensors"
    )
    assert load(tmp_path, layer=2).spec.output.channels == 24
    with pytest.raises(CheckpointError, match="is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4}, "whole number from -4 to 3"),
        ({"layer": "x"}, "whole number"),
        ({"layers": []}, "each once"),
        ({"layers": "1,1"}, "each once"),
        ({"layer": 1, "layers": 2}, "two names of one"),
        ({"chunk_ms": 3}, r"multiple of 1\.25 ms"),
        ({"chunk_ms": 0}, "above 0"),
        ({"chunk_ms": True}, "whole number"),
        ({"left": -1}, "'left' must be a whole number from 0 to 10000; got -1"),
        ({"ahead": 4}, "from 0 to 3"),
        ({"ahead": 2, "layer": 1}, "from 0 to 1"),
        ({"positions": "none"}, "one of cut, wait"),
        ({"norm": "window"}, "one of running, frozen"),
        ({"norm": "frozen"}, "belong together"),
        ({"calibration": [0.0] * 4000}, "belong together"),
        ({"norm": "frozen", "calibration": [float("nan")] * 4000}, "finite"),
        ({"norm_seconds": -1}, "'norm_seconds' must be a number from 0 to"),
        ({"norm_seconds": "nan"}, "'norm_seconds' must be a number from 0 to"),
        ({"mean": 3}, "true or false"),
        ({"mode": "offline"}, "one of chunked, sliding"),
        ({"mode": "sliding", "left": 3}, "of mode=chunked"),
        ({"window_ms": 30}, "of mode=sliding"),
        ({"mode": "sliding", "window_ms": 5, "hop_ms": 5, "ahead_ms": 5}, "at least as long"),
        ({"tail": 3}, "hubert has no option"),
        ({"units": "centroids.pkl"}, "not as a pickle"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    saved(tmp_path, "hubert")
    with pytest.raises(UsageError, match=message):
        load(tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ({"add_adapter": True}, "add_adapter"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 23}, "do not divide"),
        ({"hidden_size": 28}, "do not fit the config"),
        ({"conv_dim": [8, "8"]}, "conv_dim"),
        ({"conv_stride": [5, 2]}, "of one length"),
        ({"conv_stride": [11, 2, 2]}, "no stride above"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"num_hidden_layers": 4}, "is missing"),
        ({"model_type": "wavlm"}, "no bias by distance"),
        ({"model_type": "unispeech"}, "not wav2vec"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, change, message):
    import json

    saved(tmp_path, "hubert")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_other_networks_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="none of its 1 tensors"):
        load(Path(f"hubert:{tmp_path}/a.safetensors"))
    config = references.transformers.HubertConfig(
        **references.SPEECH_SMALL, conv_pos_batch_norm=True
    )
    references.transformers.HubertModel(config).save_pretrained(tmp_path / "batch")
    with pytest.raises(CheckpointError, match="conv_pos_batch_norm"):
        load(tmp_path / "batch")
    stem = {
        "feature_extractor.conv_layers.0.0.weight": torch.zeros(8, 1, 10),
        "encoder.layers.0.fc1.weight": torch.zeros(4),
    }
    save_file(stem, tmp_path / "stem.safetensors")
    with pytest.raises(CheckpointError, match=r"fc1\.weight' has shape"):
        load(tmp_path / "stem.safetensors")


@pytest.mark.parametrize("dtype", ["<f8", ">f4", None])
def test_units_are_the_nearest_centroids(tmp_path, dtype):
    saved(tmp_path, "hubert")
    path = tmp_path / ("centroids.npy" if dtype else "centroids.safetensors")
    if dtype:
        np.save(path, zoo.CENTROIDS.astype(dtype))
    else:
        save_file({"centroids": torch.from_numpy(zoo.CENTROIDS)}, path)
    x = signal(5000)
    features = streamed(load(tmp_path, chunk_ms=5, layer=2), x)
    model = load(tmp_path, chunk_ms=5, layer=2, units=str(path))
    codes = streamed(model, x)
    nearest = torch.cdist(features.transpose(1, 2), torch.from_numpy(zoo.CENTROIDS)[None].double())
    assert torch.equal(codes[:, 0], nearest.argmin(dim=-1))
    assert (model.spec.codebook_size, model.spec.output.dtype) == (64, "uint16")


def test_bad_centroids_are_refused(tmp_path):
    saved(tmp_path, "hubert")
    path = tmp_path / "centroids.npy"
    bad = {
        "of another layer": np.zeros((5, 23), np.float32),
        r"of shape \(units, 24\)": np.zeros(24, np.float32),
        "not finite": np.full((5, 24), np.nan, np.float32),
        "floats of shape": np.zeros((5, 24), np.int64),
    }
    for message, array in bad.items():
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path, units=array)
        np.save(path, array)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path, units=path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="no readable file"):
        load(tmp_path, units=path)
    claims = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 24)}"
    path.write_bytes(claims.ljust(127) + b"\n" + bytes(24))
    with pytest.raises(CheckpointError, match="no readable file"):
        load(tmp_path, units=path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path, units=tmp_path / "none.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(CheckpointError, match="is no file"):
        load(tmp_path, units=tmp_path / "pipe.npy")
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="as no centroids have more"):
        load(tmp_path, units=path)


def test_the_published_specs():
    base = wav2vec2.published_spec("hubert-base")
    assert (base.hop, base.lead, base.hop_out, base.lead_out) == (5120, 5200, 16, 16)
    assert base.output.rate == 50 and base.output.channels == 768
    assert base.latency_seconds == pytest.approx(0.325)
    assert wav2vec2.published_spec("wav2vec2-large").output.channels == 1024
    assert base.receptive_field is None  # the first layer's statistics count all the past
