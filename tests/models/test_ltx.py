"""LTX-Video's encoder: equal to diffusers over whole clips, in any delivery; what does not fit."""

from __future__ import annotations

import inspect
import json
import math

import diffusers
import pytest
import torch
from diffusers.models.normalization import RMSNorm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import streamenc
from streamenc import state as states
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.models.families import LISTED
from streamenc.registry import published_spec
from tests.support.compare import assert_close, poisoned_memory
from tests.support.cosmos_clips import completed, delivered, encoded, video
from tests.support.ltx_clips import NEWER, SECOND, ltx
from tests.support.profile import examples

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
# The published kinds, and a normalisation of shortcuts that shows.
CONFIGS = {
    "0.9": {},
    "0.9.5": NEWER,
    "2": SECOND,
    "eps": {"resnet_norm_eps": 0.1, "patch_size": 4},
}
DTYPES = pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
FEW = settings(
    max_examples=examples(10, fast=2),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def squares_in_their_own_type(monkeypatch):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    monkeypatch.setattr(RMSNorm, "forward", forward)


def pair(folder, config, dtype, **options):
    theirs = ltx(**CONFIGS[config])
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **options)


@pytest.mark.parametrize("config", CONFIGS)
@DTYPES
def test_any_delivery_equals_diffusers_over_the_whole_clip(tmp_path, config, dtype, rel):
    theirs, codec = pair(tmp_path, config, dtype)
    unit, hop = codec.encoder.shrinks, codec.spec.hop

    @FEW
    @given(
        frames=st.integers(1, 21),
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        height=st.integers(1, 3),
        width=st.integers(1, 2),
        hops=st.sampled_from([1, 1, 2]),
        batch=st.sampled_from([1, 2]),
    )
    def check(frames, sizes, height, width, hops, batch):
        x = video(frames, height * unit, width * unit, dtype, batch=batch)
        z = delivered(codec.stream(batch=batch, hops=hops), x, sizes)
        assert_close(z, encoded(theirs, completed(x, hop)), rel)

    check()


def test_past_the_receptive_field_and_in_flat_memory(tmp_path):
    theirs, codec = pair(tmp_path, "0.9.5", torch.float64)
    x = video(1 + 4 * 20, 8, 16, torch.float64)
    assert codec.spec.receptive_field < x.shape[2] and not codec.spec.limit
    stream, sizes, parts = codec.stream(), set(), []
    for part in x.split(5, dim=2):
        parts.append(stream.push(part))
        sizes.add(states.nbytes(stream.state))
    assert_close(torch.cat([*parts, stream.flush()], dim=2), encoded(theirs, x), 1e-10)
    assert len(sizes) == 1


def test_normalised_latents_are_those_of_the_diffusion_models(tmp_path):
    theirs, codec = pair(tmp_path, "0.9", torch.float64)
    normalised = streamenc.load(tmp_path, dtype=torch.float64, normalised=True)
    x = video(5, 8, 8, torch.float64)
    mean, std = (v.double().view(-1, 1, 1, 1) for v in (theirs.latents_mean, theirs.latents_std))
    assert_close(normalised.encode(x), (codec.encode(x) - mean) / std, 1e-6)


def test_there_is_no_decoder(tmp_path):
    ltx().save_pretrained(tmp_path)
    codec = streamenc.load(tmp_path)
    assert not codec.has_decoder
    with pytest.raises(UsageError, match="sees frames to come"):
        streamenc.load(tmp_path, part="decoder")
    tensors = load_file(tmp_path / WEIGHTS)
    alone = {n: t for n, t in tensors.items() if not n.startswith("decoder.")}
    save_file(alone, tmp_path / WEIGHTS)
    x = video(5, 8, 16, torch.float32)
    assert torch.equal(streamenc.load(tmp_path).encode(x), codec.encode(x))
    with pytest.raises(InputError, match="multiples of 8"):
        codec.encode(video(1, 8, 12, torch.float32))
    for options in ({"rate": 0}, {"normalised": "perhaps"}, {"mode": "window"}):
        with pytest.raises(UsageError):
            streamenc.load(tmp_path, **options)
            pytest.fail(f"{options} was taken")


def test_configs_that_do_not_fit(tmp_path):
    ltx(**NEWER).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, value in (
        ("in_channels", 4),
        ("patch_size_t", 2),
        ("encoder_causal", False),
        ("encoder_spatial_padding_mode", "reflect"),
        ("down_block_types", None),
        ("patch_size", 0),
        ("patch_size", 4),
        ("latent_channels", True),
        ("block_out_channels", [4, 4, 8]),
        ("block_out_channels", []),
        ("block_out_channels", [4, 4, 8, 12]),
        ("block_out_channels", [4, 4, 8, 1 << 20]),
        ("down_block_types", ["LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"]),
        ("down_block_types", ["LTXVideoDownBlock3D"] * 3),
        ("layers_per_block", [1, 1, 1]),
        ("layers_per_block", [1, 1, 1, 2]),
        ("layers_per_block", "1111"),
        ("spatio_temporal_scaling", [1, 1, 1]),
        ("spatio_temporal_scaling", [True, True, False]),
        ("downsample_type", ["spatial", "temporal"]),
        ("downsample_type", ["spatial", "temporal", "diagonal"]),
        ("downsample_type", ["conv"] * 3),
        ("resnet_norm_eps", 0),
        ("scaling_factor", math.inf),
    ):
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError):
            streamenc.load(tmp_path, normalised=True)
            pytest.fail(f"{key} {value} was taken")


def test_tensors_that_do_not_fit(tmp_path):
    ltx().save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    whole = load_file(path)
    for name, change in {
        "encoder.conv_in.conv.weight": lambda t: t[:, :2].contiguous(),
        "encoder.down_blocks.0.conv_out.norm3.weight": lambda t: None,
        "encoder.down_blocks.1.downsamplers.0.conv.weight": lambda t: t[..., :2].contiguous(),
        "encoder.mid_block.resnets.0.conv1.conv.bias": lambda t: t * math.nan,
        "latents_std": lambda t: t * 0,
        "encoder.down_blocks.9.resnets.0.conv1.conv.weight": lambda t: torch.zeros(1),
    }.items():
        changed = {**whole, name: change(whole.get(name))}
        save_file({n: t for n, t in changed.items() if t is not None}, path)
        with pytest.raises(CheckpointError):
            streamenc.load(tmp_path, normalised=True)
            pytest.fail(f"a changed {name} was taken")


def test_published_specs_are_of_diffusers_defaults():
    for kind in (diffusers.AutoencoderKLLTXVideo, diffusers.AutoencoderKLLTX2Video):
        default = inspect.signature(kind).parameters
        assert default["latent_channels"].default == 128 and default["patch_size"].default == 4
    for name in LISTED:
        if name.startswith("Lightricks/"):
            spec = published_spec(name)
            assert spec.output.channels == 128 and spec.hop == 8 and spec.input.image.unit == 32
