"""VQGAN and MoVQ: codes equal to diffusers', from both layouts, and decoded as it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, InputError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import DTYPES, delivered, images
from tests.support.ldm import ldm_tensors

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {},
    "aMUSEd": {
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
    "MoVQ": references.MOVQ_SMALL,
    "MoVQ without attention": {**references.MOVQ_SMALL, "mid_block_add_attention": False},
}


def pair(folder: Path, config: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """diffusers' model, and ours from its folder."""
    theirs = references.vqgan(**CONFIGS[config])
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **options)


def encoded(theirs: Any, x: Tensor) -> Tensor:
    """Codes of each image alone, (batch, 1, images, height, width)."""
    with torch.inference_mode():
        latents = theirs.encode(x.movedim(2, 1).flatten(0, 1)).latents
        codes = theirs.quantize(latents)[2][2].view(len(latents), 1, *latents.shape[2:])
        return codes.unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


def decoded(theirs: Any, codes: Tensor) -> Tensor:
    flat = codes.movedim(2, 1).flatten(0, 1)[:, 0]
    with torch.inference_mode():
        given: dict[str, Any] = {"h": theirs.quantize.embedding(flat).permute(0, 3, 1, 2)}
        if theirs.config.lookup_from_codebook:
            given = {"h": flat, "shape": (*flat.shape, given["h"].shape[1])}
        y = theirs.decode(**given, force_not_quantize=True).sample
        return y.unflatten(0, (codes.shape[0], codes.shape[2])).movedim(1, 2)


@pytest.mark.parametrize("config", CONFIGS)
@DTYPES
def test_codes_and_images_equal_diffusers(tmp_path, config, dtype, rel):
    theirs, codec = pair(tmp_path, config, dtype)
    for height, width in ((16, 24), (8, 4)):
        x = images(5, height, width, dtype, batch=2)
        wanted = encoded(theirs, x)
        codes = delivered(codec.stream(batch=2, hops=2), x, [1, 3])
        assert codes.dtype == torch.int64
        assert codes.unique().numel() > 2
        # A tie in float32 may fall to another entry.
        assert (codes != wanted).float().mean() <= (0 if dtype == torch.float64 else 1e-3)
        y = delivered(codec.decode_stream(batch=2, hops=2), codes, [2, 1])
        assert_close(y, decoded(theirs, codes), rel)
        assert y.shape == x.shape


@pytest.mark.parametrize(
    ("config", "ending"),
    [("attention", ".ckpt"), ("attention", ".safetensors"), ("MoVQ", ".ckpt")],
)
def test_taming_transformers_layout(tmp_path, config, ending):
    """Its own groups are 32; here the config beside the file says fewer."""
    theirs, codec = pair(tmp_path / "folder", config, torch.float64)
    tensors = ldm_tensors(theirs.float().state_dict(), 3)
    tensors["loss.discriminator.main.0.weight"] = torch.zeros(2)
    tensors["ema_decoder.conv_inweight"] = torch.zeros(2)
    other = tmp_path / "other"
    other.mkdir()
    groups = theirs.config.norm_num_groups
    (other / "config.json").write_text(json.dumps({"norm_num_groups": groups}))
    if ending == ".ckpt":
        torch.save({"state_dict": tensors, "epoch": 3}, other / "last.ckpt")
    else:
        save_file(tensors, other / "vqgan.safetensors")
    found = streamenc.load(other, dtype=torch.float64)
    assert found.spec == codec.spec
    x = images(3, 16, 16, torch.float64)
    codes = codec.encode(x)
    assert torch.equal(found.encode(x), codes)
    assert_close(found.decode(codes), codec.decode(codes), 1e-12)


def test_what_it_promises(tmp_path):
    _, codec = pair(tmp_path, "attention", torch.float32)
    spec = codec.spec
    assert spec.output.kind == "codes" and spec.output.dtype == "uint16" and spec.output.axes == 2
    assert spec.codebook_size == 40 and spec.output.channels == 1
    assert spec.input.image == ImageSize(4, None, 0, "lanczos")
    stream = codec.stream(codebooks=1)
    assert stream.push(images(2, 8, 8, torch.float32)).shape == (1, 1, 2, 2, 2)
    assert stream.push(images(1, 8, 8, torch.float32)[:, :, :0]).shape == (1, 1, 0, 2, 2)
    published = published_spec("amused/amused-256/vqvae")
    assert published.codebook_size == 8192 and published.output.dtype == "uint16"
    assert published.input.image == ImageSize(16, None, 0, "lanczos")


def test_parts_are_loaded_alone(tmp_path):
    theirs, both = pair(tmp_path, "attention", torch.float32)
    x = images(1, 8, 8, torch.float32)
    codes = both.encode(x)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = theirs.state_dict()
    save_file({n: t for n, t in tensors.items() if not n.startswith("decoder")}, file)
    assert torch.equal(streamenc.load(tmp_path, part="encoder").encode(x), codes)
    save_file({n: t for n, t in tensors.items() if not n.startswith("encoder")}, file)
    y = streamenc.load(tmp_path, part="decoder").decode(codes)
    assert torch.equal(y, both.decode(codes))


def test_what_does_not_fit(tmp_path):
    theirs, codec = pair(tmp_path, "attention", torch.float32)
    codes = codec.encode(images(1, 8, 8, torch.float32))
    for bad, words in (
        (codes + 40, r"vqgan has entries 0\.\.39"),
        (codes.float(), "integers"),
        (codes[0, 0], "wants"),
    ):
        with pytest.raises(InputError, match=words):
            codec.decode(bad)
    with pytest.raises(InputError, match="1 to 1 codebooks"):
        codec.encode(images(1, 8, 8, torch.float32), codebooks=2)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_type": "spatial"}))
    with pytest.raises(CheckpointError, match="'spatial', but .* is not modulated"):
        streamenc.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_type": "layer"}))
    with pytest.raises(CheckpointError, match="norm_type 'layer'"):
        streamenc.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = theirs.state_dict()
    tensors["quantize.embedding.weight"] = torch.zeros(40, 7)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="6 channels where the codebook has 7"):
        streamenc.load(tmp_path)
    del tensors["quantize.embedding.weight"]
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="quantize.embedding.weight"):
        streamenc.load(f"vqgan:{tmp_path}")


def test_a_movq_is_never_another_kind(tmp_path):
    theirs, _ = pair(tmp_path, "MoVQ", torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_type": "group"}))
    with pytest.raises(CheckpointError, match="'group', but .* is modulated .*conv_y.weight"):
        streamenc.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = theirs.state_dict()
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    for missing, words in (
        ("decoder.conv_norm_out.conv_b.weight", "conv_norm_out.conv_b.weight"),
        ("decoder.mid_block.resnets.0.norm1.conv_y.bias", "norm1.conv_y.bias"),
    ):
        save_file({n: t for n, t in tensors.items() if n != missing}, file)
        with pytest.raises(CheckpointError, match=words):
            streamenc.load(tmp_path)
    save_file({n: t for n, t in tensors.items() if "conv_norm_out.conv_y" not in n}, file)
    with pytest.raises(CheckpointError, match="not modulated"):
        streamenc.load(tmp_path)
    save_file({**tensors, "decoder.conv_norm_out.conv.weight": torch.zeros(4, 4, 3, 3)}, file)
    with pytest.raises(CheckpointError, match="conv_norm_out.conv.weight belongs to no layer"):
        streamenc.load(tmp_path)
    del tensors["quantize.embedding.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"modulated, as in MoVQ"):
        streamenc.load(f"vae:{tmp_path}")
