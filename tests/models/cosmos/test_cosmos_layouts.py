"""Cosmos in NVIDIA's archives; the models of codes and of images, which diffusers does not have."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.fsq import FSQ
from streamenc.models.families import LISTED
from streamenc.registry import published_spec
from tests.support import references, zoo
from tests.support.compare import assert_close, poisoned_memory
from tests.support.cosmos_clips import decoded, delivered, encoded, pair, video

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]


# NVIDIA's names, from diffusers': what its modules are called in modules/layers3d.py.
NVIDIA = [
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.attentions\.(\d)", r"down.\1.attn.\2.0"),
    (r"down_blocks\.(\d)\.temp_attentions\.(\d)", r"down.\1.attn.\2.1"),
    (r"down_blocks\.(\d)\.downsamplers\.0\.(conv\d)", r"down.\1.downsample.\2.conv3d"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{2 - int(m[1])}.block"),
    (r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"up.{2 - int(m[1])}.attn.{m[2]}.0"),
    (r"up_blocks\.(\d)\.temp_attentions\.(\d)", lambda m: f"up.{2 - int(m[1])}.attn.{m[2]}.1"),
    (
        r"up_blocks\.(\d)\.upsamplers\.0\.(conv\d)",
        lambda m: f"up.{2 - int(m[1])}.upsample.{m[2]}.conv3d",
    ),
    (r"mid_block\.attentions\.0", "mid.attn_1.0"),
    (r"mid_block\.temp_attentions\.0", "mid.attn_1.1"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"conv_shortcut", "nin_shortcut.conv3d"),
    (r"conv_s\.", "0.conv3d."),
    (r"conv_t\.", "1.conv3d."),
    (r"to_([qkv])\.", r"\1.conv3d."),
    (r"to_out\.0\.", "proj_out.conv3d."),
    (r"quant_conv\.", "quant_conv.conv3d."),
]


class Holder(nn.Module):
    """Parameters under any dotted names, as an archive holds them."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_archive(path: Path, tensors: dict[str, Tensor]) -> None:
    root = Holder()
    for name, tensor in tensors.items():
        *modules, last = name.split(".")
        at: nn.Module = root
        for part in modules:
            if part not in dict(at.named_children()):
                at.add_module(part, Holder())
            at = getattr(at, part)
        at.register_buffer(last, tensor.clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(path))


def nvidia_tensors(theirs: Any) -> dict[str, Tensor]:
    """With all convolutions of each sampler, as NVIDIA's modules have them, used or not."""
    tensors = {}
    for side, stage, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        for i in (0, 1) if side == "encoder" else (1, 2):
            for conv in ("conv1", "conv2", "conv3"):
                name = f"{side}.{stage}.{i}.{sampler}.{conv}.conv3d"
                tensors[f"{name}.weight"] = torch.randn(10, 10, 3, 1, 1)
                tensors[f"{name}.bias"] = torch.randn(10)
    for name, tensor in theirs.state_dict().items():
        for pattern, to in NVIDIA:
            name = re.sub(pattern, to, name)
        tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        ("4x8x8", "4x8x8"),
        pytest.param("8x8x8", "8x8x8", marks=pytest.mark.slow),
        ("8x16x16", "8x16x16"),
        pytest.param("blocks", "8x8x8", marks=pytest.mark.slow),
    ],
)
def test_nvidia_archives(tmp_path, config, factors):
    theirs, _ = pair(tmp_path / "diffusers", config, torch.float32)
    tensors = nvidia_tensors(theirs)
    assert "encoder.down.0.block.0.conv1.0.conv3d.weight" in tensors
    wavelets = {
        "patcher3d.wavelets": torch.full((2,), 0.5**0.5),
        "patcher3d._arange": torch.ones(2),
    }
    encoder = {n: t for n, t in tensors.items() if n.startswith(("encoder.", "quant_conv."))}
    decoder = {n: t for n, t in tensors.items() if n not in encoder}
    folder = tmp_path / f"Cosmos-Tokenizer-CV{factors}"
    folder.mkdir()
    save_archive(folder / "encoder.jit", encoder | {f"encoder.{k}": v for k, v in wavelets.items()})
    save_archive(folder / "decoder.jit", decoder)
    save_archive(folder / "autoencoder.jit", tensors)
    x = video(17, 16, 16, torch.float64)
    z = encoded(theirs.double(), x)
    for where in (folder, folder / "autoencoder.jit"):
        codec = streamenc.load(where, dtype=torch.float64)
        assert_close(codec.encode(x), z, 1e-6)  # its wavelet is float64's, rounded to float32
        assert_close(codec.decode(z), decoded(theirs, z), 1e-10)
    (folder / "decoder.jit").unlink()
    assert_close(streamenc.load(folder, part="encoder").encode(x.float()), z, 1e-5)
    folder.rename(tmp_path / "renamed")
    folder = tmp_path / "renamed"
    with pytest.raises(UsageError, match="does not say by which factors"):
        streamenc.load(folder, part="encoder")
    for wrong in ("8x8", "8x8x16", "2x8x8", "32x64x64", "12x8x8", 8):
        with pytest.raises(UsageError, match="factors"):
            streamenc.load(folder, part="encoder", factors=wrong)
            pytest.fail(f"factors={wrong!r} was taken")
    assert_close(streamenc.load(folder, part="encoder", factors=factors).encode(x), z, 1e-5)
    with pytest.raises(CheckpointError, match="no decoder"):
        streamenc.load(folder, factors=factors)


def test_a_wavelet_in_half_precision_is_taken_as_it_is(tmp_path):
    """An archive in bfloat16 rounds it; the published model then computes with that."""
    theirs, _ = pair(tmp_path / "diffusers", "4x8x8", torch.float32)
    rounded = torch.full((2,), 0.5**0.5).bfloat16()
    save_archive(
        tmp_path / "encoder.jit",
        {**nvidia_tensors(theirs), "encoder.patcher3d.wavelets": rounded},
    )
    theirs.encoder.patch_embed.wavelets.copy_(rounded)
    x = video(5, 8, 8, torch.float64)
    codec = streamenc.load(
        tmp_path / "encoder.jit", part="encoder", dtype=torch.float64, factors="4x8x8"
    )
    assert_close(codec.encode(x), encoded(theirs.double(), x), 1e-10)


def test_codes_are_the_rounded_latents_and_decode_to_what_these_give(tmp_path):
    zoo.save_cosmos_codes(tmp_path)
    codec = streamenc.load(tmp_path, dtype=torch.float64)
    assert codec.spec.codebook_size == 64_000 and codec.spec.output.channels == 1
    x = video(21, 16, 24, torch.float64)
    codes = codec.encode(x)
    assert codes.shape == (1, 1, 6, 2, 3) and codes.dtype == torch.int64
    latents = codec.encoder(codec.encoder.before(x))
    assert torch.equal(codes, FSQ((8, 8, 8, 5, 5, 5)).encode(latents))
    assert codec.decode(codes).shape == (1, 3, 21, 16, 24)
    every = torch.randint(64_000, (1, 1, 7, 2, 3), generator=torch.Generator().manual_seed(0))
    whole = codec.decode(every)
    assert_close(delivered(codec.decode_stream(), every, [1, 2]), whole, 1e-12)
    other = streamenc.load(tmp_path, levels=(8, 5, 5, 4, 3, 3))
    assert other.spec.codebook_size == 7200
    path = tmp_path / "model.safetensors"
    stored = {"quantizer._levels": torch.tensor([4, 4, 4, 3, 3, 3], dtype=torch.int32)}
    save_file({**load_file(path), **stored}, path)
    assert streamenc.load(tmp_path).decoder.spec.codebook_size == 1728
    for levels in [(8, 8), (8, 8, 8, 5, 5, 1), ("x",) * 6, "8,8"]:
        with pytest.raises(UsageError, match="levels"):
            streamenc.load(tmp_path, levels=levels)


def haar(x: Tensor) -> Tensor:
    """One level of the image transform, by convolutions: width outside, height inside."""
    s = 0.5**0.5
    bands = []
    for w in (1.0, -1.0):
        for h in (1.0, -1.0):
            kernel = torch.tensor([[s * s, w * s * s], [h * s * s, w * h * s * s]]).to(x)
            kernel = kernel.expand(x.shape[1], 1, 2, 2)
            bands.append(F.conv2d(x, kernel, stride=2, groups=x.shape[1]) / 2)
    return torch.cat(bands, dim=1)


class Images:
    """The image model written down plainly, over (images, channels, height, width)."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.t = {name: tensor.double() for name, tensor in tensors.items()}

    def conv(self, x: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"], **how)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.t[f"{name}.weight"], self.t[f"{name}.bias"], 1e-6)

    def block(self, x: Tensor, name: str) -> Tensor:
        y = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        return x + self.conv(F.silu(self.norm(y, f"{name}.norm2")), f"{name}.conv2", padding=1)

    def middle(self, x: Tensor, side: str) -> Tensor:
        x = self.block(x, f"{side}.mid.block_1")
        at = f"{side}.mid.attn_1"
        normed = self.norm(x, f"{at}.norm")
        q, k, v = (self.conv(normed, f"{at}.{part}").flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=-1)
        y = (v @ weights.transpose(1, 2)).reshape(x.shape)
        x = x + self.conv(y, f"{at}.proj_out")
        return self.block(x, f"{side}.mid.block_2")

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv(haar(haar(x)), "encoder.conv_in", padding=1)
        x = self.block(x, "encoder.down.0.block.0")
        x = self.conv(F.pad(x, (0, 1, 0, 1)), "encoder.down.0.downsample.conv", stride=2)
        x = F.silu(self.norm(self.middle(x, "encoder"), "encoder.norm_out"))
        return self.conv(self.conv(x, "encoder.conv_out", padding=1), "quant_conv")

    def decode(self, z: Tensor) -> Tensor:
        """As wavelet bands: `haar(haar(images))`."""
        x = self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in", padding=1)
        x = self.middle(x, "decoder")
        for j in range(2):
            x = self.block(x, f"decoder.up.0.block.{j}")
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.conv(x, "decoder.up.0.upsample.conv", padding=1)
        return self.conv(F.silu(self.norm(x, "decoder.norm_out")), "decoder.conv_out", padding=1)


def test_images_equal_the_plain_model(tmp_path):
    tensors = references.cosmos_image_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    codec, plain = streamenc.load(tmp_path, dtype=torch.float64), Images(tensors)
    x = video(3, 16, 24, torch.float64, batch=2)
    z = codec.encode(x)
    assert z.shape == (2, 4, 3, 2, 3)
    images = x.transpose(1, 2).flatten(0, 1)
    # The published wavelet is rounded to float32.
    assert_close(z.transpose(1, 2).flatten(0, 1), plain.encode(images), 1e-6)
    y = codec.decode(z)
    assert y.shape == x.shape
    bands = haar(haar(y.transpose(1, 2).flatten(0, 1)))
    assert_close(bands, plain.decode(z.transpose(1, 2).flatten(0, 1)), 1e-6)


def test_images_to_codes(tmp_path):
    save_file(
        references.cosmos_image_tensors(embedding=6, latent=20), tmp_path / "model.safetensors"
    )
    codec = streamenc.load(tmp_path)
    codes = codec.encode(video(2, 8, 16, torch.float32))
    assert codes.shape == (1, 1, 2, 1, 2) and codec.spec.codebook_size == 64_000
    assert codec.decode(codes).shape == (1, 3, 2, 8, 16)
    with pytest.raises(UsageError, match="each image alone"):
        streamenc.load(tmp_path, mode="window")


def test_weights_that_do_not_fit(tmp_path):
    references.cosmos().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    for name, change in {
        "encoder.mid_block.attentions.0.to_q.weight": lambda t: None,
        "encoder.conv_in.conv_t.weight": lambda t: t.transpose(2, 3).contiguous(),
        "decoder.conv_out.conv_s.weight": lambda t: t[:-1].contiguous(),
        "encoder.down_blocks.0.resnets.0.norm1.norm.weight": lambda t: t * math.nan,
        "quant_conv.weight": lambda t: t.flatten(),
    }.items():
        changed = {**whole, name: change(whole[name])}
        save_file({n: t for n, t in changed.items() if t is not None}, path)
        with pytest.raises(CheckpointError):
            streamenc.load(tmp_path)
            pytest.fail(f"a changed {name} was taken")


def test_published_specs():
    hops = {}
    for name in LISTED:
        if "Cosmos" in name:
            spec = published_spec(name)
            hops[name.rpartition("-")[2]] = spec.hop
            assert spec.lead == 1 and spec.codebook_size == (64_000 if "-D" in name else 0)
            assert spec.output.channels == (1 if "-D" in name else 16)
    videos = {
        f"{kind}V{size}": int(size[0]) for kind in "CD" for size in ("4x8x8", "8x8x8", "8x16x16")
    }
    assert hops == videos | {f"{kind}I{size}": 1 for kind in "CD" for size in ("8x8", "16x16")}


@pytest.mark.parametrize(("part", "rate"), [("both", "spec"), ("decoder", "decoder.spec.output")])
def test_images_have_no_sample_rate(tmp_path, part, rate):
    pair(tmp_path, "4x8x8", torch.float32)
    codec = streamenc.load(tmp_path, part=part)
    with pytest.raises(UsageError, match=f"has no sample rate; .* are {rate}.*rate"):
        _ = codec.sample_rate
