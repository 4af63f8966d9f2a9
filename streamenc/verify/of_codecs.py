"""Published codecs of sound."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.verify.published import Absent, Published, Subject, argument_of


def mimi(subject: Subject) -> Published:
    """transformers' MimiModel, over whole clips."""
    from transformers import MimiModel

    model = subject.pretrained(MimiModel)

    def latents(audio: Tensor) -> Tensor:
        return argument_of(model.quantizer, "encode", lambda: model.encode(audio))

    def encode(audio: Tensor) -> Tensor:
        codes: Tensor = model.encode(audio).audio_codes
        return codes

    def decode(codes: Tensor) -> Tensor:
        audio: Tensor = model.decode(codes).audio_values
        return audio

    apart = ""
    if subject.options.get("tail", "moshi") == "moshi":
        apart = (
            "the last frame of a clip that is no multiple of 1920 samples: load tail=transformers"
        )
    return Published("transformers", encode, latents, decode, apart)


def qwen3tts(subject: Subject) -> Published:
    """The tokenizer of the package qwen-tts, decoding in one pass, not in pieces of 300 frames.

    With transformers 4 its encoder has no window: past 10 s its codes are others.
    """
    from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import (
        Qwen3TTSTokenizerV2Model,
    )

    model = subject.pretrained(Qwen3TTSTokenizerV2Model)

    def encode(audio: Tensor) -> Tensor:
        mono = audio[:, 0]
        clips = model.encode(mono, torch.ones_like(mono, dtype=torch.int64)).audio_codes
        return torch.stack(list(clips)).transpose(1, 2)

    def latents(audio: Tensor) -> Tensor:
        return argument_of(model.encoder.quantizer, "encode", lambda: encode(audio))

    apart = ""
    if subject.options.get("tail") == "moshi":
        apart = "the last frame of a clip that is no multiple of 1920 samples"
    return Published("qwen-tts", encode, latents, model.decoder, apart)


def vibevoice(subject: Subject) -> Published:
    """transformers' VibeVoiceAcousticTokenizerModel without noise, over whole clips; its processor
    fills clips up to whole hops with zeros."""
    from transformers import VibeVoiceAcousticTokenizerModel

    model = subject.pretrained(VibeVoiceAcousticTokenizerModel)

    def encode(audio: Tensor) -> Tensor:
        whole = F.pad(audio, (0, -audio.shape[-1] % model.config.hop_length))
        latents: Tensor = model.encode(whole, sample=False).latents
        return latents.transpose(1, 2)

    def decode(latents: Tensor) -> Tensor:
        audio: Tensor = model.decode(latents.transpose(1, 2)).audio
        return audio

    return Published("transformers", encode, decode=decode)


def encodec(subject: Subject) -> Published:
    """transformers' EncodecModel, over whole clips."""
    from transformers import EncodecModel

    model = subject.pretrained(EncodecModel)
    if model.config.normalize:
        raise Absent("EncodecModel of 48 kHz gives codes segment by segment, with their scales")
    bandwidth = max(model.config.target_bandwidths)

    def encode(audio: Tensor) -> Tensor:
        codes: Tensor = model.encode(audio, bandwidth=bandwidth).audio_codes[0]
        return codes

    def decode(codes: Tensor) -> Tensor:
        audio: Tensor = model.decode(codes[None], [None]).audio_values
        return audio

    apart = ""
    if subject.codec.has_encoder and subject.codec.spec.equality == "window":
        apart = "exact=false has zeros where the published model reflects the start"
    return Published("transformers", encode, model.encoder, decode, apart)


def xcodec(subject: Subject) -> Published:
    """transformers' XcodecModel, or its HiggsAudioV2TokenizerModel, over clips that are filled up
    to whole frames, as their feature extractor does: over the whole clip, or over each segment
    where ours goes by those."""
    import transformers

    kind = transformers.XcodecModel
    if subject.codec.family != "xcodec":
        if find_spec("torchaudio") is None:
            raise Absent("torchaudio is not installed: pip install torchaudio")
        kind = transformers.HiggsAudioV2TokenizerModel
    model = subject.pretrained(kind)
    mode = subject.options.get("mode", "chunked")
    length = subject.codec.spec.hop if mode == "segment" and subject.codec.has_encoder else 0

    def clips(audio: Tensor) -> list[Tensor]:
        whole = F.pad(audio, (0, -audio.shape[-1] % model.config.hop_length))
        size = length or whole.shape[-1]
        return [whole[..., start : start + size] for start in range(0, whole.shape[-1], size)]

    def encode(audio: Tensor) -> Tensor:
        return torch.cat([model.encode(clip).audio_codes for clip in clips(audio)], dim=-1)

    def latents(audio: Tensor) -> Tensor:
        calls = [partial(model.encode, clip) for clip in clips(audio)]
        each = [argument_of(model.quantizer, "encode", call) for call in calls]
        return torch.cat(each, dim=-1)

    def decode(codes: Tensor) -> Tensor:
        audio: Tensor = model.decode(codes).audio_values
        return audio

    heard = {"chunked": "chunks", "sliding": "windows", "segment": ""}[mode]
    apart = f"its semantic model hears the whole clip, ours {heard}" if heard else ""
    return Published("transformers", encode, latents, decode, apart)
