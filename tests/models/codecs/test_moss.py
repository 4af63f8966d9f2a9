"""MOSS-Audio-Tokenizer against its published modules, with random weights in its own layouts."""

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
from streamenc.errors import CheckpointError
from streamenc.models.model import Model
from tests.support import moss
from tests.support.compare import assert_close

pytest.importorskip("moshi")

pytestmark = pytest.mark.reference
FLOAT32 = 1e-5
HOP, ENTRIES = 12, 64


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("moss")
    moss.save(path)
    return path


@pytest.fixture(scope="module")
def codec(folder: Path) -> streamenc.Codec:
    return streamenc.load(str(folder))


@pytest.fixture(scope="module")
def published(folder: Path) -> moss.Published:
    return moss.Published(folder, moss.config(), torch.float32)


def noise(samples: int) -> Tensor:
    return torch.randn(2, 2, samples, generator=torch.Generator().manual_seed(samples))


def streamed(stream: Any, x: Tensor, size: int) -> Tensor:
    parts = [stream.push(part) for part in x.split(size, dim=-1)]
    return torch.cat([*parts, stream.flush()], dim=-1)


@pytest.mark.parametrize(
    ("samples", "size"), [(1, 1), (HOP - 1, 5), (HOP, 12), (HOP + 1, 7), (40 * HOP + 5, 31)]
)
def test_any_length_past_the_windows(codec, published, samples, size):
    """They hold 12 and 15 positions, of 6 and 3 in a frame; in the decoder 6 and 12."""
    x = noise(samples)
    codes, latents = published.encode(x)
    assert_close(codec.encoder(codec.encoder.before(x)), latents, FLOAT32)
    assert torch.equal(streamed(codec.stream(batch=2), x, size), codes)
    audio = published.decode(codes)
    assert_close(streamed(codec.decode_stream(batch=2), codes, 3), audio, FLOAT32)
    for books in (1, 3):
        assert_close(codec.decode(codes[:, :books]), published.decode(codes[:, :books]), FLOAT32)


def rewrite(folder: Path, target: Path, change: Any) -> str:
    """A copy of the folder, whose config and tensors are changed."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (target / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, target / "m.safetensors"
    )
    return str(target)


def test_one_channel_and_windows_of_one_length(tmp_path):
    """As the large model is: all windows are as long, and projections between equal widths are
    left out."""
    config = moss.config(
        number_channels=1,
        encoder_kwargs=[moss.patch(12), moss.transformer(12, 12, 12, **moss.FORM)],
        decoder_kwargs=[moss.transformer(12, 12, 12, **moss.FORM), moss.patch(12)],
        model_type="speech_tokenizer",
    )
    moss.moss.save(tmp_path, config)
    codec, published = (
        streamenc.load(str(tmp_path)),
        moss.Published(tmp_path, config, torch.float32),
    )
    x = noise(40 * HOP)[:, :1]
    codes, latents = published.encode(x)
    assert_close(codec.encoder(codec.encoder.before(x)), latents, FLOAT32)
    assert_close(codec.decode(codes), published.decode(codes), FLOAT32)


def test_the_names_of_later_versions(folder, codec, tmp_path):
    """Of the attention, the feed-forward and the norm of weights; projections between equal widths
    are there."""

    def change(config: Any, tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            new = name.replace("in_projs.0", "in_proj").replace("out_projs.0", "out_proj")
            new = new.replace("linear1", "ffn.0").replace("linear2", "ffn.2")
            new = new.replace("weight_g", "parametrizations.weight.original0")
            new = new.replace("weight_v", "parametrizations.weight.original1")
            tensors[new] = tensors.pop(name)
        tensors["encoder.3.input_proj.weight"] = torch.eye(12)

    later = streamenc.load(rewrite(folder, tmp_path, change))
    x = noise(20 * HOP)
    codes = codec.encode(x)
    assert torch.equal(later.encode(x), codes)
    assert_close(later.decode(codes), codec.decode(codes), 1e-6)


def sides(codec: streamenc.Codec, part: str) -> Model:
    return codec.encoder if part == "encoder" else codec.decoder


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_one_side_does_not_need_the_other(folder, codec, tmp_path, part):
    other = "decoder." if part == "encoder" else "encoder."

    def halve(config: Any, tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(other)]:
            del tensors[name]

    half = streamenc.load(rewrite(folder, tmp_path, halve), part=part)
    assert sides(half, part).fingerprint() == sides(codec, part).fingerprint()
    with pytest.raises(CheckpointError, match="is missing"):
        streamenc.load(str(tmp_path))


def stage(key: str, value: Any) -> Any:
    return lambda config, tensors: config["encoder_kwargs"][1].update({key: value})


def books(key: str, value: Any) -> Any:
    return lambda config, tensors: config["quantizer_kwargs"].update({key: value})


def top(key: str, value: Any) -> Any:
    return lambda config, tensors: config.update({key: value})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (stage("causal", False), "causal"),
        (stage("norm", "rms_norm"), "norm"),
        (stage("gating", "silu"), "gating"),
        (stage("positional_embedding", "sin"), "positional_embedding"),
        (stage("num_heads", 3), "3 heads"),
        (stage("num_heads", 0), "num_heads"),
        (stage("num_layers", -2), "num_layers"),
        (stage("num_layers", 999), "num_layers is 999"),
        (stage("max_period", "long"), "max_period"),
        (stage("input_dimension", 5), "4 channels come"),
        (stage("context_duration", 0), "context_duration"),
        (stage("module_type", "Conv"), "module_type"),
        (books("quantizer_type", "rvq"), "quantizer_type"),
        (books("codebook_dim", 10), "codebook_dim"),
        (books("num_quantizers", None), "num_quantizers"),
        (books("input_dim", 11), "wanted 11"),
        (books("num_quantizers", 1), r"quantizers\.1\..* belongs to no layer"),
        (top("number_channels", 0), "number_channels"),
        (top("causal_transformer_context_duration", "10"), "context_duration"),
        (top("downsample_rate", 24), "positions"),
        (top("enable_channel_interleave", "no"), "enable_channel_interleave"),
        (top("encoder_kwargs", "none"), "list"),
        (top("encoder_kwargs", [1]), "a module is 1"),
        (lambda c, t: c["decoder_kwargs"][0].update(patch_size=5), "does not divide"),
        (lambda c, t: t.update({"decoder.1.extra": torch.ones(2)}), r"decoder\.1\.extra"),
        (lambda c, t: t.pop("encoder.1.transformer.layers.1.linear1.weight"), "linear1"),
        (
            lambda c, t: t.update({"quantizer.quantizers.2.in_proj.bias": torch.ones(4)}),
            r"in_proj\.bias",
        ),
        (
            lambda c, t: t.update({"encoder.1.input_proj.weight": torch.ones(8, 5)}),
            r"input_proj",
        ),
    ],
)
def test_what_does_not_fit_is_refused(folder, tmp_path, change, what):
    with pytest.raises(CheckpointError, match=what):
        streamenc.load(rewrite(folder, tmp_path, change))
