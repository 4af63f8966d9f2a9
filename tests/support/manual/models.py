"""Small models with random weights, in folders of the published names that the manual says."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.encoders import moss as encoders
from tests.field.test_addresses import certificate
from tests.support import hearing, moss, qwen3tts, references
from tests.support.zoo import asr, pictures, texts, vibevoice, video, vision
from tests.support.zoo.sound import save_speech

BERT = "sentence-transformers/all-MiniLM-L6-v2"
FRIDA = "ai-forever/FRIDA"


def _mimi(folder: Path) -> None:
    """The published hop and number of codebooks, of 4 channels where those have 64."""
    sizes = {"upsampling_ratios": [8, 6, 5, 4], "num_quantizers": 32}
    references.mimi(**sizes).save_pretrained(folder)


def _encodec(folder: Path) -> None:
    sizes = {"upsampling_ratios": [8, 5, 4, 2], "codebook_size": 1024}
    references.encodec(**sizes, target_bandwidths=[1.5, 6.0]).save_pretrained(folder)


def _hubert(folder: Path) -> None:
    """Frames of 20 ms, and the layer that units are made of."""
    stem = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 8], "conv_stride": [5, 8, 8]}
    save_speech("hubert", **stem, num_hidden_layers=10)(folder)


def _whisper(folder: Path) -> None:
    sizes = {"num_mel_bins": 80, "max_source_positions": 1500}
    references.whisper(**sizes).save_pretrained(folder)


def _ears(folder: Path) -> None:
    """A window of 1.2 s."""
    references.whisper(max_source_positions=60).save_pretrained(folder)


def _xcodec(folder: Path) -> None:
    references.xcodec(published_hop=True).save_pretrained(folder)


def _moss(folder: Path) -> None:
    config = moss.config()
    config["quantizer_kwargs"]["num_quantizers"] = 8
    encoders.save(folder, config)


def _frida(folder: Path) -> None:
    texts.save_t5(folder)
    said = '{"prompts": {"search_document": "search_document: "}}'
    (folder / "config_sentence_transformers.json").write_text(said)


SAVED: dict[str, Callable[[Path], None]] = {
    "kyutai/mimi": _mimi,
    "my-checkpoint": _mimi,
    "Qwen/Qwen3-TTS-Tokenizer-12Hz": qwen3tts.save,
    "OpenMOSS-Team/MOSS-Audio-Tokenizer-Nano": _moss,
    "OpenMOSS-Team/MOSS-Audio-Tokenizer": _moss,
    "bezzam/VibeVoice-AcousticTokenizer": vibevoice.save,
    "facebook/encodec_24khz": _encodec,
    "hf-audio/xcodec-hubert-librispeech": _xcodec,
    "facebook/hubert-base-ls960": _hubert,
    "hubert": _hubert,
    "openai/whisper-tiny": _whisper,
    "openai/whisper-large-v2": _ears,
    "UsefulSensors/moonshine-streaming-tiny": asr.save_moonshine,
    "mistralai/Voxtral-Mini-4B-Realtime-2602": asr.save_voxtral,
    "Qwen/Qwen3-ASR-0.6B": asr.save_qwen,
    "nvidia/nemotron-speech-streaming-en-0.6b": asr.save_nemotron,
    "Cosmos-0.1-Tokenizer-DV8x16x16": pictures.save_cosmos_codes,
    "Cosmos-0.1-Tokenizer-CV8x8x8": pictures.save_cosmos,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": video.save_wan(),
    "Lightricks/LTX-Video/vae": video.save_ltx(),
    "facebook/dinov2-small": pictures.save_vit("dinov2", image_size=28, patch_size=14),
    "LanguageBind/Video-LLaVA-7B-hf": vision.save_video_llava,
    "tsinghua-ee/SALMONN": hearing.save_salmonn,
    BERT: texts.save_bert(),
    FRIDA: _frida,
}


def save_models(text: str, place: Path, kept: Path) -> None:
    """Puts the models that a text names into a folder, from those that were made before."""
    for name, save in SAVED.items():
        if name in text and not (place / name).exists():
            made = kept / name.replace("/", "--")
            if not made.exists():
                made.mkdir(parents=True)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    save(made)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(made)
    for name in re.findall(r"(?:lpepino\/beats_ckpts\/)?BEATs_iter3_plus_AS2M\w*\.pt", text):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        hearing.save_beats(place / name)
    if "cert.pem" in text:
        certificate(place, "DNS:localhost")
        (place / "keys").write_text("robots robots-0123456789abcdef\n")
    if "centroids.npy" in text:
        books = np.random.default_rng(0).standard_normal((20, 24)).astype(np.float32)
        np.save(place / "centroids.npy", books)
