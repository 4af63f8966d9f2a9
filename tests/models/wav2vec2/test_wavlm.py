"""WavLM: its bias by distance at its published sizes, its own files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from streamenc.errors import CheckpointError
from streamenc.layers.attention.relative import distance_buckets
from streamenc.models.wav2vec2 import wav2vec2
from tests.models.wav2vec2.test_wav2vec2_loading import to_fairseq
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.speech import VARIANTS, load, saved, signal, streamed, z_normalised

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]


@pytest.mark.reference
@pytest.mark.parametrize(("buckets", "furthest"), [(320, 800), (16, 12), (32, 1000)])
def test_buckets_are_those_of_the_published_layer(buckets, furthest):
    layer = references.transformers.models.wavlm.modeling_wavlm.WavLMAttention(
        8, 2, num_buckets=buckets, max_distance=furthest
    )
    distances = torch.arange(-20_000, 20_001)
    expected = layer._relative_positions_bucket(distances)
    assert torch.equal(distance_buckets(distances, buckets, furthest), expected)


@pytest.mark.reference
@pytest.mark.parametrize("variant", ["group", "stable"])
def test_a_clip_longer_than_the_furthest_distance(tmp_path, variant):
    """990 frames that see each other, with the published buckets: past 80 frames they share them,
    past 800 all have the last one."""
    sizes = {"num_buckets": 320, "max_bucket_distance": 800}
    reference = saved(tmp_path, "wavlm", **sizes, **VARIANTS[variant])
    x = signal(30 + 20 * 989 + 3)
    with torch.no_grad():
        expected = reference(z_normalised(x)[:, 0]).last_hidden_state.transpose(1, 2)
    assert_close(streamed(load(tmp_path, chunk_ms=1250), x), expected, 1e-10)
    sliding = load(tmp_path, mode="sliding", window_ms=1250, hop_ms=600)
    assert_close(streamed(sliding, x), expected, 1e-10)


@pytest.mark.parametrize("variant", ["group", "stable"])
def test_its_own_files(tmp_path, variant):
    """WavLM-Base+.pt and its like: {"cfg": ..., "model": ...}; heads of 64, kernels of 10 first."""
    shape = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "num_conv_pos_embeddings": 16,
        "conv_kernel": [10, 3, 2],
        "max_bucket_distance": 800,
    }
    saved(tmp_path / "folder", "wavlm", **shape, **VARIANTS[variant])
    state = load_file(tmp_path / "folder" / "model.safetensors")
    if variant == "stable":
        state["layer"] = torch.zeros(1)
    model = {name: tensor for name, tensor in to_fairseq(state).items() if name != "layer"}
    torch.save({"cfg": {"relative_position_embedding": True}, "model": model}, tmp_path / "base.pt")
    ours = load(tmp_path / "base.pt", chunk_ms=5)
    theirs = load(tmp_path / "folder", chunk_ms=5, normalize=variant == "stable")
    assert ours.spec == theirs.spec and ours.spec.name == "wavlm"
    x = signal(900)
    assert torch.equal(streamed(ours, x), streamed(theirs, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "hubert"}, "its attention has a bias by distance"),
        ({"num_buckets": 18}, "a multiple of 4"),
        ({"max_bucket_distance": 4}, "above a quarter"),
        ({"num_buckets": 32}, "do not fit the config"),
        ({"num_buckets": 1 << 20}, "num_buckets"),
        ({"add_adapter": True}, "add_adapter"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, change, message):
    saved(tmp_path, "wavlm")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_bare_file_tells_its_family_and_heads(tmp_path):
    saved(tmp_path, "wavlm", max_bucket_distance=800)
    folder = load(tmp_path, chunk_ms=5)
    (tmp_path / "config.json").unlink()
    bare = load(Path(f"hubert:{tmp_path}/model.safetensors"), chunk_ms=5)
    assert bare.spec == folder.spec and bare.fingerprint() == folder.fingerprint()


def test_the_published_specs():
    base = wav2vec2.published_spec("wavlm-base")
    assert (base.name, base.hop, base.lead, base.output.channels) == ("wavlm", 5120, 5200, 768)
    large = wav2vec2.published_spec("wavlm-large")
    assert large.output.channels == 1024 and "calibration" not in large.note
