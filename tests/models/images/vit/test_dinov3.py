"""DINOv3: equal to transformers for each output, at any size; layers, biases, layouts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from tests.support import visiontowers
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import DTYPES, delivered, images, normalised

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CONFIGS: dict[str, dict[str, Any]] = {
    "registers": {"num_register_tokens": 3},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 1},
    "biases": {"query_bias": False, "key_bias": True, "value_bias": False, "rope_theta": 7.0},
    "few biases": {"mlp_bias": False, "proj_bias": False, "num_register_tokens": 2},
}


@pytest.mark.parametrize("config", CONFIGS)
@DTYPES
def test_each_output_equals_transformers(tmp_path, config, dtype, rel):
    theirs = visiontowers.tower("dinov3", **CONFIGS[config])
    theirs.save_pretrained(tmp_path)
    theirs = theirs.to(dtype)
    before = 1 + theirs.config.num_register_tokens
    for size in ("12x12", "8x20"):
        width, height = map(int, size.split("x"))
        x = images(5, height, width, dtype, batch=2)
        states: list[Tensor] = []
        hook = theirs.model.layer[1].register_forward_hook(
            lambda m, taken, y, states=states: states.append(y[0] if isinstance(y, tuple) else y)
        )
        with torch.inference_mode():
            last = theirs(normalised(x.movedim(2, 1).flatten(0, 1), **IMAGENET)).last_hidden_state
            normed = theirs.norm(states[0])
        hook.remove()
        grid = (height // 4, width // 4)
        for options, wanted in (
            ({}, last[:, 0]),
            ({"layers": "2,3"}, torch.cat((states[0][:, 0], last[:, 0]), dim=-1)),
            ({"layer": -2, "norm": True}, normed[:, 0]),
            ({"output": "patches"}, last[:, before:].transpose(1, 2).unflatten(-1, grid)),
        ):
            codec = streamenc.load(tmp_path, dtype=dtype, size=size, **options)
            y = delivered(codec.stream(batch=2, hops=2), x, [1, 3])
            assert_close(y, wanted.unflatten(0, (2, 5)).movedim(1, 2), rel)


def test_the_names_in_memory_and_layers_that_nobody_wants(tmp_path):
    theirs = visiontowers.tower("dinov3", num_register_tokens=2)
    theirs.save_pretrained(tmp_path)
    x = images(1, 12, 12, torch.float32)
    y = streamenc.load(tmp_path, size=12, layer=2).encode(x)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {
        f"model.{name}" if name.startswith("layer.") else name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(("layer.2.", "norm."))
    }
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(streamenc.load(tmp_path, size=12, layer=2).encode(x), y)
    with pytest.raises(CheckpointError, match=r"layer\.2"):
        streamenc.load(tmp_path, size=12)


def test_published_specs():
    spec = published_spec("facebook/dinov3-vits16-pretrain-lvd1689m")
    assert spec.input.image == ImageSize(16, (224, 224), 0, "bilinear")
    assert spec.output.channels == 384 and spec.equality == "offline"
    assert published_spec("facebook/dinov3-vitb16-pretrain-lvd1689m").output.channels == 768


def test_what_does_not_fit(tmp_path):
    visiontowers.tower("dinov3", num_register_tokens=2).save_pretrained(tmp_path)
    for options, words in (
        ({"output": "pooled"}, "one of cls, patches"),
        ({"size": 13}, "multiples of 4"),
        ({"part": "decoder"}, "no decoder"),
    ):
        with pytest.raises(UsageError, match=words):
            streamenc.load(tmp_path, **options)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"num_attention_heads": 8}, "a multiple of 4"),
        ({"rope_theta": "100"}, "rope_theta '100'"),
        ({"rope_theta": float("inf")}, "rope_theta inf"),
        ({"num_register_tokens": -1}, "num_register_tokens -1"),
        ({"num_register_tokens": 3}, "register_tokens"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"use_gated_mlp": True}, "gate_proj"),
        ({"key_bias": True}, "k_proj.bias"),
        ({"num_hidden_layers": 2}, r"layer\.2\..* belongs to no layer"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=words):
            streamenc.load(tmp_path, size=12)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="none of its 1 tensors"):
        streamenc.load(tmp_path)
