"""Published encoders of streaming speech recognisers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.verify.published import Published, Subject


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
        model.config.sliding_windows = [(back + 1, ahead + bool(ahead)) for back, ahead in windows]
    frame = model.embedder.frame_len

    def encode(audio: Tensor) -> Tensor:
        missing = -audio.shape[-1] % frame
        there = torch.ones(len(audio), audio.shape[-1], dtype=torch.int64, device=audio.device)
        states = model(F.pad(audio[:, 0], (0, missing)), attention_mask=F.pad(there, (0, missing)))
        features: Tensor = states.last_hidden_state.transpose(1, 2)
        return features

    return Published("transformers", encode)
