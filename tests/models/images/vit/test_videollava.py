"""Video-LLaVA: equal to the published towers in both layouts; tails, selections, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from streamenc.testing import check_model
from streamenc.testing.contract import CHECKS
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import DTYPES, delivered, images, normalised
from tests.support.videollava import CHANNELS, FRAMES, Original, video_llava
from tests.support.visiontowers import TOWER

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def prepared(x: Tensor) -> Tensor:
    """(batch, 3, images, height, width) -> (batch * images, 3, height, width) of CLIP's values."""
    return normalised(x.movedim(2, 1).flatten(0, 1), **CLIP)


def row(states: Tensor, batch: int) -> Tensor:
    """(images, tokens, channels) -> (batch, channels, images, 1, tokens)."""
    return states.unflatten(0, (batch, -1)).movedim(-1, 1)[:, :, :, None]


def grid(states: Tensor, batch: int) -> Tensor:
    """The patches behind a class token, (batch, channels, images, rows, columns)."""
    return states[:, 1:].unflatten(0, (batch, -1)).movedim(-1, 1).unflatten(-1, (3, 3))


@DTYPES
def test_transformers_layout_is_frame_by_frame(tmp_path, dtype, rel):
    theirs = video_llava()
    theirs.save_pretrained(tmp_path)
    theirs = theirs.to(dtype)
    x = images(5, 12, 12, dtype, batch=2)
    pixels = prepared(x)
    with torch.inference_mode():
        videos = theirs.model.get_video_features(pixels[None]).pooler_output
        pictures = theirs.model.get_image_features(pixels).pooler_output
        states = theirs.model.video_tower(pixels, output_hidden_states=True).hidden_states
    codec = streamenc.load(tmp_path, dtype=dtype)
    assert codec.spec.equality == "offline" and "each frame alone" in codec.spec.note
    assert codec.spec.output.channels == CHANNELS
    y = delivered(codec.stream(batch=2, hops=2), x, [1, 3])
    assert_close(y, row(videos.reshape(10, 10, CHANNELS), 2), rel)
    behind_cls = torch.cat((torch.zeros_like(pictures[:, :1]), pictures), dim=1)
    codec = streamenc.load(tmp_path, dtype=dtype, tower="image")
    assert_close(codec.encode(x), grid(behind_cls, 2), rel)
    codec = streamenc.load(tmp_path, dtype=dtype, projector="no")
    assert_close(codec.encode(x), row(states[-2], 2), rel)
    codec = streamenc.load(tmp_path, dtype=dtype, projector=False, layers="1,3", output="patches")
    assert_close(codec.encode(x), grid(torch.cat((states[1], states[3]), dim=-1), 2), rel)


@DTYPES
def test_several_hidden_states_of_full_images(tmp_path, dtype, rel):
    theirs = video_llava(
        vision_feature_layer=[-2, 1],
        vision_feature_select_strategy="full",
        multimodal_projector_bias=False,
        projector_hidden_act="quick_gelu",
    )
    theirs.save_pretrained(tmp_path)
    x = images(2, 12, 12, dtype)
    with torch.inference_mode():
        wanted = theirs.to(dtype).model.get_image_features(prepared(x)).pooler_output
    codec = streamenc.load(tmp_path, dtype=dtype, tower="image")
    assert_close(codec.encode(x), row(wanted, 1), rel)


@DTYPES
def test_the_original_layout_is_window_by_window(tmp_path, dtype, rel):
    theirs = Original()
    theirs.save(tmp_path)
    theirs = theirs.to(dtype)
    codec = streamenc.load(tmp_path, dtype=dtype)
    spec = codec.spec
    assert (spec.lead, spec.hop, spec.hop_out, spec.delay) == (FRAMES, FRAMES, FRAMES, 0)
    assert spec.equality == "segment" and spec.note.startswith(f"windows of {FRAMES} sampled")
    for count in (3 * FRAMES, 2 * FRAMES + 3, 1, 2, 3):
        x = images(count, 12, 12, dtype, batch=2)
        y = delivered(codec.stream(batch=2, hops=2), x, [1, 3])
        assert y.shape == (2, CHANNELS, count, 1, 10)
        for start in range(0, count, FRAMES):
            window = x[:, :, start : start + FRAMES]
            size = window.shape[2]
            # As the published code samples a clip.
            picked = np.linspace(0, size - 1, FRAMES, dtype=int).tolist()
            with torch.inference_mode():
                states = theirs.hidden("video", prepared(window[:, :, picked]), 2)
                wanted = row(theirs.mm_projector(states), 2)
            first = [picked.index(n) for n in range(size)]
            assert_close(y[:, :, start : start + size], wanted[:, :, first], rel)
    x = images(3, 12, 12, dtype)
    with torch.inference_mode():
        states = theirs.mm_projector(theirs.hidden("image", prepared(x), 2))
    codec = streamenc.load(tmp_path, dtype=dtype, tower="image")
    assert codec.spec.hop == 1 and codec.spec.equality == "offline"
    assert_close(codec.encode(x), grid(states, 1), rel)


def test_windows_of_one_stream_are_not_those_of_another(tmp_path):
    """Frames see each other; the rest of the contract is shown of the zoo's row."""
    Original().save(tmp_path)
    company = {"batch", "idle lanes", "lanes"}
    encoder = streamenc.load(tmp_path).encoder
    check_model(encoder, dtype=torch.float64, examples=2, leave_out=CHECKS.keys() - company)


def test_towers_that_no_config_describes_have_the_published_activation(tmp_path):
    Original().save(tmp_path, vision_config=None)
    with pytest.raises(CheckpointError, match=r"cls wants \(1, 1, 1024\)"):
        streamenc.load(tmp_path)
    Original().save(tmp_path, vision_config={**TOWER, "hidden_act": "quick_gelu"})
    x = images(FRAMES, 12, 12, torch.float64)
    theirs = Original(act="quick_gelu").double()
    with torch.inference_mode():
        wanted = theirs.mm_projector(theirs.hidden("video", prepared(x), 2))
    assert_close(streamenc.load(tmp_path, dtype=torch.float64).encode(x), row(wanted, 1), 1e-12)
    Original().save(tmp_path, vision_config=TOWER)
    assert streamenc.load(tmp_path).encoder.shape.act == "gelu"


def test_published_specs():
    spec = published_spec("LanguageBind/Video-LLaVA-7B")
    assert (spec.hop, spec.equality, spec.output.channels) == (8, "segment", 4096)
    spec = published_spec("LanguageBind/Video-LLaVA-7B-hf")
    assert (spec.hop, spec.equality) == (1, "offline")
    assert spec.input.image == ImageSize(14, (224, 224), 224, "bicubic")


def test_the_language_model_is_not_read(tmp_path):
    theirs = video_llava()
    theirs.save_pretrained(tmp_path)
    x = images(1, 12, 12, torch.float32)
    y = streamenc.load(tmp_path).encode(x)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {
        f"model.{name.replace('_tower.', '_tower.vision_model.')}": tensor
        for name, tensor in tensors.items()
        if not name.startswith(("language_model.", "image_tower."))
        and not any(part in name for part in ("layers.2.", "post_layernorm"))
    }
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(streamenc.load(tmp_path).encode(x), y)
    with pytest.raises(CheckpointError, match=r"first layer of the tower \(image_tower"):
        streamenc.load(tmp_path, tower="image")


BLOCK = "model.video_tower.video_tower.encoder.layers.{}."


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (BLOCK.format(1) + "temporal_embedding", None, "layers.1.temporal_embedding"),
        (BLOCK.format(1) + "temporal_attn.k_proj.bias", None, "temporal_attn.k_proj.bias"),
        (BLOCK.format(1) + "temporal_mlp.fc1.weight", (2,), "temporal_mlp.fc1.weight belongs to"),
        (BLOCK.format(0) + "temporal_embedding", None, "temporal_attn.* belongs to no layer"),
        (BLOCK.format(0) + "temporal_embedding", (1, 1, 16), "2 to 1024"),
        (BLOCK.format(1) + "self_attn.q_proj.lora_A.weight", (2, 16), "merged first"),
        ("model.mm_projector.0.weight", (3,), "wanted .channels, 16."),
        ("model.mm_projector.2.bias", None, "mm_projector.2.bias"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, tensor: Any, words: str) -> None:
    Original().save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(tensor)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        streamenc.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"mm_vision_select_layer": "last"}, "hidden states 'last'"),
        ({"mm_vision_select_layer": []}, "whole numbers"),
        ({"mm_vision_select_layer": 4}, "whole numbers up to 3"),
        ({"mm_vision_select_feature": "cls"}, "one of patch, cls_patch"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
        ({"vision_config": [1]}, "wanted an object"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, config, words):
    Original().save(tmp_path, **config)
    with pytest.raises(CheckpointError, match=words):
        streamenc.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tower": "sound"}, "one of video, image"),
        ({"output": "cls"}, "one of tokens, patches"),
        ({"layer": 1}, "projector=false"),
        ({"projector": False, "layer": 4}, "-4 to 3"),
        ({"projector": "perhaps"}, "true or false"),
        ({"part": "decoder"}, "no decoder"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, words):
    Original().save(tmp_path)
    with pytest.raises(UsageError, match=words):
        streamenc.load(tmp_path, **options)


def test_a_llava_of_another_kind_is_not_taken_for_it(tmp_path):
    save_file({"vision_tower.x": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(CheckpointError, match="no known family"):
        streamenc.load(tmp_path)
