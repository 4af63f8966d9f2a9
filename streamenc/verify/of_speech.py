"""Published encoders of speech, and of sound of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamenc.verify.published import Absent, Published, Subject


def whisper(subject: Subject) -> Published:
    """transformers' Whisper encoder over the whole clip, padded to 30 s as it wants it."""
    from transformers import WhisperFeatureExtractor, WhisperModel

    if subject.options.keys() & {"layer", "layers"}:
        raise Absent("other hidden states than the last one are compared in streamenc's own tests")
    encoder = subject.pretrained(WhisperModel).get_encoder()
    extractor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    longest = 2 * extractor.hop_length * encoder.config.max_source_positions

    def encode(audio: Tensor) -> Tensor:
        sound = audio[0, 0, :longest].double().cpu().numpy()
        found = extractor(
            sound, sampling_rate=16_000, max_length=longest, return_tensors="pt"
        ).input_features
        states = encoder(found.to(subject.like)).last_hidden_state.transpose(1, 2)
        frames = -(-audio.shape[-1] // 320)
        features: Tensor = states[..., :frames]
        return features

    return Published("transformers", encode, apart="a stream sees chunks, the published model 30 s")


def wav2vec2(subject: Subject) -> Published:
    """transformers' wav2vec 2.0, HuBERT or WavLM over the whole clip, normalised where its
    extractor says so."""
    from transformers import AutoFeatureExtractor, AutoModel

    if subject.options.keys() & {"layer", "layers", "units", "mean"}:
        raise Absent("other outputs than the last hidden state are compared in streamenc's tests")
    model = subject.pretrained(AutoModel)
    try:
        normalises = AutoFeatureExtractor.from_pretrained(subject.source).do_normalize
    except OSError:
        normalises = True

    def encode(audio: Tensor) -> Tensor:
        x = audio[:, 0]
        if normalises:
            x = (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-7)
        features: Tensor = model(x).last_hidden_state.transpose(1, 2)
        return features

    apart = "a stream sees chunks and running statistics, the published model the whole clip"
    return Published("transformers", encode, apart=apart)


def beats(subject: Subject) -> Published:
    """microsoft/unilm's BEATs over the whole clip; it comes as a folder of modules."""
    try:
        from BEATs import BEATs, BEATsConfig
    except ImportError as error:
        raise Absent(
            f"no module {error.name!r}: put the folder beats of github.com/microsoft/unilm on "
            "PYTHONPATH, and install torchaudio"
        ) from error

    if subject.options.keys() & {"layer", "layers"}:
        raise Absent("other hidden states than the last one are compared in streamenc's own tests")
    path = Path(subject.source).expanduser()
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise Absent(f"it reads one file of {{'cfg', 'model'}}; {subject.source} is none")
    content: Any = torch.load(files[0], map_location="cpu", weights_only=True)
    model = BEATs(BEATsConfig(content["cfg"]))
    model.load_state_dict(content["model"])
    model = model.eval().to(subject.like.device, subject.like.dtype)

    def encode(audio: Tensor) -> Tensor:
        features: Tensor = model.extract_features(audio[:, 0], feature_only=True)[0]
        return features.transpose(1, 2)

    apart = "a stream sees windows, the published model the whole clip"
    return Published("BEATs", encode, apart=apart)
