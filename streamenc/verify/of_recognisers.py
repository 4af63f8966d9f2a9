"""Published encoders of streaming speech recognisers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.verify.published import Absent, Published, Subject


def moonshine(subject: Subject) -> Published:
    """transformers' Moonshine streaming over the whole clip, with the mask that makes windows."""
    from transformers import AutoConfig, MoonshineStreamingModel
    from transformers.models.moonshine_streaming import modeling_moonshine_streaming as source

    whole = AutoConfig.from_pretrained(subject.source, revision=subject.revision)
    if whole.model_type == "moonshine_streaming":
        model = subject.pretrained(MoonshineStreamingModel).encoder
    else:
        model = subject.pretrained(source.MoonshineStreamingEncoder)
    if subject.options.get("bounds") == "inclusive":
        windows = model.config.sliding_windows
        model.config.sliding_windows = [[back + 1, ahead + bool(ahead)] for back, ahead in windows]
    frame = model.embedder.frame_len

    def encode(audio: Tensor) -> Tensor:
        missing = -audio.shape[-1] % frame
        there = torch.ones(len(audio), audio.shape[-1], dtype=torch.int64, device=audio.device)
        states = model(F.pad(audio[:, 0], (0, missing)), attention_mask=F.pad(there, (0, missing)))
        features: Tensor = states.last_hidden_state.transpose(1, 2)
        return features

    return Published("transformers", encode)


def voxtral(subject: Subject) -> Published:
    """transformers' Voxtral Realtime over the whole clip, behind its own feature extractor."""
    from transformers import AutoConfig, VoxtralRealtimeFeatureExtractor, VoxtralRealtimeModel
    from transformers.models.voxtral_realtime import modeling_voxtral_realtime as source

    whole = AutoConfig.from_pretrained(subject.source, revision=subject.revision)
    model: Any = None
    if whole.model_type == "voxtral_realtime":
        model = subject.pretrained(VoxtralRealtimeModel)
        tower = model.audio_tower
    else:
        tower = subject.pretrained(source.VoxtralRealtimeEncoder)
    extractor = VoxtralRealtimeFeatureExtractor(feature_size=tower.config.num_mel_bins)
    embeddings = subject.options.get("output") == "embeddings"

    def encode(audio: Tensor) -> Tensor:
        sound = audio[0, 0].float().cpu().numpy()
        found = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features
        states = tower(found.to(subject.like)).last_hidden_state
        if embeddings:
            groups = states.shape[1] // model.config.downsample_factor
            states = states[:, : groups * model.config.downsample_factor].unflatten(1, (groups, -1))
            states = model.multi_modal_projector(states.flatten(2))
        features: Tensor = states.transpose(1, 2)
        return features

    return Published("transformers", encode)


def qwen(subject: Subject) -> Published:
    """transformers' audio encoder of Qwen3-ASR or Qwen3-Omni over the whole clip, behind the
    feature extractor."""
    from transformers import AutoConfig, Qwen3ASRFeatureExtractor, Qwen3ASRModel
    from transformers.models.qwen3_asr import modeling_qwen3_asr as asr
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as omni

    kind = AutoConfig.from_pretrained(subject.source, revision=subject.revision).model_type
    embeddings = subject.options.get("output") == "embeddings"
    projected: Any = None
    if kind == "qwen3_asr":
        model = subject.pretrained(Qwen3ASRModel)
        tower, projected = model.audio_tower, model.multi_modal_projector
    elif kind == "qwen3_asr_encoder":
        tower = subject.pretrained(asr.Qwen3ASREncoder)
    elif kind == "qwen3_omni_moe_audio_encoder":
        tower = subject.pretrained(omni.Qwen3OmniMoeAudioEncoder)
    else:
        raise Absent("transformers loads Qwen3-Omni whole, with its language model")
    omnis = kind.startswith("qwen3_omni")
    if tower.config.n_window != 50:
        raise Absent("transformers' code counts 13 rows for each piece, whatever n_window is")
    if omnis and not embeddings:
        raise Absent("Qwen3OmniMoeAudioEncoder gives embeddings alone: load output=embeddings")
    if subject.options.get("log_max") is not None:
        raise Absent("the feature extractor knows no fixed log_max; leave it out")
    extractor = Qwen3ASRFeatureExtractor(feature_size=tower.config.num_mel_bins, min_length=0)

    segment = extractor.hop_length * tower.config.n_window_infer
    # As far as the window of a segment's last frame goes beyond its end.
    beyond = extractor.n_fft // 2 - extractor.hop_length

    def encode(audio: Tensor) -> Tensor:
        """Each segment as the clip up to its end gives it: a stream knows the loudest bin of no
        more."""
        sound = audio[0, 0].float().cpu().numpy()
        features: list[Tensor] = []
        count = 0
        for end in range(segment, len(sound) + segment, segment):
            rows = heard(sound[: end + beyond])
            features.append(rows[count:])
            count = len(rows)
        return torch.cat(features).T[None]

    def heard(sound: Any) -> Tensor:
        found = extractor(
            sound,
            sampling_rate=16_000,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        frames = found.input_features.to(subject.like)
        there = found.attention_mask.to(frames.device)
        rows: Tensor
        if omnis:
            length = there.sum(dim=1)
            rows = tower(frames[0, :, : int(length)], length).last_hidden_state
        else:
            rows = tower(frames, there).last_hidden_state
        return projected(rows) if embeddings and projected is not None else rows

    return Published("transformers", encode)


def nemotron(subject: Subject) -> Published:
    """transformers' encoder of Nemotron ASR streaming over the whole clip, behind its own feature
    extractor."""
    from transformers import (
        AutoConfig,
        NemotronAsrStreamingEncoder,
        NemotronAsrStreamingFeatureExtractor,
        NemotronAsrStreamingForRNNT,
    )

    whole = AutoConfig.from_pretrained(subject.source, revision=subject.revision)
    if whole.model_type == "nemotron_asr_streaming":
        model = subject.pretrained(NemotronAsrStreamingForRNNT).encoder
    else:
        model = subject.pretrained(NemotronAsrStreamingEncoder)
    extractor = NemotronAsrStreamingFeatureExtractor(feature_size=model.config.num_mel_bins)
    ahead = subject.options.get("lookahead", model.config.default_num_lookahead_tokens)

    def encode(audio: Tensor) -> Tensor:
        sound = audio[0, 0].float().cpu().numpy()
        found = extractor(sound, sampling_rate=16_000, return_tensors="pt")
        given = model(
            found.input_features.to(subject.like),
            attention_mask=found.attention_mask.to(audio.device),
            num_lookahead_tokens=int(ahead),
        )
        states = int(given.attention_mask.sum())
        features: Tensor = given.last_hidden_state[:, :states].transpose(1, 2)
        return features

    return Published("transformers", encode)
