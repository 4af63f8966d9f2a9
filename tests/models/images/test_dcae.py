"""DC-AE: equal to diffusers in both directions; its parts, its blocks, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import delivered, images

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

CONFIGS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "sana": {
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "decoder_conv_act_fn": "silu",
    },
    "halved at once": {
        "encoder_layers_per_block": (0, 2, 1),
        "decoder_layers_per_block": (0, 1, 2),
        "encoder_out_shortcut": False,
        "decoder_in_shortcut": False,
    },
    "halved by steps": {
        "encoder_layers_per_block": (0, 1, 1),
        "decoder_layers_per_block": (0, 1, 1),
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
    },
}


def by_frames(call: Any, x: Tensor) -> Tensor:
    """What diffusers makes of each image alone, (batch, channels, images, ...)."""
    with torch.inference_mode():
        y: Tensor = call(x.movedim(2, 1).flatten(0, 1))
    return y.unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_latents_and_images_equal_diffusers(tmp_path, config, dtype):
    """Within float32's rounding: in every type diffusers normalises and attends in float32."""
    theirs = references.dcae(**CONFIGS[config])
    theirs.save_pretrained(tmp_path)
    theirs = theirs.to(dtype)
    codec = streamenc.load(tmp_path, dtype=dtype)
    # Few places are attended to in another order than many.
    for height, width in ((32, 24), (4, 8), (4, 4)):
        x = images(5, height, width, dtype, batch=2)
        latents = delivered(codec.stream(batch=2, hops=2), x, [1, 3])
        assert latents.shape == (2, 4, 5, height // 4, width // 4)
        assert_close(latents, by_frames(lambda x: theirs.encode(x).latent, x), 1e-5)
        y = delivered(codec.decode_stream(batch=2, hops=2), latents, [2, 1])
        assert_close(y, by_frames(lambda z: theirs.decode(z).sample, latents), 1e-5)
        assert y.shape == x.shape


def test_what_it_promises(tmp_path):
    references.dcae().save_pretrained(tmp_path)
    spec = streamenc.load(tmp_path).spec
    assert spec.input.image == ImageSize(4, None, 0, "lanczos") and spec.equality == "offline"
    for name, side, latents in (("f32c32", 32, 32), ("f64c128", 64, 128), ("f128c512", 128, 512)):
        spec = published_spec(f"mit-han-lab/dc-ae-{name}-in-1.0-diffusers")
        assert spec.input.image == ImageSize(side, None, 0, "lanczos")
        assert spec.output.channels == latents


def test_parts_are_loaded_alone(tmp_path):
    theirs = references.dcae()
    theirs.save_pretrained(tmp_path)
    both = streamenc.load(tmp_path)
    x = images(1, 8, 8, torch.float32)
    latents = both.encode(x)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = theirs.state_dict()
    save_file({n: t for n, t in tensors.items() if not n.startswith("decoder")}, file)
    assert torch.equal(streamenc.load(tmp_path, part="encoder").encode(x), latents)
    save_file({n: t for n, t in tensors.items() if not n.startswith("encoder")}, file)
    y = streamenc.load(tmp_path, part="decoder").decode(latents)
    assert torch.equal(y, both.decode(latents))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_block_out_channels": [8, 16]}, "whole numbers"),
        ({"encoder_block_out_channels": 8}, "whole numbers"),
        ({"encoder_layers_per_block": [1, 0, 1]}, "the first alone may have no layers"),
        ({"encoder_layers_per_block": [1, 1, 10**6]}, "whole numbers"),
        ({"latent_channels": 0}, "0 latents"),
        ({"latent_channels": 5}, "multiple of the latents"),
        ({"in_channels": 4}, "images of 4 channels"),
        ({"attention_head_dim": 3}, "heads of 3"),
        ({"encoder_block_types": "Transformer"}, "3 of ResBlock, EfficientViTBlock"),
        ({"encoder_qkv_multiscales": [[], [], [4]]}, "odd numbers"),
        ({"encoder_qkv_multiscales": [[], [], [5]]}, "wants"),
        ({"decoder_norm_types": "layer_norm"}, "3 of rms_norm, batch_norm"),
        ({"decoder_norm_types": "batch_norm"}, "running_mean"),
        ({"decoder_act_fns": ["relu"]}, "3 of relu, silu"),
        ({"decoder_conv_act_fn": "tanh"}, "1 of relu, silu"),
        ({"downsample_block_type": "pool"}, "pixel_unshuffle, Conv"),
        ({"decoder_layers_per_block": [1, 1, 2]}, "up_blocks.2.1"),
        ({"encoder_block_types": "ResBlock"}, "conv1"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, change, words):
    references.dcae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=words):
        streamenc.load(tmp_path)


def test_tensors_that_do_not_fit(tmp_path):
    theirs = references.dcae()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = theirs.state_dict()
    save_file({**tensors, "encoder.down_blocks.0.2.conv.bias": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"down_blocks\.0\.2\.conv\.bias belongs to no layer"):
        streamenc.load(tmp_path)
    save_file({n: t for n, t in tensors.items() if not n.endswith("attn.to_k.weight")}, file)
    with pytest.raises(CheckpointError, match=r"attn\.to_k\.weight"):
        streamenc.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        streamenc.load(f"dcae:{tmp_path}")
