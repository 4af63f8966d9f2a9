"""VibeVoice's acoustic tokenizer against transformers, with random weights in its layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, InputError
from tests.support.compare import assert_close
from tests.support.zoo.vibevoice import save, vibevoice

pytestmark = pytest.mark.reference
HOP = 6


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vibevoice")
    save(path)
    return path


@pytest.fixture(scope="module")
def codec(folder: Path) -> streamenc.Codec:
    return streamenc.load(str(folder))


def streamed(stream: Any, x: Tensor, size: int) -> Tensor:
    parts = [stream.push(part) for part in x.split(size, dim=-1)]
    return torch.cat([*parts, stream.flush()], dim=-1)


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, 50 * HOP + 4])
def test_any_length_as_transformers_has_it(codec, samples):
    x = torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(samples))
    whole = torch.nn.functional.pad(x, (0, -samples % HOP))
    theirs = vibevoice().encode(whole, sample=False).latents.transpose(1, 2)
    assert_close(streamed(codec.stream(batch=2), x, 5), theirs, 1e-5)
    audio = vibevoice().decode(theirs.transpose(1, 2)).audio
    assert_close(streamed(codec.decode_stream(batch=2), theirs, 3), audio, 1e-5)


def rewrite(folder: Path, target: Path, change: Any) -> str:
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, target / "model.safetensors")
    return str(target)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_one_side_does_not_need_the_other(folder, codec, tmp_path, part):
    def halve(config: Any, tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if not name.startswith(f"{part}.")]:
            del tensors[name]

    half = getattr(streamenc.load(rewrite(folder, tmp_path, halve), part=part), part)
    assert half.fingerprint() == getattr(codec, part).fingerprint()
    with pytest.raises(CheckpointError, match="is missing"):
        streamenc.load(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("hidden_act", "relu", "hidden_act"),
        ("channels", 0, "channels"),
        ("kernel_size", "5", "kernel_size"),
        ("rms_norm_eps", 0, "rms_norm_eps"),
        ("depths", [1, 2], "2 depths"),
        ("depths", [1, 2, -1], "depths"),
        ("downsampling_ratios", 6, "downsampling_ratios"),
        ("downsampling_ratios", [1 << 14, 32], "a hop of"),
        ("num_filters", 5, "wants"),
        ("depths", [2, 2, 1], "is missing"),
        ("depths", [1, 1, 1], "belongs to no layer"),
    ],
)
def test_configs_that_do_not_fit_are_refused(folder, tmp_path, key, value, what):
    with pytest.raises(CheckpointError, match=what):
        streamenc.load(rewrite(folder, tmp_path, lambda config, t: config.update({key: value})))


def test_latents_of_another_shape_are_refused(codec):
    with pytest.raises(InputError, match="wants"):
        codec.decode(torch.zeros(1, 5, 3))
