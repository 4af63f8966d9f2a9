"""Wan's VAE in its layouts: diffusers', Qwen-Image's, the original names; what does not fit."""

from __future__ import annotations

import inspect
import json
import math

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import streamenc
from streamenc.errors import CheckpointError
from streamenc.models.families import LISTED
from streamenc.registry import published_spec
from tests.support.compare import assert_close, poisoned_memory
from tests.support.cosmos_clips import decoded, encoded, video
from tests.support.wan_clips import CONFIGS, original_tensors, pair, repeated_exactly, wan

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pth"])
def test_original_names_are_the_same_model(tmp_path, config, pickled):
    _, codec = pair(tmp_path, config, torch.float64)
    tensors = wan(**CONFIGS[config]).state_dict()
    original = original_tensors(tensors, config == "2.2")
    assert len(original) == len(tensors)
    alone = tmp_path / "alone"
    alone.mkdir()
    path = alone / ("Wan_VAE.pth" if pickled else "vae.safetensors")
    if pickled:
        # As published: in the format before archives.
        torch.save(original, path, _use_new_zipfile_serialization=False)
    else:
        save_file(original, path)
    theirs = streamenc.load(path, dtype=torch.float64)
    for ours, same in ((codec.encoder, theirs.encoder), (codec.decoder, theirs.decoder)):
        assert ours.fingerprint() == same.fingerprint()


def test_original_files_have_the_published_statistics(tmp_path):
    tensors = wan(z_dim=16, dim_mult=[1, 1]).state_dict()
    save_file(original_tensors(tensors, False), tmp_path / "vae.safetensors")
    codec = streamenc.load(tmp_path / "vae.safetensors", part="encoder", normalised=True)
    published = inspect.signature(diffusers.AutoencoderKLWan).parameters
    assert codec.encoder.statistics.mean == tuple(published["latents_mean"].default)
    assert codec.encoder.statistics.std == tuple(published["latents_std"].default)


def test_qwen_image_has_the_layout_of_wan(tmp_path, monkeypatch):
    repeated_exactly(monkeypatch)
    theirs = wan("AutoencoderKLQwenImage")
    theirs.save_pretrained(tmp_path)
    theirs.double()
    codec = streamenc.load(tmp_path, dtype=torch.float64)
    assert codec.spec.name == "wan"
    for frames in (1, 5):
        x = video(frames, 16, 8, torch.float64)
        z = encoded(theirs, x)
        assert_close(codec.encode(x), z, 1e-10)
        assert_close(codec.decode(z), decoded(theirs, z), 1e-10)
    beside = streamenc.load(tmp_path / WEIGHTS, part="encoder", normalised=True)
    assert beside.encoder.statistics.mean == (0.5, -1.0, 0.0, 2.0)


def test_one_side_needs_no_other(tmp_path):
    _, codec = pair(tmp_path, "2.2", torch.float32)
    path = tmp_path / WEIGHTS
    whole = load_file(path)
    x = video(5, 16, 16, torch.float32)
    z = codec.encode(x)
    for side, projection in (("encoder", "quant_conv"), ("decoder", "post_quant_conv")):
        inside = (f"{side}.", f"{projection}.")
        save_file({n: t for n, t in whole.items() if n.startswith(inside)}, path)
        one = streamenc.load(tmp_path, part=side)
        if side == "encoder":
            assert torch.equal(one.encode(x), z)
        else:
            assert torch.equal(one.decode(z), codec.decode(z))
        with pytest.raises(CheckpointError, match="has no (en|de)coder"):
            streamenc.load(tmp_path)


def test_tensors_that_do_not_fit(tmp_path):
    wan(**CONFIGS["2.1"]).save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    whole = load_file(path)
    missing = None
    for name, change in {
        "encoder.conv_in.weight": lambda t: t[:, :2].contiguous(),
        "encoder.mid_block.attentions.0.to_qkv.weight": lambda t: missing,
        "encoder.down_blocks.0.norm2.gamma": lambda t: missing,
        "encoder.down_blocks.1.conv1.weight": lambda t: missing,
        "encoder.down_blocks.2.resample.1.weight": lambda t: t[:2].contiguous(),
        "encoder.down_blocks.3.conv2.weight": lambda t: t[..., :2].contiguous(),
        "decoder.up_blocks.1.resnets.0.conv1.weight": lambda t: t[:, :-1].contiguous(),
        "decoder.up_blocks.0.upsamplers.0.time_conv.bias": lambda t: t[:-1].contiguous(),
        "decoder.conv_out.weight": lambda t: t[0].contiguous(),
        "decoder.norm_out.gamma": lambda t: t * math.nan,
        "quant_conv.weight": lambda t: t[:-1].contiguous(),
        "encoder.down_blocks.99.conv1.weight": lambda t: whole["quant_conv.weight"].clone(),
    }.items():
        changed = {**whole, name: change(whole.get(name))}
        save_file({n: t for n, t in changed.items() if t is not missing}, path)
        with pytest.raises(CheckpointError, match="vae|Wan|tensor|wanted|belongs|not finite"):
            streamenc.load(tmp_path)
            pytest.fail(f"a changed {name} was taken")


def test_shortcuts_and_frames_that_the_published_code_does_not_have(tmp_path):
    wan(dim_mult=[1, 1, 1, 1], temperal_downsample=[True, True, True]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="8 frames to a latent; wanted 4 at most"):
        streamenc.load(tmp_path)
    wan(**CONFIGS["2.2"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    path, gone = tmp_path / WEIGHTS, "encoder.down_blocks.1.downsampler."
    save_file({n: t for n, t in load_file(path).items() if not n.startswith(gone)}, path)
    with pytest.raises(CheckpointError, match="no shortcut fits its encoder: 3 channels"):
        streamenc.load(tmp_path)


def test_configs_that_do_not_fit(tmp_path):
    wan(**CONFIGS["2.2"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, value in (
        ("patch_size", 4),
        ("is_residual", False),
        ("z_dim", 16),
        ("temperal_downsample", [True, True, False]),
        ("latents_mean", [0.0] * 3),
        ("latents_std", "2"),
        ("latents_std", [1.0, 0.0, 1.0, 1.0]),
        ("latents_std", [1.0, math.inf, 1.0, True]),
    ):
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError, match=key):
            streamenc.load(tmp_path, normalised=True)
            pytest.fail(f"{key} {value} was taken")


def test_published_specs():
    for name in LISTED:
        if name.startswith("Wan-AI/"):
            spec = published_spec(name)
            grouped = "2.2" in name
            assert spec.output.channels == (48 if grouped else 16)
            assert spec.input.image.unit == (16 if grouped else 8)
            assert spec.input.rate == (24 if grouped else 16) and spec.hop == 4
