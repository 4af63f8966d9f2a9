"""SALMONN's ears: segments are published clips; the Q-Former alone, on features that are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import hearing, references
from tests.support.compare import assert_close

SEGMENT, SPEECH, AUDIO = 19_200, 16, 12


def load(folder: Path, **options) -> Model:
    return streamenc.load(str(folder), part="encoder", dtype=torch.float64, **options).encoder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("salmonn")
    hearing.save_salmonn(folder)
    return folder


def streamed(model: Model, x: Tensor, size: int) -> Tensor:
    """(channels, items) -> (vectors, out)."""
    stream = Stream(model)
    return torch.cat([*(stream.push(part) for part in x.split(size, -1)), stream.flush()], -1)[
        0
    ].t()


def clip_as_published(folder: Path, x: Tensor) -> Tensor:
    """Of one clip, (samples,): transformers' Whisper, and the rest as it is defined."""
    whisper = references.transformers.WhisperModel.from_pretrained(folder / "whisper").double()
    extractor = references.transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1.2)
    extractor.n_samples = SEGMENT
    least = torch.cat((x, x.new_zeros(max(0, 16_000 - len(x)))))
    whole = torch.cat((least, least.new_zeros(SEGMENT - len(least))))
    # The extractor keeps to float32; its mathematics in float64.
    window = torch.hann_window(400, dtype=torch.float64)
    power = torch.stft(whole, 400, 160, window=window, return_complex=True)[:, :-1].abs().square()
    filters = streamenc.load("mel:whisper", bands=20, dtype=torch.float64).encoder.filters
    logs = (filters @ power).clamp_min(1e-10).log10()
    features = (torch.maximum(logs, logs.max() - 8) + 4) / 4
    theirs = torch.from_numpy(extractor(whole.numpy(), sampling_rate=16_000).input_features[0])
    assert_close(features, theirs.double(), 1e-5)
    with torch.no_grad():
        states = whisper.encoder.eval()(features[None]).last_hidden_state[0]
    audio = hearing.plain_beats(hearing.beats_tensors(), least)
    return hearing.plain_qformer(hearing.salmonn_tensors(SPEECH, AUDIO), states, audio)


@pytest.mark.reference
@pytest.mark.parametrize("samples", [500, SEGMENT - 161, 2 * SEGMENT + 17_001])
def test_segments_are_published_clips(published, samples):
    x = hearing.noise(samples)
    ours = streamed(load(published), x[None], 5_000)
    theirs = torch.cat([clip_as_published(published, part) for part in x.split(SEGMENT)])
    assert_close(ours, theirs, 1e-9)
    assert len(ours) == 3 * -(-samples // SEGMENT)


@pytest.mark.reference
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("frames", [16, 17, 60, 103])
def test_the_qformer_alone(tmp_path, queries, frames):
    tensors = hearing.salmonn_tensors(SPEECH, AUDIO, width=128, queries=queries)
    torch.save({"model": tensors}, tmp_path / "salmonn.pth")
    model = load(tmp_path, inputs="features")
    x = torch.randn(SPEECH + AUDIO, frames, dtype=torch.float64)
    ours = streamed(model, x, 7)
    assert ours.shape == (frames // 17 * queries, 6)
    if frames >= 17:
        speech, audio = x.t().split((SPEECH, AUDIO), -1)
        assert_close(ours, hearing.plain_qformer(tensors, speech, audio), 1e-10)


def test_parts_are_named_or_lie_beside_it(published, tmp_path):
    torch.save({"model": hearing.salmonn_tensors(SPEECH, AUDIO)}, tmp_path / "s.pth")
    with pytest.raises(UsageError, match=r"holds no whisper: .*whisper=PATH"):
        load(tmp_path / "s.pth")
    whisper = published / "whisper"
    with pytest.raises(UsageError, match="holds no beats"):
        load(tmp_path / "s.pth", whisper=whisper)
    named = load(tmp_path / "s.pth", whisper=str(whisper), beats=published / "beats" / "BEATs.pt")
    assert named.fingerprint() == load(published / "salmonn_v1.pth").fingerprint()
    with pytest.raises(UsageError, match="no sound for whisper"):
        load(published, inputs="features", whisper=whisper)
    with pytest.raises(UsageError, match="inputs"):
        load(published, inputs="text")
    with pytest.raises(UsageError, match="language model"):
        streamenc.load(str(published), part="decoder")


def test_other_parts_are_refused(published, tmp_path):
    references.whisper(max_source_positions=60, d_model=8).save_pretrained(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match="Whisper of 16 channels; the one given has 8"):
        load(published, whisper=tmp_path / "narrow")
    hearing.save_beats(tmp_path / "narrow.pt", encoder_embed_dim=6)
    with pytest.raises(CheckpointError, match="BEATs of 12 channels; the one given has 6"):
        load(published, beats=tmp_path / "narrow.pt")
    with pytest.raises(CheckpointError, match="wanted the tensors of BEATs"):
        load(published, beats=published / "whisper")
    with pytest.raises(CheckpointError, match="named as in Whisper"):
        load(published, whisper=published / "beats")
    hearing.save_beats(tmp_path / "fine.pt", input_patch_size=8)
    with pytest.raises(CheckpointError, match="more features than Whisper has states"):
        load(published, beats=tmp_path / "fine.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ln_audio.bias": None}, "'ln_audio.bias' is missing"),
        ({"speech_Qformer.bert.encoder.layer.1.output_query.dense.bias": None}, "is missing"),
        ({"speech_query_tokens": None}, "wanted what was trained of SALMONN"),
        ({"speech_query_tokens": torch.zeros(1, 1, 63)}, "heads of 64"),
        ({"speech_query_tokens": torch.zeros(3)}, "has shape"),
        ({"ln_speech.weight": torch.ones(15)}, "do not fit"),
        ({"speech_encoder.conv1.weight": torch.zeros(1)}, "was more of it trained"),
        ({"ln_speech.weight": torch.zeros(16, dtype=torch.int8)}, "is of type int8"),
    ],
)
def test_other_tensors_are_refused(tmp_path, change, said):
    tensors = {**hearing.salmonn_tensors(SPEECH, AUDIO), **change}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    torch.save({"model": tensors}, tmp_path / "s.pth")
    with pytest.raises(CheckpointError) as error:
        streamenc.load(f"salmonn:{tmp_path / 's.pth'}", inputs="features")
    assert said in str(error.value)


def test_windows_are_those_of_the_training(tmp_path):
    """Where a training saved its config with the weights."""
    path, tensors = tmp_path / "s.pth", hearing.salmonn_tensors(SPEECH, AUDIO)

    def saved(**config: object) -> Path:
        torch.save({"model": tensors, "config": {"model": config, "run": {}}}, path)
        return path

    assert load(saved(second_per_window=0.2, second_stride=0.2), inputs="features").spec.hop == 10
    assert load(saved(second_per_window=1, second_stride=1.0), inputs="features").spec.hop == 50
    asked = load(saved(second_per_window=0.5), inputs="features", second_per_window="0.2")
    assert asked.spec.hop == 10
    with pytest.raises(UsageError, match="second_per_window"):
        load(path, inputs="features", second_per_window=0)
    assert load(saved(num_workers=3), inputs="features").spec.hop == 17
    for config, said in (
        ({"second_per_window": 0.5, "second_stride": 0.25}, "0.5 s every 0.25 s"),
        ({"second_per_window": 0, "second_stride": 0}, "0 s every 0 s"),
        ({"window_level_Qformer": False}, "window_level_Qformer=False"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load(saved(**config), inputs="features")


def test_safetensors_are_the_same(published, tmp_path):
    save_file(
        {name: tensor.contiguous() for name, tensor in hearing.salmonn_tensors(16, 12).items()},
        tmp_path / "salmonn.safetensors",
    )
    assert load_file(tmp_path / "salmonn.safetensors")
    parts = {"whisper": published / "whisper", "beats": published / "beats"}
    model = load(tmp_path / "salmonn.safetensors", **parts)
    assert model.fingerprint() == load(published).fingerprint()
