"""Every registered model, small, with random weights in its published layout, loaded as by a user.

A family of the registry that has no row here is an error, so that no model goes untested.
"""

from __future__ import annotations

import copy
import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import streamenc
from streamenc.layers.quantize import ResidualVQ
from streamenc.models import nano
from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal
from streamenc.registry import FAMILIES, WITHOUT_WEIGHTS
from streamenc.spec import ImageSize

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")


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


def randomise(module: nn.Module, seed: int = 0, *, book: float = 1.0) -> None:
    """Random weights that keep signals near unit size, with books that codes spread over.

    book  Standard deviation of the first codebook; each later one has 0.8 of the one before.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator, dtype=like.dtype)

    depth: dict[str, int] = {}
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point() or "inited" in name or "initialized" in name:
                continue
            if "cluster" in name or "running_var" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.split(".")[-1] in ("embed", "embed_sum", "embedding_sum", "embed_avg"):
                kind = name.split("layers")[0]
                scale = book * 0.8 ** depth.setdefault(kind, 0)
                depth[kind] += 1
                tensor.copy_(normal(tensor, scale))
            elif "scale" in name:
                tensor.copy_(0.3 + 0.7 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith(("weight_g", "original0")):
                tensor.copy_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim == 1:
                base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                tensor.copy_(base + normal(tensor, 0.1))
            else:
                # Transposed convolutions have their inputs first; two of them reach each output.
                tensor.copy_(normal(tensor, 1.3 / tensor[0].numel() ** 0.5))


MIMI_SMALL = {
    "hidden_size": 32,
    "num_filters": 4,
    "upsampling_ratios": [4, 3],
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 6,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "sliding_window": 20,
    "upsample_groups": 32,
}
ENCODEC_SMALL = {
    "hidden_size": 16,
    "num_filters": 4,
    "upsampling_ratios": [4, 2],
    "codebook_size": 64,
}


def mimi_reference(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Mimi, small, with random weights."""
    config = transformers.MimiConfig(**{**MIMI_SMALL, **overrides})
    hop = 2 * torch.tensor(config.upsampling_ratios).prod().item()
    config._frame_rate = config.sampling_rate / hop
    model = transformers.MimiModel(config).eval()
    randomise(model, seed, book=4.0)
    return model


def encodec_reference(seed: int = 0, **overrides: Any) -> Any:
    """transformers' EnCodec, small, with random weights."""
    config = {**ENCODEC_SMALL, "target_bandwidths": [54.0, 108.0], **overrides}
    model = transformers.EncodecModel(transformers.EncodecConfig(**config)).eval()
    randomise(model, seed)
    return model


def save_mimi(folder: Path) -> None:
    mimi_reference().save_pretrained(folder)


def save_encodec(folder: Path) -> None:
    encodec_reference().save_pretrained(folder)


def save_encodec_48k(folder: Path) -> None:
    """Stereo segments of 1,440 samples that overlap by 15."""
    encodec_reference(
        sampling_rate=48_000,
        audio_channels=2,
        normalize=True,
        chunk_length_s=0.03,
        overlap=0.01,
        norm_type="time_group_norm",
        use_causal_conv=False,
        target_bandwidths=[108.0, 216.0],
    ).save_pretrained(folder)


# A hop of 20 samples, 1.25 ms, 4 of them in a chunk of 5 ms; positions see 4 frames ahead.
SPEECH_SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [12, 16, 20],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 10,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 8,
}
LAYER_NORM = {"feat_extract_norm": "layer", "conv_bias": True}
STABLE = {**LAYER_NORM, "do_stable_layer_norm": True}


def speech_reference(family: str, seed: int = 0, **overrides: Any) -> Any:
    """transformers' wav2vec 2.0 or HuBERT, small, with random weights."""
    kind = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert"}[family]
    config = getattr(transformers, f"{kind}Config")(**{**SPEECH_SMALL, **overrides})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    randomise(model, seed)
    return model


def save_speech(family: str, **overrides: Any) -> Callable[[Path], None]:
    return lambda folder: speech_reference(family, **overrides).save_pretrained(folder)


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
        randomise(model.chain)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        head = decoder.chain.layers[-2]
        head.bias[: len(head.bias) // 3] -= 3  # magnitudes below full scale
    books = torch.randn(quantizer.codebooks.shape, generator=generator)
    books *= 0.8 ** torch.arange(config.codebooks)[:, None, None]
    nano.save(folder, config, encoder.chain, decoder.chain, books)


# Attention in the first stage too, so that it is met at several rates along time.
COSMOS_SMALL: dict[str, Any] = {
    "latent_channels": 5,
    "encoder_block_out_channels": (6, 8, 10, 10),
    "decode_block_out_channels": (8, 10, 10, 10),
    "attention_resolutions": (256,),
    "num_layers": 1,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 8,
}


def cosmos_reference(seed: int = 0, **overrides: Any) -> Any:
    """diffusers' Cosmos tokenizer for video, small, with random weights."""
    model = diffusers.AutoencoderKLCosmos(**{**COSMOS_SMALL, **overrides}).eval()
    randomise(model, seed)
    return model


WHISPER_SMALL = {
    "num_mel_bins": 20,
    "d_model": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 1,
    "decoder_ffn_dim": 8,
    "vocab_size": 40,
    "max_source_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}


def whisper_reference(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Whisper, small, with random weights; its window is 0.8 s."""
    config = transformers.WhisperConfig(**{**WHISPER_SMALL, **overrides})
    model = transformers.WhisperForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


def save_cosmos(folder: Path) -> None:
    cosmos_reference().save_pretrained(folder)


def save_cosmos_4x8x8(folder: Path) -> None:
    cosmos_reference(temporal_compression_ratio=4).save_pretrained(folder)


def save_cosmos_codes(folder: Path) -> None:
    """Six channels that are rounded, as in the models with codes; diffusers has none of them."""
    tensors = cosmos_reference(temporal_compression_ratio=4).state_dict()
    generator = torch.Generator().manual_seed(7)
    for name, shape in (("quant_conv", (6, 5)), ("post_quant_conv", (5, 6))):
        weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        tensors[f"{name}.weight"] = weight[..., None, None, None]
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    save_file(tensors, folder / "model.safetensors")


def save_cosmos_images(folder: Path) -> None:
    save_file(cosmos_image_tensors(), folder / "model.safetensors")


def cosmos_image_tensors(embedding: int = 4, latent: int = 4) -> dict[str, Tensor]:
    """The smallest image model in NVIDIA's names: one stage of 128 channels, halved once."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (128,)

    def block(name: str) -> None:
        for i in (1, 2):
            norm(f"{name}.norm{i}")
            conv(f"{name}.conv{i}", 128, 128)

    def middle(side: str) -> None:
        block(f"{side}.mid.block_1")
        norm(f"{side}.mid.attn_1.norm")
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{side}.mid.attn_1.{part}", 128, 128, 1)
        block(f"{side}.mid.block_2")
        norm(f"{side}.norm_out")

    for side, stage, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        conv(f"{side}.conv_in", 128, 48 if side == "encoder" else latent)
        for j in range(1 if side == "encoder" else 2):
            block(f"{side}.{stage}.0.block.{j}")
        conv(f"{side}.{stage}.0.{sampler}.conv", 128, 128)
        middle(side)
        conv(f"{side}.conv_out", latent if side == "encoder" else 48, 128)
    conv("quant_conv", embedding, latent, 1)
    conv("post_quant_conv", latent, embedding, 1)
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in shapes.items():
        fan = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
        tensors[name] = torch.randn(shape, generator=generator) / fan**0.5
        if "norm" in name and name.endswith("weight"):
            tensors[name] += 1
    return tensors


def save_whisper(folder: Path) -> None:
    whisper_reference().save_pretrained(folder)


VIT_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
}


def vit_reference(family: str = "vit", seed: int = 0, **overrides: Any) -> Any:
    """transformers' ViT or DINOv2, small, with random weights; positions for 3 x 3 patches."""
    kind = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
    config = getattr(transformers, f"{kind[family]}Config")(**{**VIT_SMALL, **overrides})
    model = getattr(transformers, f"{kind[family]}Model")(config).eval()
    randomise(model, seed)
    return model


def save_vit(family: str = "vit", **overrides: Any) -> Callable[[Path], None]:
    return lambda folder: vit_reference(family, **overrides).save_pretrained(folder)


def resnet_reference(seed: int = 0, **overrides: Any) -> Any:
    """transformers' ResNet, small, with random weights."""
    sizes = {"embedding_size": 6, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1]}
    model = transformers.ResNetModel(transformers.ResNetConfig(**{**sizes, **overrides})).eval()
    randomise(model, seed)
    return model


def save_resnet(folder: Path) -> None:
    resnet_reference().save_pretrained(folder)


LDM_SMALL: dict[str, Any] = {
    "block_out_channels": (8, 12, 16),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
}


def vae_reference(seed: int = 0, **overrides: Any) -> Any:
    """diffusers' AutoencoderKL, small, with random weights."""
    model = diffusers.AutoencoderKL(**{**LDM_SMALL, **overrides}).eval()
    randomise(model, seed)
    return model


def save_vae(folder: Path) -> None:
    vae_reference().save_pretrained(folder)


def vqgan_reference(seed: int = 0, **overrides: Any) -> Any:
    """diffusers' VQModel, small, with random weights and a codebook that codes spread over."""
    sizes = {"latent_channels": 5, "vq_embed_dim": 6, "num_vq_embeddings": 40}
    model = diffusers.VQModel(**{**LDM_SMALL, **sizes, **overrides}).eval()
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    book = model.quantize.embedding.weight
    with torch.no_grad():
        book.copy_(torch.randn(book.shape, generator=generator))
    return model


def save_vqgan(folder: Path) -> None:
    vqgan_reference().save_pretrained(folder)


def taesd_reference(seed: int = 0, **overrides: Any) -> Any:
    """diffusers' AutoencoderTiny, small, with random weights."""
    sizes: dict[str, Any] = {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 2, 1),
        "num_decoder_blocks": (2, 1, 1),
    }
    model = diffusers.AutoencoderTiny(**{**sizes, **overrides}).eval()
    randomise(model, seed)
    return model


def save_taesd(folder: Path) -> None:
    taesd_reference().save_pretrained(folder)


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
        save_speech("wav2vec2", **STABLE),
        options={**CHUNKED, "ahead": 2, "layers": [0, 1, 3], "positions": "wait"},
        sides=ENCODER,
    ),
    Row(
        "wav2vec2-sliding",
        "wav2vec2",
        save_speech("wav2vec2", **LAYER_NORM),
        options={"mode": "sliding", "window_ms": 25, "hop_ms": 5, "ahead_ms": 5},
        sides=ENCODER,
    ),
    Row(
        "hubert-frozen-mean",
        "hubert",
        save_speech("hubert", **LAYER_NORM),
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


def recording(of: Model, latents: list[Tensor], leave: Callable[..., Signal]) -> Model:
    """The same model with another stateless end; notes what comes to it."""
    other = copy.copy(of)

    def noted(y: Tensor, codebooks: int | None = None) -> Signal:
        latents.append(y)
        return leave(y, codebooks)

    other.after = noted  # type: ignore[method-assign]
    return other


def raw(of: Model) -> Model:
    """The same model without its stateless end: streams give latents."""
    other = copy.copy(of)
    other.after = lambda y, codebooks=None: y  # type: ignore[method-assign]
    return other


def signal(of: Model, items: int, *, batch: int = 1, seed: int = 0) -> Tensor | Scaled:
    """Noise, or random codes, for `of` to take."""
    generator = torch.Generator().manual_seed(seed)
    spec = of.spec
    size: tuple[int, ...] = ()
    if spec.input.axes:
        image = spec.input.image or ImageSize()
        size = image.size or (2 * image.unit, image.unit)
    shape = (batch, spec.input.channels, items, *size)
    if spec.input.kind != "codes":
        return 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64).to(of.like.dtype)
    codes = torch.randint(spec.codebook_size, shape, generator=generator)
    if not spec.scaled:
        return codes
    segments = torch.rand((batch, 1, items // spec.hop + 2), generator=generator) + 0.1
    scale = segments.repeat_interleave(spec.hop, dim=-1)[..., :items]
    return Scaled(codes, scale.to(of.like.dtype))


def cut(x: Tensor | Scaled, start: int, stop: int) -> Tensor | Scaled:
    """Items `start` to `stop`."""
    if isinstance(x, Scaled):
        return Scaled(x.codes[..., start:stop], x.scale[..., start:stop])
    return x[:, :, start:stop]
