"""Models of sound: nano, Mimi, EnCodec, mel, Whisper, wav2vec 2.0 and HuBERT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from streamenc.layers.quantize import ResidualVQ
from streamenc.models import nano
from tests.support import references
from tests.support.zoo.row import Config, Promise, Row, other


def save_mimi(folder: Path) -> None:
    references.mimi().save_pretrained(folder)


def save_encodec(folder: Path) -> None:
    references.encodec().save_pretrained(folder)


def save_encodec_48k(folder: Path) -> None:
    """Stereo segments of 1,440 samples that overlap by 15."""
    references.encodec(
        sampling_rate=48_000,
        audio_channels=2,
        normalize=True,
        chunk_length_s=0.03,
        overlap=0.01,
        norm_type="time_group_norm",
        use_causal_conv=False,
        target_bandwidths=[108.0, 216.0],
    ).save_pretrained(folder)


def save_speech(family: str, **overrides: Any) -> Callable[[Path], None]:
    return lambda folder: references.speech(family, **overrides).save_pretrained(folder)


CENTROIDS = torch.randn(64, 24, generator=torch.Generator().manual_seed(5)).numpy()
CLIP = 0.2 * torch.randn(4000, generator=torch.Generator().manual_seed(6)).numpy()


def save_nano(folder: Path) -> None:
    """Frames of 16 samples, windows of 24, narrow blocks; random weights that keep sounds alive."""
    config = nano.NanoConfig(
        hop=8,
        spectral_width=12,
        spectral_hidden=20,
        encoder_width=16,
        encoder_blocks=2,
        encoder_hidden=24,
        decoder_width=16,
        decoder_blocks=2,
        decoder_hidden=24,
        synthesis_width=12,
        synthesis_blocks=1,
        synthesis_hidden=20,
        latent=8,
        codebooks=6,
        entries=64,
    )
    quantizer = ResidualVQ(config.codebooks, config.entries, config.latent)
    encoder, decoder = nano.NanoEncoder(config, quantizer), nano.NanoDecoder(config, quantizer)
    for model in (encoder, decoder):
        references.randomise(model.chain)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head = decoder.chain.layers[-2]
        bins = len(head.bias) // 3
        head.bias[:bins] -= 3  # magnitudes below full scale
        # A phase near the origin is any phase: there rounding would be as large as the signal.
        head.bias[bins : 2 * bins] += 2
    books = torch.randn(quantizer.codebooks.shape, generator=generator)
    books *= 0.8 ** torch.arange(config.codebooks)[:, None, None]
    nano.save(folder, config, encoder.chain, decoder.chain, books)


def save_whisper(folder: Path) -> None:
    references.whisper().save_pretrained(folder)


def rope_theta(config: Config) -> None:
    place = config.get("rope_parameters") or config
    assert place["rope_theta"] == 10_000
    place["rope_theta"] = 5_000


# Chunks of 0.2 s, fewer than fit into the positions, with look-ahead that is no whole chunk.
WHISPER_CHUNKS = {"chunk_ms": 200, "ahead_ms": 100, "left": 2}
WHISPER_WINDOWS = {"mode": "window", "hop_ms": 200}
CHUNKED = {"chunk_ms": 5, "left": 3, "norm_seconds": 0.05}
ROWS = [
    Row("nano", "nano", save_nano, [(32, 16, 1, 1, 16, 0), (1, 1, 16, 16, 0, 0)]),
    Row("mimi", "mimi", save_mimi, [(24, 24, 1, 1, 0, 0), (1, 1, 24, 24, 0, 0)]),
    Row(
        "mimi-transformers-tail",
        "mimi",
        save_mimi,
        [(24, 24, 1, 1, 0, 0), (1, 1, 24, 24, 0, 0)],
        options={"tail": "transformers"},
    ),
    Row("encodec", "encodec", save_encodec, [(56, 8, 7, 1, 48, 0), (7, 1, 56, 8, 6, 0)]),
    Row(
        "encodec-low-latency",
        "encodec",
        save_encodec,
        [(8, 8, 1, 1, 0, 0), (1, 1, 8, 8, 0, 0)],
        options={"exact": False},
    ),
    Row(
        "encodec-48k",
        "encodec",
        save_encodec_48k,
        [(1440, 1425, 180, 180, 15, 0), (180, 180, 1425, 1425, 0, 0)],
    ),
    Row(
        "whisper-chunked",
        "whisper",
        save_whisper,
        [(5001, 3200, 10, 10, 1801, 0)],
        options=WHISPER_CHUNKS,
    ),
    Row(
        "whisper-layers",
        "whisper",
        save_whisper,
        [(1161, 960, 3, 3, 201, 0)],
        options={"chunk_ms": 60, "ahead_ms": 0, "left": 3, "layers": "1,2"},
    ),
    Row(
        "whisper-window",
        "whisper",
        save_whisper,
        [(9600, 3200, 10, 10, 6400, 0)],
        options={**WHISPER_WINDOWS, "ahead_ms": 400},
    ),
    Row(
        "whisper-whole-windows",
        "whisper",
        save_whisper,
        [(3200, 3200, 40, 40, 0, 0)],
        options={**WHISPER_WINDOWS, "emit": "window"},
    ),
    Row("mel", "mel", None, [(301, 240, 1, 1, 61, 0)], load="mel"),
    Row("mel-whisper", "mel", None, [(201, 160, 1, 1, 41, 0)], load="mel:whisper"),
    Row(
        "mel-uncentred",
        "mel",
        None,
        [(1024, 240, 1, 1, 784, 0)],
        load="mel",
        options={"centred": False},
    ),
    Row(
        "mel-magnitude",
        "mel",
        None,
        [(62, 35, 1, 1, 27, 0)],
        load="mel",
        options={"bands": 0, "power": 1, "log": "none", "n_fft": 123, "hop": 35},
    ),
    Row("wav2vec2", "wav2vec2", save_speech("wav2vec2"), [(90, 80, 4, 4, 10, 0)], options=CHUNKED),
    Row(
        "wav2vec2-stable",
        "wav2vec2",
        save_speech("wav2vec2", **references.STABLE),
        [(330, 80, 4, 4, 250, 0)],
        options={**CHUNKED, "ahead": 2, "layers": [0, 1, 3], "positions": "wait"},
    ),
    Row(
        "wav2vec2-sliding",
        "wav2vec2",
        save_speech("wav2vec2", **references.LAYER_NORM),
        [(410, 80, 16, 4, 330, 0)],
        options={"mode": "sliding", "window_ms": 25, "hop_ms": 5, "ahead_ms": 5},
    ),
    Row(
        "hubert-frozen-mean",
        "hubert",
        save_speech("hubert", **references.LAYER_NORM),
        [(90, 80, 4, 4, 10, 0)],
        options={
            "chunk_ms": 5,
            "norm": "frozen",
            "calibration": CLIP,
            "layers": "all",
            "mean": True,
            "left": 2,
        },
    ),
    Row(
        "hubert-units",
        "hubert",
        save_speech("hubert"),
        [(170, 80, 4, 4, 90, 0)],
        options={**CHUNKED, "ahead": 1, "layer": 2, "units": CENTROIDS},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "nano": (640, 320, 1, 1, 320, 0),
    "mel": (301, 240, 1, 1, 61, 0),
    "mel:whisper": (201, 160, 1, 1, 41, 0),
    "mel:whisper-128": (201, 160, 1, 1, 41, 0),
    "kyutai/mimi": (1920, 1920, 1, 1, 0, 0),
    "facebook/encodec_24khz": (2240, 320, 7, 1, 1920, 0),
    "facebook/encodec_48khz": (48000, 47520, 150, 150, 480, 0),
    "openai/whisper-tiny": (32201, 16000, 50, 50, 16201, 0),
    "openai/whisper-large-v3": (32201, 16000, 50, 50, 16201, 0),
    "facebook/hubert-base-ls960": (5200, 5120, 16, 16, 80, 0),
    "facebook/hubert-large-ll60k": (5200, 5120, 16, 16, 80, 0),
    "facebook/wav2vec2-base": (5200, 5120, 16, 16, 80, 0),
    "facebook/wav2vec2-large-lv60": (5200, 5120, 16, 16, 80, 0),
}
FIELDS = {
    "nano": 7360,
    "mel": 600,
    "mel:whisper": 400,
    "mel:whisper-128": 400,
    "kyutai/mimi": 1919480,
    "facebook/encodec_48khz": 48000,
    "openai/whisper-tiny": 1152240,
    "openai/whisper-large-v3": 5632240,
}
CONFIGURED = [
    ("nano", other("sample_rate", 24_000)),
    ("mimi", rope_theta),
    ("mimi", other("sliding_window", 19)),
    ("mimi", other("num_attention_heads", 2)),
    ("mimi", other("norm_eps", 1e-6)),
    ("encodec", other("pad_mode", "replicate")),
    ("encodec-48k", other("pad_mode", "replicate")),
    ("whisper-chunked", other("encoder_attention_heads", 4)),
    ("whisper-window", other("encoder_attention_heads", 4)),
    ("wav2vec2", other("layer_norm_eps", 1e-6)),
    ("wav2vec2", other("num_attention_heads", 2)),
    ("wav2vec2-sliding", other("layer_norm_eps", 1e-6)),
    ("hubert-units", other("layer_norm_eps", 1e-6)),
    ("hubert-units", other("num_attention_heads", 2)),
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("mimi", {"tail": "transformers"}),
    ("encodec", {"exact": False}),
    ("mel", {"power": 1}),
    ("mel-whisper", {"log_max": 2.0}),
    ("whisper-chunked", {"left": 3}),
    ("wav2vec2", {"norm_seconds": 0.1}),
]
