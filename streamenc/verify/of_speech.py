"""Published encoders of speech."""

from __future__ import annotations

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
