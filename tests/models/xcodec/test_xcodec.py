"""X-Codec against transformers': branches, modes, decoding, layouts, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.xcodec import xcodec
from streamenc.stream import Stream
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory
from tests.support.speech import as_kept, signal

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

HOP = 20
families = pytest.mark.parametrize("family", ["hubert", "wavlm"])
SLIDING = {"mode": "sliding", "window_ms": 25, "hop_ms": 5, "ahead_ms": 5}


def saved(folder: Path, family: str = "hubert") -> Any:
    """A reference in float64, saved to `folder`."""
    reference = references.xcodec(family)
    reference.save_pretrained(folder)
    as_kept(reference.semantic_model)
    return reference.double()


def load(folder: Path, part: str = "both", **options: Any) -> Any:
    return streamenc.load(str(folder), part=part, dtype=torch.float64, **options)


def streamed(model: Any, x: Tensor, size: int = 77) -> Tensor:
    stream = Stream(model, batch=x.shape[0])
    return torch.cat([*(stream.push(part) for part in x.split(size, dim=-1)), stream.flush()], -1)


def latents(model: Any, x: Tensor) -> Tensor:
    """What an encoder gives before it quantises, of a stream in steps of a few hops."""
    spec = model.spec
    edges = [0, *range(spec.lead, x.shape[-1] - spec.hop, 3 * spec.hop), x.shape[-1]]
    edges = [*edges[:-2], edges[-1]] if edges[-2] + spec.hop > edges[-1] else edges
    state, y = None, []
    for start, stop in zip(edges, edges[1:], strict=False):
        new, state = model.step(x[..., start:stop], state, end=stop == x.shape[-1])
        y.append(new)
    return torch.cat(y, dim=-1)


@torch.no_grad()
def joined(reference: Any, x: Tensor, features: Tensor) -> Tensor:
    """By transformers' modules, from features of the semantic model, (batch, channels, time)."""
    both = reference.acoustic_encoder(x), reference.encoder_semantic(features)
    return reference.fc(torch.cat(both, dim=1).transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
def mean_of_layers(reference: Any, x: Tensor) -> Tensor:
    """Of the published semantic model on one window, (batch, samples)."""
    hidden = reference.semantic_model(x, output_hidden_states=True).hidden_states
    return torch.stack(hidden).mean(0).transpose(1, 2)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("family", "samples"),
    [("hubert", HOP), ("hubert", 60 * HOP + 1), ("wavlm", 7 * HOP + 13), ("wavlm", 60 * HOP)],
)
def test_what_fits_into_a_window_is_the_published_codec(tmp_path, family, samples):
    """A stream that the semantic model hears whole, behind the published feature extractor."""
    reference = saved(tmp_path, family)
    x = signal(samples, batch=2)
    extractor = references.transformers.DacFeatureExtractor(sampling_rate=16_000, hop_length=HOP)
    shapes = [
        extractor(np.float32(row[0]), sampling_rate=16_000, return_tensors="pt")["input_values"]
        for row in x
    ]
    whole = F.pad(x, (0, -samples % HOP))
    assert all(shape.shape[-1] == whole.shape[-1] for shape in shapes)
    with torch.no_grad():
        expected = reference.encode(whole).audio_codes
        sound = reference.decode(expected).audio_values
        fewer = reference.encode(whole, bandwidth=9.6).audio_codes
    modes: list[dict[str, Any]] = [
        {"chunk_ms": 100, "norm_seconds": 0},
        {"mode": "sliding", "window_ms": 100, "hop_ms": 20, "ahead_ms": 5},
        {"mode": "segment", "segment_ms": 100},
    ]
    for options in modes:
        encoder = load(tmp_path, "encoder", **options).encoder
        features = mean_of_layers(reference, F.pad(whole, (10, 10))[:, 0])
        assert_close(encoder.chain(whole), joined(reference, whole, features), 1e-10)
        assert torch.equal(streamed(encoder, x), expected)
        stream = Stream(encoder, batch=2, codebooks=2)
        assert torch.equal(torch.cat([stream.push(x), stream.flush()], -1), fewer)
    decoder = load(tmp_path, "decoder").decoder
    assert_close(streamed(decoder, expected, 7), sound, 1e-10)


@pytest.mark.reference
@families
def test_windows_that_slide(tmp_path, family):
    """The published semantic model on each window; the rest streams on."""
    reference = saved(tmp_path, family)
    frames = 57
    x = signal(frames * HOP, batch=2)
    padded = F.pad(x, (10, 10))[:, 0]
    window, hop, ahead = 20, 4, 4
    parts, given, start = [], 0, 0
    while given < frames:
        if start + window <= frames:
            heard = padded[:, start * HOP : (start + window) * HOP + 10]
            stop = start + window - ahead
        else:
            heard, stop = padded[:, start * HOP :], frames
        parts.append(mean_of_layers(reference, heard)[..., given - start : stop - start])
        given, start = stop, start + hop
    encoder = load(tmp_path, "encoder", **SLIDING).encoder
    expected = joined(reference, x, torch.cat(parts, dim=-1))
    assert_close(latents(encoder, x), expected, 1e-10)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("family", "options"), [("hubert", {"positions": "wait"}), ("wavlm", {"ahead": 1})]
)
def test_chunks(tmp_path, family, options):
    """The semantic model as it runs by itself, which is compared with transformers elsewhere."""
    reference = saved(tmp_path / "codec", family)
    inner = references.transformers.AutoModel.from_config(reference.config.semantic_model_config)
    state = {
        name.removeprefix("semantic_model."): tensor
        for name, tensor in load_file(tmp_path / "codec" / "model.safetensors").items()
        if name.startswith("semantic_model.")
    }
    inner.load_state_dict(state)
    inner.save_pretrained(tmp_path / "semantic")
    options = {"chunk_ms": 5, "left": 3, "norm_seconds": 0.05, **options}
    alone = load(
        tmp_path / "semantic", "encoder", layers="all", mean=True, normalize=False, **options
    ).encoder
    x = signal(61 * HOP + 7, batch=2)
    whole = F.pad(x, (0, -x.shape[-1] % HOP))
    features = streamed(alone, F.pad(whole, (10, 10)))
    encoder = load(tmp_path / "codec", "encoder", **options).encoder
    expected = joined(reference, whole, features)
    assert_close(latents(encoder, x), expected, 1e-10)
    assert torch.equal(streamed(encoder, x), encoder.after(expected))


@pytest.mark.reference
@pytest.mark.parametrize("family", ["wavlm"])
def test_segments_are_clips_of_the_published_codec(tmp_path, family):
    reference = saved(tmp_path, family)
    x = signal(50 * HOP + 3, batch=2)
    clips = F.pad(x, (0, -x.shape[-1] % HOP)).split(20 * HOP, dim=-1)
    with torch.no_grad():
        expected = torch.cat([reference.encode(clip).audio_codes for clip in clips], dim=-1)
    encoder = load(tmp_path, "encoder", mode="segment", segment_ms=25).encoder
    assert encoder.spec.equality == "segment"
    assert torch.equal(streamed(encoder, x), expected)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names -> those of the original .pth, weight normalisation included."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^fc\.", "fc_prior.", name)
        name = re.sub(r"^fc([12])\.", r"fc_post\1.", name)
        name = re.sub(
            r"^quantizer\.quantizers\.(\d+)\.codebook", r"quantizer.vq.layers.\1._codebook", name
        )
        if name.startswith(("encoder_semantic", "decoder_semantic")):
            name = re.sub(r"\.conv(1?)\.(weight|bias)$", r".conv\1.conv.\2", name)
        side = name.split(".")[0]
        if side in ("acoustic_encoder", "acoustic_decoder"):
            name = _original_of_dac(name)
        renamed[name] = tensor
        if side in ("acoustic_encoder", "acoustic_decoder") and name.endswith(".weight"):
            norm = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
            del renamed[name]
            renamed[f"{name}_g"], renamed[f"{name}_v"] = norm, tensor
    return renamed


def _original_of_dac(name: str) -> str:
    down = name.startswith("acoustic_encoder")
    side, outer = ("encoder", "block") if down else ("decoder_2", "model")
    name = name.split(".", 1)[1]
    unit = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    around = {"snake1": 3, "conv1": 4} if down else {"snake1": 0, "conv_t1": 1}
    ends = {"conv1": 0, "snake1": 4, "conv2": 5}
    parts = name.split(".")
    if parts[0] != "block":
        return f"{side}.{outer}.{ends[parts[0]]}.{parts[1]}"
    stage = f"{side}.{outer}.{int(parts[1]) + 1}.block"
    if parts[2].startswith("res_unit"):
        place = int(parts[2][-1]) - 1 + (0 if down else 2)
        return f"{stage}.{place}.block.{unit[parts[3]]}.{parts[4]}"
    return f"{stage}.{around[parts[2]]}.{parts[3]}"


def test_the_original_layout(tmp_path):
    """Its config is YAML, which is not read: a config.json beside it says the sizes of a small one.
    What is left is rounding where the weights' norms are taken apart."""
    saved(tmp_path / "folder")
    state = original(load_file(tmp_path / "folder" / "model.safetensors"))
    torch.save(state, tmp_path / "xcodec_speech_hubert.pth")
    (tmp_path / "config.json").write_text((tmp_path / "folder" / "config.json").read_text())
    ours = load(tmp_path / "xcodec_speech_hubert.pth", chunk_ms=5)
    theirs = load(tmp_path / "folder", chunk_ms=5)
    x = signal(30 * HOP)
    codes = streamed(theirs.encoder, x)
    assert_close(ours.encoder.chain(x), theirs.encoder.chain(x), 1e-5)
    assert_close(ours.decoder(ours.decoder.before(codes)), theirs.decode(codes), 1e-5)


def test_a_side_reads_nothing_of_the_other(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    idle = ("fc1.", "decoder_semantic.")
    for part, gone in (
        ("decoder", ("semantic_model.", "encoder_semantic.", "acoustic_encoder.", "fc.", *idle)),
        ("encoder", ("acoustic_decoder.", "fc2.", *idle)),
    ):
        save_file({k: v for k, v in state.items() if not k.startswith(gone)}, path)
        assert getattr(load(tmp_path, part), part).spec.name == "xcodec"
        with pytest.raises(CheckpointError):
            load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [2, 1]}, "strides is .*only ones"),
        ({"channel_ratios": [1, 2]}, "channel_ratios is .*only ones"),
        ({"channel_ratios": [1]}, "as many of both"),
        ({"kernel_size": 4}, "an odd number"),
        ({"unit_kernel_size": 0}, "unit_kernel_size is 0"),
        ({"block_dilations": []}, "block_dilations"),
        ({"block_dilations": [1, 1, 1]}, "is missing"),
        ({"sample_rate": 24_000}, "only 16000"),
        ({"codebook_dim": 64}, "codebook_dim is 64"),
        ({"codebook_size": 1 << 20}, "codebook_size"),
        ({"codebook_size": 32}, "has shape"),
        ({"target_bandwidths": []}, "target_bandwidths"),
        ({"target_bandwidths": [0.001]}, "wanted 1 to 64"),
        ({"target_bandwidths": [14.4]}, "belongs to no layer"),
        ({"target_bandwidths": [24]}, "is missing"),
        ({"acoustic_model_config": 3}, "wanted a table"),
        ({"acoustic_model_config": {"hidden_size": "6"}}, "latent is '6'"),
        ({"acoustic_model_config.upsampling_ratios": [5, 2]}, "the same product"),
        ({"acoustic_model_config.encoder_hidden_size": 8}, "do not fit the config"),
        ({"acoustic_model_config.model_type": "encodec"}, "only 'dac'"),
        ({"semantic_model_config.model_type": "wavlm"}, "no bias by distance"),
        ({"semantic_model_config.model_type": "whisper"}, "not wav2vec"),
        ({"semantic_model_config.num_hidden_layers": 2}, "belongs to no layer"),
        ({"semantic_model_config.conv_stride": [5, 2, 1]}, "a frame every"),
        ({"semantic_model_config.hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, change, message):
    saved(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        *table, last = key.split(".")
        (config[table[0]] if table else config)[last] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "whole"}, "one of chunked, sliding, segment"),
        ({"mode": "segment", "chunk_ms": 5}, "chunk_ms"),
        ({"segment_ms": 20}, "of mode=segment"),
        ({"mode": "segment", "segment_ms": 3}, "a multiple of"),
        ({"window_ms": 20}, "of mode=sliding"),
        ({"mode": "sliding", "left": 3}, "of mode=chunked"),
        ({"layers": "3"}, "no option"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    saved(tmp_path)
    with pytest.raises(UsageError, match=message):
        load(tmp_path, **options)


def test_bare_files_are_told_by_their_names(tmp_path):
    saved(tmp_path)
    from streamenc.checkpoints.checkpoint import open_checkpoint
    from streamenc.registry import family_of

    (tmp_path / "config.json").unlink()
    assert family_of(open_checkpoint(str(tmp_path / "model.safetensors"))) == "xcodec"
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not named as in X-Codec"):
        load(Path(f"xcodec:{tmp_path}/a.safetensors"))


def test_the_published_specs():
    spec = xcodec.published_spec("hubert")
    assert (spec.output.channels, spec.codebook_size, spec.output.rate) == (8, 1024, 50)
    assert [spec.kbps(books) for books in (1, 2, 3, 4, 8)] == [0.5, 1, 1.5, 2, 4]
    assert spec.latency_seconds == pytest.approx(0.635)
    assert xcodec.published_spec("wavlm").steps == spec.steps
