"""ResNet: equal to transformers, and to a plain one for CIFAR-10; layers, sizes, layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.registry import published_spec
from streamenc.spec import ImageSize
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import DTYPES, delivered, images, normalised, real_frames, weights

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CONFIGS: dict[str, dict[str, Any]] = {
    "bottleneck": {},
    "basic": {"layer_type": "basic"},
    "halved first": {"downsample_in_first_stage": True, "downsample_in_bottleneck": True},
}


def pair(folder: Path, config: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """transformers' model, and ours from its folder."""
    theirs = references.resnet(**CONFIGS[config])
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **{"size": "any", **options})


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("height", "width"), [(32, 48), (37, 29)])
@DTYPES
def test_each_output_equals_transformers(tmp_path, config, height, width, dtype, rel):
    theirs, codec = pair(tmp_path, config, dtype)
    x = images(4, height, width, dtype, batch=2)
    pixels = normalised(x.movedim(2, 1).flatten(0, 1), **IMAGENET)
    with torch.inference_mode():
        found = theirs(pixels, output_hidden_states=True)

    def timed(state: Tensor) -> Tensor:
        return state.unflatten(0, (2, 4)).movedim(1, 2)

    pooled = [timed(state.mean(dim=(2, 3))) for state in found.hidden_states]
    assert_close(codec.encode(x), timed(found.pooler_output[..., 0, 0]), rel)
    _, codec = pair(tmp_path, config, dtype, layers="0,2,-1")
    y = delivered(codec.stream(batch=2, hops=2), x, [1, 2])
    assert_close(y, torch.cat([pooled[0], pooled[2], pooled[3]], dim=1), rel)
    for layer in range(4):
        _, codec = pair(tmp_path, config, dtype, output="grid", layer=layer)
        assert len(codec.encoder.stages) == layer
        wanted = timed(found.hidden_states[layer])
        stream = codec.stream(batch=2)
        assert_close(delivered(stream, x, [3]), wanted, rel)
        stream.push(x[:, :, :1])
        assert stream.push(x[:, :, :0]).shape == (*wanted.shape[:2], 0, *wanted.shape[3:])


class Plain(torch.nn.Module):
    """The paper's section 4.2, written without any thought of speed or options."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def unit(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        get = self.tensors
        x = F.conv2d(x, get[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            get[f"{norm}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def forward(self, x: Tensor) -> list[Tensor]:
        states = [F.relu(self.unit(x, "module.conv1", "module.bn1"))]
        for stage in (1, 2, 3):
            x, block = states[-1], 0
            while f"module.layer{stage}.{block}.conv1.weight" in self.tensors:
                at = f"module.layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = F.relu(self.unit(x, f"{at}.conv1", f"{at}.bn1", stride))
                y = self.unit(y, f"{at}.conv2", f"{at}.bn2")
                short = torch.zeros_like(y)
                first = (y.shape[1] - x.shape[1]) // 2
                short[:, first : first + x.shape[1]] = x[:, :, ::stride, ::stride]
                x, block = F.relu(y + short), block + 1
            states.append(x)
        return states

    def logits(self, x: Tensor) -> Tensor:
        get = self.tensors
        pooled = self.forward(x)[-1].mean(dim=(2, 3))
        return pooled @ get["module.linear.weight"].T + get["module.linear.bias"]


def cifar_tensors(blocks: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes: dict[str, tuple[int, ...]] = {"module.conv1": (16, 3, 3, 3)}
    before = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            shapes[f"module.layer{stage}.{block}.conv1"] = (width, before, 3, 3)
            shapes[f"module.layer{stage}.{block}.conv2"] = (width, width, 3, 3)
            before = width
    tensors = {}
    for name, shape in shapes.items():
        fan = torch.Size(shape[1:]).numel()
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan**0.5
        norm = name.replace("conv", "bn")
        for part in ("weight", "running_var"):
            tensors[f"{norm}.{part}"] = 0.5 + torch.rand(shape[0], generator=generator)
        for part in ("bias", "running_mean"):
            tensors[f"{norm}.{part}"] = 0.1 * torch.randn(shape[0], generator=generator)
        tensors[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    tensors["module.linear.weight"] = torch.randn(10, 64, generator=generator)
    tensors["module.linear.bias"] = torch.zeros(10)
    return tensors


@DTYPES
def test_cifar_equals_a_plain_network(tmp_path, dtype, rel):
    tensors = cifar_tensors()
    torch.save({"state_dict": tensors, "best_prec1": 91.0}, tmp_path / "resnet14.th")
    plain = Plain({name: tensor.to(dtype) for name, tensor in tensors.items()})
    x = images(5, 32, 32, dtype)
    states = plain(normalised(x[0].transpose(0, 1), **IMAGENET))
    pooled = [state.mean(dim=(2, 3)).T[None] for state in states]
    where = tmp_path / "resnet14.th"
    codec = streamenc.load(where, dtype=dtype)
    assert codec.spec.input.image == ImageSize(1, (32, 32), 32, "area")
    assert codec.spec.output.channels == 64
    assert_close(delivered(codec.stream(), x, [2]), pooled[3], rel)
    codec = streamenc.load(where, dtype=dtype, layer="all")
    assert_close(codec.encode(x), torch.cat(pooled, dim=1), rel)
    codec = streamenc.load(where, dtype=dtype, layer=2, output="grid")
    assert_close(codec.encode(x), states[2].transpose(0, 1)[None], rel)
    with pytest.raises(InputError, match="loaded for 32x32"):
        codec.encode(images(1, 33, 32, dtype))
    without = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    save_file(without, tmp_path / "resnet.safetensors")
    again = streamenc.load(tmp_path / "resnet.safetensors", dtype=dtype)
    assert_close(again.encode(x), pooled[3], rel)


def test_a_classifier_on_top_is_not_read_nor_are_later_stages(tmp_path):
    import transformers

    config = references.resnet().config
    theirs = transformers.ResNetForImageClassification(config).eval()
    references.randomise(theirs)
    theirs.save_pretrained(tmp_path)
    x = images(1, 32, 32, torch.float32)
    with torch.inference_mode():
        wanted = theirs.resnet(normalised(x[0].transpose(0, 1), **IMAGENET)).pooler_output
    assert_close(streamenc.load(tmp_path, size="any").encode(x)[0, :, 0], wanted[0, :, 0, 0], 1e-5)
    before = streamenc.load(tmp_path, size="any", layer=1).encode(x)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if "stages.1" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(streamenc.load(tmp_path, size="any", layer=1).encode(x), before)
    with pytest.raises(CheckpointError, match=r"stages\.1"):
        streamenc.load(tmp_path, layer=2)


def test_the_published_preparation(tmp_path):
    _, codec = pair(tmp_path, "basic", torch.float32, size=None)
    assert codec.spec.input.image == ImageSize(1, (224, 224), 256, "bicubic")
    assert codec.spec.input.image == published_spec("microsoft/resnet-50").input.image
    assert published_spec("microsoft/resnet-50").output.channels == 2048
    for said, image in (
        ({"size": 224, "crop_pct": 0.875, "resample": 3}, ImageSize(1, (224, 224), 256, "bicubic")),
        (
            {"size": {"shortest_edge": 64}, "crop_pct": 0.5, "resample": 2},
            ImageSize(1, (64, 64), 128, "bilinear"),
        ),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.9}, ImageSize(1, (384, 384), 0, "bicubic")),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
        assert streamenc.load(tmp_path).spec.input.image == image


def test_options_and_files_that_do_not_fit(tmp_path):
    pair(tmp_path, "basic", torch.float32)
    for options, words in {
        ("output", "cls"): "one of pooled, grid; got 'cls'",
        ("layer", 4): "-4 to 3",
        ("size", "big"): "WIDTHxHEIGHT in pixels",
        ("rate", -1): "a rate from 0.0001 to 100000 per second",
        ("part", "decoder"): "no decoder",
    }.items():
        with pytest.raises(UsageError, match=words):
            streamenc.load(tmp_path, **dict([options]))
    with pytest.raises(UsageError, match="grids of different sizes"):
        streamenc.load(tmp_path, output="grid", layers="1,2")
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"hidden_act": "gelu"}, {"depths": [1]}, {"layer_type": "x"}, {"depths": None}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            streamenc.load(tmp_path)
    tensors = cifar_tensors()
    tensors["module.layer2.0.downsample.0.weight"] = torch.zeros(32, 16, 1, 1)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="shortcuts have no parameters"):
        streamenc.load(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="stem of a ResNet"):
        streamenc.load(f"resnet:{tmp_path / 'foreign.safetensors'}")


@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_real_weights_for_cifar(file):
    """Equal to the plain network on real frames, and steady under a little noise."""
    path = weights("resnet_cifar10") / file
    stored = torch.load(path, map_location="cpu", weights_only=True)
    plain = Plain({name: t.double() for name, t in stored["state_dict"].items()})
    exact = streamenc.load(path, layers="all", dtype=torch.float64)
    codec = streamenc.load(path)
    for name, x in real_frames(size=(32, 32), count=6):
        pixels = x.double() / 127.5 - 1
        prepared = normalised(pixels.transpose(0, 1), **IMAGENET)
        states = [state.mean(dim=(2, 3)).T[None] for state in plain(prepared)]
        assert_close(exact.encode(x), torch.cat(states, dim=1), 1e-12)
        error = assert_close(codec.encode(x), states[-1], 1e-5)
        generator = torch.Generator().manual_seed(0)
        noisy = pixels + torch.randn(pixels.shape, generator=generator) / 127.5
        moved = F.cosine_similarity(codec.encode(noisy), codec.encode(x), dim=1).min().item()
        odds = plain.logits(prepared).softmax(dim=-1).max(dim=-1)
        print(
            f"{file} (stored accuracy {stored['best_prec1']}) {name}: {error:.1e}, noise of one "
            f"level keeps a cosine of {moved:.3f}, classes {odds.indices.tolist()} at "
            f"{[round(p, 2) for p in odds.values.tolist()]}"
        )
        assert moved > 0.9
