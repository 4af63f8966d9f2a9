"""TAESD: equal to diffusers and to the author's layout; PSNR on real frames with real weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import streamenc
from streamenc.errors import CheckpointError, InputError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import DTYPES, delivered, images, real_frames, weights

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]


def pair(folder: Path, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """diffusers' model, and ours from its folder."""
    theirs = references.taesd()
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **options)


def each(module: Any, x: Tensor) -> Tensor:
    """Each image alone."""
    with torch.inference_mode():
        y = module(x.movedim(2, 1).flatten(0, 1))
        return y.unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


@DTYPES
def test_both_sides_equal_diffusers(tmp_path, dtype, rel):
    theirs, codec = pair(tmp_path, dtype)
    for height, width in ((16, 24), (4, 4)):
        x = images(5, height, width, dtype, batch=2)
        z = each(lambda x: theirs.encode(x).latents, x)
        assert_close(delivered(codec.stream(batch=2, hops=2), x, [1, 3]), z, rel)
        y = each(lambda z: theirs.decode(z).sample, z)
        assert_close(delivered(codec.decode_stream(batch=2), z, [2]), y, rel)


class Block(nn.Module):
    """A block of the author's layout, with the normalised branch of newer models."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        self.pool: nn.Module | None = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def author(latents: int = 5, width: int = 8) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder as sequences, whose numbers are the names of their tensors."""

    def conv(channels: int, out: int, **options: Any) -> nn.Conv2d:
        return nn.Conv2d(channels, out, 3, padding=1, **options)

    encoder = nn.Sequential(
        conv(3, width),
        Block(width, False),
        conv(width, width, stride=2, bias=False),
        Block(width, False),
        conv(width, width, stride=2, bias=False),
        Block(width, True),
        Block(width, True),
        conv(width, latents),
    )
    decoder = nn.Sequential(
        Clamp(),
        conv(latents, width),
        nn.ReLU(),
        Block(width, True),
        nn.Upsample(scale_factor=2),
        conv(width, width, bias=False),
        Block(width, False),
        nn.Upsample(scale_factor=2),
        conv(width, width, bias=False),
        Block(width, False),
        conv(width, 3),
    )
    for module in (encoder, decoder):
        references.randomise(module)
    return encoder, decoder


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_the_authors_layout_in_two_files(tmp_path, ending):
    encoder, decoder = author()
    for side, module in (("encoder", encoder), ("decoder", decoder)):
        path = tmp_path / f"tiny_{side}{ending}"
        if ending == ".pth":
            torch.save(module.state_dict(), path)
        else:
            save_file(module.state_dict(), path)
        module.double()
    codec = streamenc.load(tmp_path, dtype=torch.float64)
    x = images(3, 12, 16, torch.float64)
    z = each(lambda x: encoder((x + 1) / 2), x)
    y = each(lambda z: 2 * decoder(z) - 1, z)
    assert_close(codec.encode(x), z, 1e-12)
    assert_close(codec.decode(z), y, 1e-12)
    alone = streamenc.load(tmp_path / f"tiny_encoder{ending}", part="encoder", dtype=torch.float64)
    assert_close(alone.encode(x), z, 1e-12)
    alone = streamenc.load(tmp_path / f"tiny_decoder{ending}", part="decoder", dtype=torch.float64)
    assert_close(alone.decode(z), y, 1e-12)
    with pytest.raises(CheckpointError, match="load the folder with both files"):
        streamenc.load(tmp_path / f"tiny_encoder{ending}")


@pytest.mark.parametrize(("part", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_one_part_leaves_the_other_file_alone(tmp_path, part, other):
    for side, module in zip(("encoder", "decoder"), author(), strict=True):
        torch.save(module.state_dict(), tmp_path / f"tiny_{side}.pth")
    (tmp_path / f"tiny_{other}.pth").write_bytes(b"no checkpoint")
    assert getattr(streamenc.load(tmp_path, part=part), part).scale == 4
    with pytest.raises(CheckpointError, match=f"tiny_{other}.pth is no readable"):
        streamenc.load(tmp_path)


def test_a_folder_of_several_models_is_not_guessed_at(tmp_path):
    for side, module in zip(("encoder", "decoder"), author(), strict=True):
        torch.save(module.state_dict(), tmp_path / f"tiny_{side}.pth")
    shutil.copy(tmp_path / "tiny_encoder.pth", tmp_path / "other_encoder.pth")
    with pytest.raises(CheckpointError, match="several"):
        streamenc.load(tmp_path)


def test_what_does_not_fit(tmp_path):
    _, codec = pair(tmp_path, torch.float32)
    assert codec.spec.input.image == ImageSize(4, None, 0, "lanczos")
    with pytest.raises(InputError, match="multiples of 4"):
        codec.encode(images(1, 6, 8, torch.float32))
    with pytest.raises(InputError, match=r"wants \(batch, 4, time"):
        codec.decode(torch.zeros(1, 3, 1, 2, 2))
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"act_fn": "silu"}, {"upsample_fn": "bilinear"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match="relu and nearest"):
            streamenc.load(tmp_path)
    spec = published_spec("madebyollin/taesd")
    assert spec.input.image == ImageSize(8, None, 0, "lanczos") and spec.output.channels == 4


# dB. The smallest clip, 176 x 144 pixels, has the finest detail for each latent.
LEAST = {"bigbuckbunny": 33, "bikes": 33, "carphone_pristine": 30}


@pytest.mark.parametrize("doubled", [False, True], ids=["as it is", "doubled"])
def test_psnr_of_real_frames_with_real_weights(doubled):
    codec = streamenc.load(weights("taef2_vae"))
    assert codec.spec.output.channels == 32 and codec.encoder.scale == 8
    for name, x in real_frames(count=2):
        if doubled and max(x.shape[2:]) > 400:
            continue
        if doubled:
            larger = nn.functional.interpolate(x.float(), scale_factor=2.0, mode="bicubic")
            x = larger.round().clamp(0, 255).to(torch.uint8)
        x = x[..., : x.shape[2] // 8 * 8, : x.shape[3] // 8 * 8]
        y = codec.decode(codec.encode(x))[0].clamp(-1, 1)
        errors = (y - (x / 127.5 - 1)).square().mean(dim=(0, 2, 3))
        psnr = [10 * math.log10(4 / error) for error in errors.tolist()]
        print(f"{name} {tuple(x.shape[2:])}: {', '.join(f'{value:.1f}' for value in psnr)} dB")
        assert min(psnr) >= (33 if doubled else LEAST.get(name, 33))
