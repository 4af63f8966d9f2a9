"""CLIP, SigLIP and SigLIP 2: equal to transformers for each output; layers, sizes, layouts."""

from __future__ import annotations

import json
from pathlib import Path
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

CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def published(theirs: Any, x: Tensor) -> dict[str, Tensor]:
    """What transformers gives for each output; x: (images, 3, height, width) in [-1, 1]."""
    kind = theirs.config.model_type
    x = normalised(x, **(CLIP if kind.startswith("clip") else HALF))
    given: dict[str, Any] = {"pixel_values": x}
    rows, columns = x.shape[2] // 4, x.shape[3] // 4
    if kind.startswith("siglip2"):
        # As its preparation does: patches of innermost colours, padded to one count, and a mask.
        patches = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 3, 5, 1)
        patches = patches.reshape(len(x), rows * columns, -1)
        given["pixel_values"] = torch.nn.functional.pad(patches, (0, 0, 0, 3), value=7.0)
        mask = torch.tensor([1] * rows * columns + [0] * 3).expand(len(x), -1)
        given["pixel_attention_mask"] = mask
        given["spatial_shapes"] = torch.tensor([[rows, columns]] * len(x))
    else:
        given["interpolate_pos_encoding"] = True
    tower = theirs if kind.endswith("vision_model") else theirs.vision_model
    tower = getattr(tower, "vision_model", tower)
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda m, taken, y: states.append(y[0] if isinstance(y, tuple) else y)
        )
        for layer in tower.encoder.layers
    ]
    with torch.inference_mode():
        found = tower(**given)
        places = slice(int(kind.startswith("clip")), rows * columns + kind.startswith("clip"))
        outputs = {
            "pooled": found.pooler_output,
            "patches": found.last_hidden_state[:, places],
            **{f"patches {i + 1}": state[:, places] for i, state in enumerate(states[:3])},
            "normed 2": tower.post_layernorm(states[1])[:, places],
        }
        if kind.startswith("clip"):
            outputs["cls"] = found.last_hidden_state[:, 0]
        if hasattr(theirs, "visual_projection"):
            outputs["embedding"] = theirs.visual_projection(found.pooler_output)
    for hook in hooks:
        hook.remove()
    for name, y in outputs.items():
        if y.ndim == 3:
            outputs[name] = y.transpose(1, 2).unflatten(-1, (rows, columns))
    return outputs


KINDS = {
    "clip": lambda: visiontowers.whole("clip"),
    "clip tower": lambda: visiontowers.tower("clip", hidden_act="gelu"),
    "clip projected": lambda: visiontowers.tower("clip projected", projection_dim=6),
    "siglip": lambda: visiontowers.whole("siglip"),
    "siglip tower": lambda: visiontowers.tower("siglip", hidden_act="gelu"),
    "siglip2": lambda: visiontowers.whole("siglip2"),
    "siglip2 tower": lambda: visiontowers.tower("siglip2"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "embedding": {"output": "embedding"},
    "cls": {"output": "cls"},
    "patches": {"output": "patches"},
    "patches 2": {"output": "patches", "layer": -2},
    "patches 3": {"output": "patches", "norm": "false"},
    "normed 2": {"output": "patches", "layer": 2, "norm": True},
}


@pytest.mark.parametrize("kind", KINDS)
@DTYPES
def test_each_output_equals_transformers(tmp_path, kind, dtype, rel):
    theirs = KINDS[kind]()
    theirs.save_pretrained(tmp_path)
    theirs = theirs.to(dtype)
    for size in ("12x12", "8x20"):
        width, height = map(int, size.split("x"))
        x = images(5, height, width, dtype, batch=2)
        wanted = published(theirs, x.movedim(2, 1).flatten(0, 1))
        # NaFlex's positions are resized in float32 in every type, and by another sum.
        near = max(rel, 1e-6) if kind.startswith("siglip2") and size != "12x12" else rel
        for output, options in OPTIONS.items():
            if output not in wanted:
                continue
            codec = streamenc.load(tmp_path, dtype=dtype, size=size, **options)
            y = delivered(codec.stream(batch=2, hops=2), x, [1, 3])
            expected = wanted[output].unflatten(0, (2, 5)).movedim(1, 2)
            assert_close(y, expected, near)


def test_transformers_4_has_the_tower_behind_a_name(tmp_path):
    theirs = visiontowers.tower("clip")
    theirs.save_pretrained(tmp_path)
    codec = streamenc.load(tmp_path, output="cls")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = streamenc.load(tmp_path, output="cls")
    x = images(1, 12, 12, torch.float32)
    assert torch.equal(again.encode(x), codec.encode(x))
    (tmp_path / "config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        streamenc.load(tmp_path)


def test_what_is_not_wanted_is_not_read(tmp_path):
    theirs = visiontowers.whole("siglip")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("vision_model.") and ".layers.2." not in name and ".head." not in name
    }
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    codec = streamenc.load(tmp_path, output="patches", layer=2, norm=False)
    assert len(codec.encoder.blocks) == 2 and codec.encoder.norm is None
    with pytest.raises(CheckpointError, match=r"layers\.2"):
        streamenc.load(tmp_path)


def test_published_specs():
    spec = published_spec("openai/clip-vit-base-patch32")
    assert spec.input.image == ImageSize(32, (224, 224), 224, "bicubic")
    assert spec.output.channels == 768 and spec.equality == "offline"
    spec = published_spec("google/siglip2-so400m-patch14-384")
    assert spec.input.image is not None and spec.input.image.unit == 14
    assert spec.output.channels == 1152
    spec = published_spec("google/siglip2-base-patch16-naflex")
    assert spec.input.image == ImageSize(16, (256, 256), 0, "bilinear")


def test_a_preparation_beside_the_weights(tmp_path):
    visiontowers.whole("clip").save_pretrained(tmp_path)
    said = {
        "size": {"shortest_edge": 12},
        "crop_size": {"height": 12, "width": 12},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": CLIP["mean"],
        "image_std": CLIP["std"],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert streamenc.load(tmp_path).spec.input.image == ImageSize(4, (12, 12), 12, "bicubic")
    codec = streamenc.load(tmp_path, size=24)
    assert codec.spec.input.image == ImageSize(4, (24, 24), 24, "bicubic")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    visiontowers.tower("clip").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"output": "tokens"}, UsageError, "one of pooled, embedding, cls, patches"),
        ({"layer": 1}, UsageError, "output=pooled is of the last layer"),
        ({"output": "cls", "layer": 4}, UsageError, "-4 to 3"),
        ({"output": "embedding"}, CheckpointError, "visual_projection.weight.*output=pooled"),
        ({"size": 13}, UsageError, "multiples of 4"),
        ({"part": "decoder"}, UsageError, "makes features; it has no decoder"),
    ],
)
def test_options_that_do_not_fit(clip, options, error, words):
    with pytest.raises(error, match=words):
        streamenc.load(clip, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 15}, "multiple of the heads"),
        ({"num_hidden_layers": 10**9}, "whole numbers"),
        ({"image_size": "12"}, "whole numbers"),
        ({"image_size": 3}, "no smaller than its patches"),
        ({"layer_norm_eps": float("nan")}, "small number"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"intermediate_size": 20}, "wants"),
        ({"image_size": 16}, "position_embedding"),
    ],
)
def test_configs_that_do_not_fit(clip, change, words):
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=words):
        streamenc.load(clip)


def test_towers_that_do_not_fit(tmp_path):
    visiontowers.tower("siglip", vision_use_head=False).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no head that pools its patches; load output=patches"):
        streamenc.load(tmp_path)
    assert streamenc.load(tmp_path, output="patches").spec.output.channels == 16
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"model_type": "clip_vision_model"}, "class_embedding"),
        ({"model_type": "siglip2_vision_model", "num_patches": 8}, "square number"),
        ({"model_type": "siglip2_vision_model", "num_patches": 9}, "wanted .16, 48."),
        ({"model_type": "siglip", "vision_config": [1]}, "wanted an object"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=words):
            streamenc.load(tmp_path, output="patches")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="none of its 1 tensors"):
        streamenc.load(tmp_path)
