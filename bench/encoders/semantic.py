"""WavLM, and X-Codec on HuBERT and on WavLM, of the published sizes as transformers makes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from bench.encoders import Encoder


def save_wavlm(folder: Path) -> None:
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    WavLMModel(WavLMConfig()).save_pretrained(folder)


def save_xcodec(family: str, folder: Path) -> None:
    from transformers import XcodecConfig, XcodecModel

    torch.manual_seed(0)
    model = XcodecModel(XcodecConfig(semantic_model_config={"model_type": family}))
    for level, quantizer in enumerate(model.quantizer.quantizers):
        quantizer.codebook.embed.normal_(std=0.8**level)
    model.save_pretrained(folder)


ENCODERS = [
    Encoder("WavLM base", "wavlm", save_wavlm),
    Encoder("X-Codec on HuBERT", "xcodec", partial(save_xcodec, "hubert")),
    Encoder(
        "X-Codec in clips of 4 s",
        "xcodec",
        partial(save_xcodec, "hubert"),
        options={"mode": "segment", "segment_ms": 4000},
    ),
    Encoder("X-Codec on WavLM", "xcodec", partial(save_xcodec, "wavlm")),
    Encoder("X-Codec, decode", "xcodec", partial(save_xcodec, "hubert"), part="decoder"),
]
