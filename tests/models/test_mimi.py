"""Mimi against transformers, moshi and rustymimi, with random weights in each one's own layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError
from streamenc.models.model import Model
from tests.support import references
from tests.support.compare import assert_close, assert_codes_equal, relative_error

loaders = pytest.importorskip("moshi.models.loaders")
rustymimi = pytest.importorskip("rustymimi")

pytestmark = pytest.mark.reference
FLOAT32 = 1e-5
HOP, WINDOW = 24, 20  # of the small models: samples a frame, and attention positions (two a frame)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def noise(samples: int, seed: int = 0, batch: int = 1) -> Tensor:
    return 0.3 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))


def latents_of(encoder: Model, x: Tensor) -> Tensor:
    return encoder(encoder.before(x))


def check_codes(encoder: Model, ours: Tensor, theirs: Tensor, latents: Tensor) -> float:
    return assert_codes_equal(ours, theirs, latents, [encoder.semantic, encoder.acoustic])


def streamed(stream: Any, x: Tensor, size: int) -> Tensor:
    parts = [stream.push(part) for part in x.split(size, dim=-1)]
    return torch.cat([*parts, stream.flush()], dim=-1)


# transformers


@pytest.fixture(scope="module")
def hub_model() -> Any:
    return references.mimi()


@pytest.fixture(scope="module")
def hub_folder(hub_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    hub_model.save_pretrained(folder)
    return folder


def hub_latents(model: Any, x: Tensor) -> Tensor:
    return model.encoder(x).latents


@pytest.mark.parametrize(
    "samples", [1, 2, 11, 12, 13, HOP - 1, HOP, HOP + 1, 5 * HOP + 7, 100 * HOP + 13]
)
def test_any_length_as_transformers_has_it(hub_model, hub_folder, samples):
    codec = streamenc.load(str(hub_folder), tail="transformers")
    x = noise(samples, samples, batch=2)
    theirs = hub_latents(hub_model, x)
    ours = latents_of(codec.encoder, x)
    assert_close(ours, theirs, FLOAT32)
    codes = streamed(codec.stream(batch=2), x, 37)
    check_codes(codec.encoder, codes, hub_model.encode(x).audio_codes, theirs)
    audio = streamed(codec.decode_stream(batch=2), codes, 3)
    assert_close(audio, hub_model.decode(codes).audio_values, FLOAT32)


def test_fewer_codebooks_decode_as_in_transformers(hub_model, hub_folder):
    codec = streamenc.load(str(hub_folder))
    codes = hub_model.encode(noise(40 * HOP)).audio_codes
    for codebooks in (1, 2, 5):
        some = codes[:, :codebooks]
        assert_close(codec.decode(some), hub_model.decode(some).audio_values, FLOAT32)


def test_the_tails_differ_in_the_last_frame_alone(hub_folder):
    x = noise(30 * HOP + 5)
    moshi, hub = (
        latents_of(streamenc.load(str(hub_folder), tail=tail).encoder, x)
        for tail in ("moshi", "transformers")
    )
    assert_close(moshi[..., :-1], hub[..., :-1], FLOAT32)
    assert relative_error(moshi[..., -1:], hub[..., -1:]) > 1e-3


# moshi, in both namings


def moshi_config(**transformer: Any) -> dict[str, Any]:
    """The published configuration at the size of the zoo's."""
    small = references.MIMI_SMALL
    width = {"input_dimension": small["hidden_size"], "output_dimensions": [small["hidden_size"]]}
    return {
        **loaders._mimi_config,
        "frame_rate": 24_000 / HOP,
        "seanet": {
            **loaders._seanet_kwargs,
            "dimension": small["hidden_size"],
            "n_filters": small["num_filters"],
            "ratios": small["upsampling_ratios"],
        },
        "quantizer": {
            "dimension": small["codebook_dim"],
            "n_q": small["num_quantizers"],
            "bins": small["codebook_size"],
            "input_dimension": small["hidden_size"],
            "output_dimension": small["hidden_size"],
        },
        "transformer": {
            **loaders._transformer_kwargs,
            **width,
            "d_model": small["hidden_size"],
            "num_heads": small["num_attention_heads"],
            "num_layers": small["num_hidden_layers"],
            "context": WINDOW,
            "dim_feedforward": small["intermediate_size"],
            **transformer,
        },
    }


def older_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the first single files."""
    return {
        name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0", "out_proj"): t
        for name, t in tensors.items()
    }


def save_moshi(model: Any, path: Path, *, older: bool) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(older_names(tensors) if older else tensors, path)


@pytest.fixture(scope="module")
def moshi_model() -> Any:
    model = loaders.get_mimi(None, moshi_config(), num_codebooks=6)
    references.randomise(model, 1, book=4.0)
    return model


@pytest.fixture(scope="module", params=["in_projs", "in_proj_weight"])
def moshi_codec(
    request: pytest.FixtureRequest, moshi_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> streamenc.Codec:
    folder = tmp_path_factory.mktemp("moshi")
    save_moshi(moshi_model, folder / "small.safetensors", older=request.param == "in_proj_weight")
    (folder / "config.json").write_text(json.dumps({"model_type": "mimi", **references.MIMI_SMALL}))
    return streamenc.load(str(folder))


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, 7 * HOP + 11, 200 * HOP + 5])
def test_any_length_as_moshi_has_it_offline(moshi_model, moshi_codec, samples):
    x = noise(samples, samples, batch=2)
    theirs = moshi_model.encode_to_latent(x, quantize=False)
    assert_close(latents_of(moshi_codec.encoder, x), theirs, FLOAT32)
    codes = streamed(moshi_codec.stream(batch=2), x, 101)
    check_codes(moshi_codec.encoder, codes, moshi_model.encode(x), theirs)
    audio = streamed(moshi_codec.decode_stream(batch=2), codes, 1)
    assert_close(audio, moshi_model.decode(codes), FLOAT32)


def test_right_past_the_window_where_moshi_streaming_departs(moshi_model, moshi_codec):
    """Its ring has no slot beyond the window: the second key of a step covers one that the first
    query still needs."""
    x = noise(60 * HOP, 5)
    offline = moshi_model.encode_to_latent(x, quantize=False)
    with moshi_model.streaming(1):
        theirs = [moshi_model.encode_to_latent(part, quantize=False) for part in x.split(HOP, -1)]
    stream, state, ours = moshi_codec.encoder, None, []
    for part in x.split(HOP, -1):
        y, state = stream.step(part, state)
        ours.append(y)
    inside = WINDOW // 2
    for frames, moshi_error in ((slice(0, inside), 0.0), (slice(inside + 1, 60), 1e-3)):
        there = offline[..., frames]
        assert_close(torch.cat(ours, dim=-1)[..., frames], there, FLOAT32)
        departed = relative_error(torch.cat(theirs, dim=-1)[..., frames], there)
        print(f"frames {frames}: moshi's streaming is {departed:.1e} from its offline path")
        assert departed > moshi_error if moshi_error else departed < FLOAT32


# The published size


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """moshi's model of the published size, and its file in the older naming."""
    model = loaders.get_mimi(None, num_codebooks=32)
    references.randomise(model, 2, book=4.0)
    path = tmp_path_factory.mktemp("published") / "mimi.safetensors"
    save_moshi(model, path, older=True)
    yield model, path
    path.unlink()


@pytest.mark.slow
def test_published_size_past_ten_seconds(published):
    model, path = published
    codec = streamenc.load(str(path))
    x = noise(24_000 * 11 + 123)
    theirs = model.encode_to_latent(x, quantize=False)
    # Latents of moshi's offline path; our stream goes in steps of a second and a half.
    stream, state, ours = codec.encoder, None, []
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 1920))
    for part in padded.split(19 * 1920, dim=-1):
        y, state = stream.step(part, state)
        ours.append(y)
    error = assert_close(torch.cat(ours, dim=-1), theirs, FLOAT32)
    rate = check_codes(codec.encoder, codec.encode(x), model.quantizer.encode(theirs), theirs)
    print(f"11 s at full size: latents {error:.1e}, ties {rate:.1e}")
    codes = codec.encoder.after(theirs)[..., :20]
    assert_close(codec.decode(codes), model.decode(codes), FLOAT32)


def test_codes_of_rustymimi(published):
    """It pads the tail of 72,000 samples as transformers does, not as moshi."""
    _, path = published
    codec = streamenc.load(str(path), part="encoder", tail="transformers")
    x = noise(24_000 * 3, seed=1)
    theirs = rustymimi.Tokenizer(str(path), num_codebooks=32).encode(x.numpy())
    theirs = torch.from_numpy(theirs.astype(np.int64))
    latents = latents_of(codec.encoder, x)
    ours = streamed(codec.stream(), x, 1920)
    rate = check_codes(codec.encoder, ours, theirs, latents)
    print(f"rustymimi: ties {rate:.1e}")


@pytest.mark.slow
def test_published_size_in_the_folder_layout(tmp_path):
    model = references.transformers.MimiModel(references.transformers.MimiConfig()).eval()
    references.randomise(model, 3, book=4.0)
    model.save_pretrained(tmp_path)
    codec = streamenc.load(str(tmp_path), tail="transformers")
    x = noise(24_000 * 2 + 77)
    theirs = hub_latents(model, x)
    assert_close(latents_of(codec.encoder, x), theirs, FLOAT32)
    codes = streamed(codec.stream(), x, 1920)
    check_codes(codec.encoder, codes, model.encode(x).audio_codes, theirs)
    assert_close(codec.decode(codes), model.decode(codes).audio_values, FLOAT32)


def test_in_proj_of_another_shape_is_named(moshi_model, tmp_path):
    tensors = {k: v.contiguous() for k, v in moshi_model.state_dict().items()}
    name = "encoder_transformer.transformer.layers.0.self_attn.in_projs.0.weight"
    tensors[name] = torch.zeros(90, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mimi", **references.MIMI_SMALL})
    )
    with pytest.raises(CheckpointError, match=r"\(90, 32\).*\(96, 32\)") as caught:
        streamenc.load(str(tmp_path))
    assert name in str(caught.value)
