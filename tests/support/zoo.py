"""Every registered model, small, with random weights in its published layout, loaded as by a user.

A family of the registry that has no row here is an error, so that no model goes untested.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import streamenc
from streamenc.layers.quantize import ResidualVQ
from streamenc.models import nano
from streamenc.models.model import Model
from streamenc.registry import FAMILIES, WITHOUT_WEIGHTS
from streamenc.testing import signals
from tests.support import references


@dataclass(frozen=True)
class Row:
    """name: what tests print; family: as in the registry; save: writes weights to a folder."""

    name: str
    family: str
    save: Callable[[Path], None] | None = None
    load: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    sides: tuple[str, ...] = ("encoder", "decoder")
    float32_error: float = 1e-5


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
        head.bias[: len(head.bias) // 3] -= 3  # magnitudes below full scale
    books = torch.randn(quantizer.codebooks.shape, generator=generator)
    books *= 0.8 ** torch.arange(config.codebooks)[:, None, None]
    nano.save(folder, config, encoder.chain, decoder.chain, books)


def save_cosmos(folder: Path) -> None:
    references.cosmos().save_pretrained(folder)


def save_cosmos_4x8x8(folder: Path) -> None:
    references.cosmos(temporal_compression_ratio=4).save_pretrained(folder)


def save_cosmos_codes(folder: Path) -> None:
    """Six channels that are rounded, as in the models with codes; diffusers has none of them."""
    tensors = references.cosmos(temporal_compression_ratio=4).state_dict()
    generator = torch.Generator().manual_seed(7)
    for name, shape in (("quant_conv", (6, 5)), ("post_quant_conv", (5, 6))):
        weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        tensors[f"{name}.weight"] = weight[..., None, None, None]
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    save_file(tensors, folder / "model.safetensors")


def save_cosmos_images(folder: Path) -> None:
    save_file(references.cosmos_image_tensors(), folder / "model.safetensors")


def save_whisper(folder: Path) -> None:
    references.whisper().save_pretrained(folder)


def save_vit(family: str = "vit", **overrides: Any) -> Callable[[Path], None]:
    return lambda folder: references.vit(family, **overrides).save_pretrained(folder)


def save_resnet(folder: Path) -> None:
    references.resnet().save_pretrained(folder)


def save_vae(folder: Path) -> None:
    references.vae().save_pretrained(folder)


def save_vqgan(folder: Path) -> None:
    references.vqgan().save_pretrained(folder)


def save_taesd(folder: Path) -> None:
    references.taesd().save_pretrained(folder)


ENCODER = ("encoder",)
# Chunks of 0.2 s, fewer than fit into the positions, with look-ahead that is no whole chunk.
WHISPER_CHUNKS = {"chunk_ms": 200, "ahead_ms": 100, "left": 2}
WHISPER_WINDOWS = {"mode": "window", "hop_ms": 200}
CHUNKED = {"chunk_ms": 5, "left": 3, "norm_seconds": 0.05}
ROWS = [
    Row("nano", "nano", save_nano),
    Row("mimi", "mimi", save_mimi),
    Row("mimi-transformers-tail", "mimi", save_mimi, options={"tail": "transformers"}),
    Row("encodec", "encodec", save_encodec),
    Row("encodec-low-latency", "encodec", save_encodec, options={"exact": False}),
    Row("encodec-48k", "encodec", save_encodec_48k),
    Row("cosmos", "cosmos", save_cosmos, options={"limit": 170}),
    Row("cosmos-window", "cosmos", save_cosmos, options={"mode": "window", "context": 5}),
    Row("cosmos-reference", "cosmos", save_cosmos_4x8x8, options={"mode": "reference", "clip": 9}),
    Row("cosmos-codes", "cosmos", save_cosmos_codes, options={"mode": "window", "context": 3}),
    Row("cosmos-images", "cosmos", save_cosmos_images),
    Row("whisper-chunked", "whisper", save_whisper, options=WHISPER_CHUNKS, sides=ENCODER),
    Row(
        "whisper-layers",
        "whisper",
        save_whisper,
        options={"chunk_ms": 60, "ahead_ms": 0, "left": 3, "layers": "1,2"},
        sides=ENCODER,
    ),
    Row(
        "whisper-window",
        "whisper",
        save_whisper,
        options={**WHISPER_WINDOWS, "ahead_ms": 400},
        sides=ENCODER,
    ),
    Row(
        "whisper-whole-windows",
        "whisper",
        save_whisper,
        options={**WHISPER_WINDOWS, "emit": "window"},
        sides=ENCODER,
    ),
    Row("mel", "mel", load="mel", sides=ENCODER),
    Row("mel-whisper", "mel", load="mel:whisper", sides=ENCODER),
    Row("mel-uncentred", "mel", load="mel", options={"centred": False}, sides=ENCODER),
    Row(
        "mel-magnitude",
        "mel",
        load="mel",
        options={"bands": 0, "power": 1, "log": "none", "n_fft": 123, "hop": 35},
        sides=ENCODER,
    ),
    Row("vit", "vit", save_vit(), sides=ENCODER),
    Row(
        "vit-patches",
        "vit",
        save_vit(),
        options={"output": "patches", "size": "any", "layers": "1,3"},
        sides=ENCODER,
    ),
    Row("dinov2", "dinov2", save_vit("dinov2"), options={"size": 8}, sides=ENCODER),
    Row(
        "dinov2-registers",
        "dinov2_with_registers",
        save_vit("dinov2_with_registers"),
        options={"size": "12x8", "output": "patches"},
        sides=ENCODER,
    ),
    Row("resnet", "resnet", save_resnet, options={"size": "16x12"}, sides=ENCODER),
    Row(
        "resnet-grid",
        "resnet",
        save_resnet,
        options={"size": "any", "output": "grid", "layer": 1},
        sides=ENCODER,
    ),
    Row("vae", "vae", save_vae),
    Row("vqgan", "vqgan", save_vqgan),
    Row("taesd", "taesd", save_taesd),
    Row("wav2vec2", "wav2vec2", save_speech("wav2vec2"), options=CHUNKED, sides=ENCODER),
    Row(
        "wav2vec2-stable",
        "wav2vec2",
        save_speech("wav2vec2", **references.STABLE),
        options={**CHUNKED, "ahead": 2, "layers": [0, 1, 3], "positions": "wait"},
        sides=ENCODER,
    ),
    Row(
        "wav2vec2-sliding",
        "wav2vec2",
        save_speech("wav2vec2", **references.LAYER_NORM),
        options={"mode": "sliding", "window_ms": 25, "hop_ms": 5, "ahead_ms": 5},
        sides=ENCODER,
    ),
    Row(
        "hubert-frozen-mean",
        "hubert",
        save_speech("hubert", **references.LAYER_NORM),
        options={
            "chunk_ms": 5,
            "norm": "frozen",
            "calibration": CLIP,
            "layers": "all",
            "mean": True,
            "left": 2,
        },
        sides=ENCODER,
    ),
    Row(
        "hubert-units",
        "hubert",
        save_speech("hubert"),
        options={**CHUNKED, "ahead": 1, "layer": 2, "units": CENTROIDS},
        sides=ENCODER,
    ),
]
if missing := FAMILIES.keys() - {row.family for row in ROWS}:
    raise AssertionError(f"no row in tests/support/zoo.py for {sorted(missing)}")

# (row, side): what the equality test runs over.
CASES = [(row.name, side) for row in ROWS for side in row.sides]
_BY_NAME = {row.name: row for row in ROWS}


@functools.cache
def codec(name: str, dtype: torch.dtype = torch.float64) -> streamenc.Codec:
    row = _BY_NAME[name]
    part = "both" if len(row.sides) == 2 else row.sides[0]
    with tempfile.TemporaryDirectory() as folder:
        where = row.load
        if row.save is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row.save(Path(folder))
            where = folder
        assert row.save is not None or row.family in WITHOUT_WEIGHTS
        return streamenc.load(where, part=part, dtype=dtype, **row.options)


def row(name: str) -> Row:
    return _BY_NAME[name]


def model(name: str, side: str, dtype: torch.dtype = torch.float64) -> Model:
    loaded = codec(name, dtype)
    return loaded.encoder if side == "encoder" else loaded.decoder


signal, cut = signals.random_signal, signals.cut
recording, raw = signals.recording, signals.raw
