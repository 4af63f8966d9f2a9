"""The VAE of latent diffusion: equal to diffusers, from both layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import DTYPES, delivered, images
from tests.support.ldm import ldm_tensors, old_tensors
from tests.support.profile import examples

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {},
    "no attention": {"mid_block_add_attention": False, "latent_channels": 6},
    "no projection": {"use_quant_conv": False, "use_post_quant_conv": False},
    "deeper": {"layers_per_block": 2, "norm_num_groups": 4},
}
FEW = settings(
    max_examples=examples(6, fast=3),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def pair(folder: Path, config: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """diffusers' model, and ours from its folder."""
    theirs = references.vae(**CONFIGS[config])
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **options)


def encoded(theirs: Any, x: Tensor) -> Tensor:
    """Each image alone, (batch, channels, images, height, width)."""
    with torch.inference_mode():
        z = theirs.encode(x.movedim(2, 1).flatten(0, 1)).latent_dist.mode()
        return z.unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


def decoded(theirs: Any, z: Tensor) -> Tensor:
    with torch.inference_mode():
        y = theirs.decode(z.movedim(2, 1).flatten(0, 1)).sample
        return y.unflatten(0, (z.shape[0], z.shape[2])).movedim(1, 2)


@pytest.mark.parametrize("config", CONFIGS)
@DTYPES
def test_any_delivery_equals_diffusers(tmp_path, config, dtype, rel):
    theirs, codec = pair(tmp_path, config, dtype)

    @FEW
    @given(
        count=st.integers(1, 5),
        sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        height=st.integers(2, 5),
        width=st.integers(2, 5),
        hops=st.sampled_from([1, 2]),
        batch=st.sampled_from([1, 2]),
    )
    def check(count, sizes, height, width, hops, batch):
        x = images(count, 4 * height, 4 * width, dtype, batch=batch)
        wanted = encoded(theirs, x)
        assert_close(delivered(codec.stream(batch=batch, hops=hops), x, sizes), wanted, rel)
        y = delivered(codec.decode_stream(batch=batch, hops=hops), wanted, sizes)
        assert_close(y, decoded(theirs, wanted), rel)

    check()


@pytest.mark.parametrize("layout", ["ldm", "whole model", "old names"])
def test_other_layouts(tmp_path, layout):
    theirs, codec = pair(tmp_path / "folder", "attention", torch.float64)
    tensors = theirs.float().state_dict()
    renamed = old_tensors(tensors) if layout == "old names" else ldm_tensors(tensors, 3)
    if layout == "whole model":
        renamed = {f"first_stage_model.{name}": t for name, t in renamed.items()}
        renamed["model.diffusion_model.out.2.weight"] = torch.zeros(4)
    config = tmp_path / "folder/config.json"
    where = tmp_path / ("vae.ckpt" if layout == "ldm" else "vae.safetensors")
    if layout == "ldm":
        torch.save({"state_dict": renamed}, where)
    else:
        save_file(renamed, where)
    # Two groups of the normalisation, which no tensor tells.
    with pytest.raises(CheckpointError, match="multiples of 32"):
        streamenc.load(where)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(config.read_text())
    where.rename(other / where.name)
    found = streamenc.load(other, dtype=torch.float64)
    x = images(2, 16, 8, torch.float64)
    z = codec.encode(x)
    assert_close(found.encode(x), z, 1e-12)
    assert_close(found.decode(z), codec.decode(z), 1e-12)


def test_latent_diffusion_names_are_those_that_diffusers_converts():
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs = references.vae(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3
    )
    tensors = theirs.state_dict()
    renamed = {f"first_stage_model.{n}": t for n, t in ldm_tensors(tensors, 3).items()}
    converted = convert_ldm_vae_checkpoint(renamed, dict(theirs.config))
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name].view_as(t), t) for name, t in tensors.items())


def test_a_single_file_of_the_published_groups(tmp_path):
    theirs = references.vae(block_out_channels=(32, 32, 64), norm_num_groups=32)
    save_file(ldm_tensors(theirs.state_dict(), 3), tmp_path / "vae.safetensors")
    codec = streamenc.load(tmp_path / "vae.safetensors")
    x = images(1, 16, 16, torch.float32)
    assert_close(codec.encode(x), encoded(theirs, x), 1e-5)


def test_parts_are_loaded_alone(tmp_path):
    theirs, both = pair(tmp_path, "attention", torch.float64)
    x = images(2, 8, 12, torch.float64)
    z = both.encode(x)
    tensors = theirs.float().state_dict()
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        save_file({n: t for n, t in tensors.items() if not n.startswith(other)}, file)
        one = streamenc.load(tmp_path, part=part, dtype=torch.float64)
        if part == "encoder":
            assert torch.equal(one.encode(x), z)
        else:
            assert torch.equal(one.decode(z), both.decode(z))
        with pytest.raises(UsageError, match=f"{other}"):
            getattr(one, other)
        with pytest.raises(CheckpointError, match=f"of the {other}; load the part"):
            streamenc.load(tmp_path)


def test_what_does_not_fit(tmp_path):
    _, codec = pair(tmp_path, "attention", torch.float32)
    assert codec.spec.input.image == ImageSize(4, None, 0, "lanczos")
    assert codec.spec.output.channels == 4 and codec.spec.output.axes == 2
    with pytest.raises(InputError, match="multiples of 4: crop or scale them to 12x8"):
        codec.encode(images(1, 9, 11, torch.float32))
    with pytest.raises(InputError, match=r"wants \(batch, 4, time"):
        codec.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(InputError, match="no codebooks"):
        codec.stream(codebooks=1)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"norm_num_groups": 0}, {"act_fn": "relu"}, {"norm_num_groups": 5}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=r"config\.json|multiples of 5"):
            streamenc.load(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "_class_name": "AutoencoderOobleck"})
    )
    with pytest.raises(CheckpointError, match="'AutoencoderOobleck'"):
        streamenc.load(tmp_path)


def test_published_spec():
    spec = published_spec("stabilityai/sd-vae-ft-mse")
    assert spec.input.image == ImageSize(8, None, 0, "lanczos") and spec.output.channels == 4
