"""Qwen3-TTS-Tokenizer-12Hz against its published parts, with random weights in its own layout."""

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
from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.errors import CheckpointError
from tests.support import qwen3tts
from tests.support.compare import assert_close, assert_codes_equal, relative_error

pytestmark = pytest.mark.reference
FLOAT32 = 1e-5
HOP, BOOKS, ENTRIES = 24, 4, 64


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def parts() -> tuple[Any, qwen3tts.Decoder]:
    return qwen3tts.encoder(), qwen3tts.decoder()


@pytest.fixture(scope="module")
def folder(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3tts")
    qwen3tts.save(path, *parts)
    return path


@pytest.fixture(scope="module")
def codec(folder: Path) -> streamenc.Codec:
    return streamenc.load(str(folder))


def random_codes(frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, ENTRIES, (2, BOOKS, frames), generator=generator)


def decoded(codec: streamenc.Codec, codes: Tensor, size: int) -> Tensor:
    stream = codec.decode_stream(batch=len(codes))
    parts = [stream.push(part) for part in codes.split(size, dim=-1)]
    return torch.cat([*parts, stream.flush()], dim=-1)


@pytest.mark.parametrize(("frames", "size"), [(1, 1), (2, 1), (7, 3), (60, 1), (60, 13)])
def test_decodes_as_published_in_one_pass(parts, codec, frames, size):
    """The window holds 7 frames."""
    codes = random_codes(frames)
    theirs = parts[1](codes)
    assert theirs.abs().max() < 1  # the limits are not what makes them equal
    assert_close(decoded(codec, codes, size), theirs, FLOAT32)


def test_the_published_pieces_depart_from_one_pass_where_ours_do_not(parts, codec):
    """Pieces with less before them than the window: published as 300 frames behind 25."""
    codes, piece, before = random_codes(90), 30, 3
    theirs = [parts[1](codes[..., :piece])]
    for start in (30, 60):
        part = parts[1](codes[..., start - before : start + piece])
        theirs.append(part[..., before * HOP :])
    whole = parts[1](codes)
    assert_close(torch.cat(theirs, dim=-1)[..., : piece * HOP], whole[..., : piece * HOP], FLOAT32)
    assert relative_error(torch.cat(theirs, dim=-1), whole) > 1e-3
    assert_close(decoded(codec, codes, 30), whole, FLOAT32)


def test_fewer_codebooks_leave_the_others_out(parts, codec):
    codes = random_codes(20)
    books = parts[1].quantizer.rvq_rest.vq.layers
    kept = [book._codebook.embedding_sum.clone() for book in books]
    try:
        for book in books[1:]:
            book._codebook.embedding_sum.zero_()
        theirs = parts[1](codes)
    finally:
        for book, entries in zip(books, kept, strict=True):
            book._codebook.embedding_sum.copy_(entries)
    assert_close(codec.decode(codes[:, :2]), theirs, FLOAT32)


@pytest.mark.parametrize("samples", [1, 2, 13, HOP - 1, HOP, HOP + 1, 5 * HOP + 7, 100 * HOP + 13])
def test_codes_are_the_first_books_of_mimi(parts, codec, samples):
    """As many frames as begin within the sound; the attention holds 10 of them."""
    generator = torch.Generator().manual_seed(samples)
    x = 0.3 * torch.randn(2, 1, samples, generator=generator)
    theirs = parts[0].encode(x).audio_codes[:, :BOOKS, : -(-samples // HOP)]
    stream = codec.stream(batch=2)
    ours = torch.cat([*(stream.push(part) for part in x.split(37, -1)), stream.flush()], dim=-1)
    latents = parts[0].encoder(x).latents
    encoder = codec.encoder
    assert_codes_equal(ours, theirs, latents, [encoder.semantic, encoder.acoustic])


# Loading


def rewrite(folder: Path, target: Path, change: Any) -> str:
    """A copy of the folder, whose config and tensors are changed."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, target / "model.safetensors")
    return str(target)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_one_side_does_not_need_the_other(folder, codec, tmp_path, part, monkeypatch):
    def halve(config: Any, tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if not name.startswith(f"{part}.")]:
            del tensors[name]

    read = []
    get = Checkpoint.get
    monkeypatch.setattr(Checkpoint, "get", lambda c, n, *s: read.append(n) or get(c, n, *s))
    half = getattr(streamenc.load(rewrite(folder, tmp_path, halve), part=part), part)
    assert half.fingerprint() == getattr(codec, part).fingerprint()
    # The books beyond those that are taken are not read either.
    assert not [name for name in read if "acoustic" in name and ".layers.3." in name]
    with pytest.raises(CheckpointError, match="is missing"):
        streamenc.load(str(tmp_path))


@pytest.mark.parametrize(
    ("side", "key", "value", "what"),
    [
        ("decoder_config", "hidden_act", "gelu", "hidden_act"),
        ("decoder_config", "attention_bias", True, "attention_bias"),
        ("decoder_config", "num_key_value_heads", 1, "num_key_value_heads"),
        ("decoder_config", "num_semantic_quantizers", 2, "num_semantic"),
        ("decoder_config", "rope_scaling", {"rope_type": "yarn"}, "rope"),
        ("decoder_config", "rope_scaling", "linear", "cannot be used"),
        ("decoder_config", "upsample_rates", [3, 0], "upsample_rates"),
        ("decoder_config", "upsample_rates", 6, "upsample_rates"),
        ("decoder_config", "upsample_rates", [1 << 15, 6], "samples"),
        ("decoder_config", "upsample_rates", [3, 3], "decode_upsample_rate"),
        ("decoder_config", "num_hidden_layers", -1, "num_hidden_layers"),
        ("decoder_config", "hidden_size", "10", "hidden_size"),
        ("decoder_config", "num_attention_heads", 0, "num_attention_heads"),
        ("decoder_config", "head_dim", 5, "heads of 5"),
        ("decoder_config", "decoder_dim", 3, "decoder_dim"),
        ("decoder_config", "rms_norm_eps", 0, "rms_norm_eps"),
        ("decoder_config", "codebook_size", 128, "codebook_size"),
        # Where a layer of such a width was made off the meta device, there is no memory for it.
        ("decoder_config", "latent_dim", 1 << 16, "wants"),
        ("decoder_config", "decoder_dim", 1 << 16, "wants"),
        ("encoder_config", "sliding_window", 0, "sliding_window"),
        ("encoder_config", "sampling_rate", 16_000, "input_sample_rate"),
        ("encoder_config", "audio_channels", 2, "audio_channels"),
        ("encoder_config", "use_causal_conv", False, "use_causal_conv"),
        (None, "encoder_valid_num_quantizers", 5, "codebooks"),
        (None, "encoder_valid_num_quantizers", 99, "99 of 6"),
        (None, "encode_downsample_rate", 12, "encode_downsample_rate"),
        (None, "output_sample_rate", 48_000, "output_sample_rate"),
        (None, "decoder_config", [], "cannot be used"),
    ],
)
def test_configs_of_other_models_are_refused(folder, tmp_path, side, key, value, what):
    def change(config: Any, tensors: Any) -> None:
        (config[side] if side else config)[key] = value

    with pytest.raises(CheckpointError, match=what):
        streamenc.load(rewrite(folder, tmp_path, change))


@pytest.mark.parametrize(
    "name", ["encoder.encoder_transformer.extra.weight", "decoder.pre_transformer.extra.weight"]
)
def test_tensors_that_nothing_is_made_of_are_refused(folder, tmp_path, name):
    path = rewrite(folder, tmp_path, lambda c, tensors: tensors.update({name: torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"extra\.weight"):
        streamenc.load(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("decoder.pre_transformer.layers.1.mlp.up_proj.weight", (14, 11)),
        ("decoder.pre_transformer.norm.weight", (9,)),
        ("decoder.upsample.1.1.gamma", (15,)),
        ("decoder.decoder.1.block.3.act2.beta", (9,)),
        ("decoder.quantizer.rvq_rest.vq.layers.2._codebook.cluster_usage", (63,)),
        ("encoder.downsample.conv.weight", (32, 31, 4)),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(folder, tmp_path, name, shape):
    inner = name.partition(".")[2]
    for value in (None, torch.ones(shape)):

        def change(config: Any, tensors: dict[str, Tensor], value: Tensor | None = value) -> None:
            del tensors[name]
            if value is not None:
                tensors[name] = value

        with pytest.raises(CheckpointError) as caught:
            streamenc.load(rewrite(folder, tmp_path, change))
        assert inner in str(caught.value)


def test_tensors_tell_the_family(folder, tmp_path):
    """A file by itself, whose names hold those of Mimi."""
    from streamenc.checkpoints.checkpoint import open_checkpoint
    from streamenc.models import mimi
    from streamenc.registry import family_of

    rewrite(folder, tmp_path, lambda config, tensors: config.clear())
    checkpoint = open_checkpoint(str(tmp_path))
    assert family_of(checkpoint) == "qwen3_tts_tokenizer_12hz"
    assert not mimi.recognises(checkpoint)
