"""The published implementations, small, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")


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
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if "inited" in name or "initialized" in name:
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
            elif tensor.ndim <= 1:
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


def mimi(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Mimi, small, with random weights."""
    config = transformers.MimiConfig(**{**MIMI_SMALL, **overrides})
    hop = 2 * torch.tensor(config.upsampling_ratios).prod().item()
    config._frame_rate = config.sampling_rate / hop
    model = transformers.MimiModel(config).eval()
    randomise(model, seed, book=4.0)
    return model


def encodec(seed: int = 0, **overrides: Any) -> Any:
    """transformers' EnCodec, small, with random weights."""
    config = {**ENCODEC_SMALL, "target_bandwidths": [54.0, 108.0], **overrides}
    model = transformers.EncodecModel(transformers.EncodecConfig(**config)).eval()
    randomise(model, seed)
    return model


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

# Distances share a bucket from 4 frames on, and all do from 12 on.
WAVLM_SMALL = {"num_buckets": 16, "max_bucket_distance": 12}


LAYER_NORM = {"feat_extract_norm": "layer", "conv_bias": True}


STABLE = {**LAYER_NORM, "do_stable_layer_norm": True}


def speech(family: str, seed: int = 0, **overrides: Any) -> Any:
    """transformers' wav2vec 2.0, HuBERT or WavLM, small, with random weights."""
    kind = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[family]
    small = {**SPEECH_SMALL, **(WAVLM_SMALL if family == "wavlm" else {}), **overrides}
    config = getattr(transformers, f"{kind}Config")(**small)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    randomise(model, seed)
    return model


# The hop of the speech models, by strides of which one is odd; books in 30 dimensions.
XCODEC_SMALL: dict[str, Any] = {
    "encoder_hidden_size": 4,
    "downsampling_ratios": [5, 2, 2],
    "decoder_hidden_size": 16,
    "upsampling_ratios": [5, 2, 2],
    "hidden_size": 6,
}


def xcodec(family: str = "hubert", seed: int = 0, published_hop: bool = False) -> Any:
    """transformers' X-Codec on a small semantic model, with 4 books and random weights.

    published_hop  320 samples, instead of 20.
    """
    stem, ratios = {}, XCODEC_SMALL
    if published_hop:
        stem = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 8], "conv_stride": [5, 8, 8]}
        ratios = {
            **XCODEC_SMALL,
            "downsampling_ratios": [8, 5, 4, 2],
            "upsampling_ratios": [8, 5, 4, 2],
        }
    semantic = speech(family, **stem).config
    rate = 50 if published_hop else 800
    config = transformers.XcodecConfig(
        acoustic_model_config={"model_type": "dac", **ratios},
        semantic_model_config=semantic.to_dict(),
        codebook_size=64,
        target_bandwidths=[rate * 6 * books / 1000 for books in (1, 2, 4)],
    )
    model = transformers.XcodecModel(config).eval()
    randomise(model, seed)
    with torch.no_grad():
        for level, quantizer in enumerate(model.quantizer.quantizers):
            quantizer.codebook.embed *= 0.8**level
    _tame(model)
    return model


def _tame(model: nn.Module) -> None:
    """Frequencies near 1 in its snakes, as trained ones begin, and units that add a little to what
    comes: rounding grows with each."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("alpha"):
                tensor.copy_(1 + 0.2 * tensor)
            elif "res_unit" in name and name.endswith("conv2.weight"):
                tensor *= 0.3


def higgs(folder: Path, seed: int = 0) -> Any:
    """The Higgs tokenizer, saved to `folder`: X-Codec's network, which is given back, at 24 kHz
    with frames of 960 samples, and 4 books of 8 dimensions that are projected to and from.

    Its own class asks for torchaudio. The projections are the model's `projections`.
    """
    stem = {"conv_dim": [8] * 3, "conv_kernel": [11, 8, 8], "conv_stride": [5, 8, 8]}
    ratios = [8, 5, 4, 2, 3]
    acoustic = {
        **XCODEC_SMALL,
        "model_type": "dac",
        "decoder_hidden_size": 32,
        "downsampling_ratios": ratios,
        "upsampling_ratios": ratios,
    }
    common = {
        "acoustic_model_config": acoustic,
        "semantic_model_config": speech("hubert", **stem).config.to_dict(),
        "codebook_size": 64,
        "target_bandwidths": [0.15, 0.3, 0.6],
    }
    model = transformers.XcodecModel(transformers.XcodecConfig(**common)).eval()
    randomise(model, seed)
    _tame(model)
    width, generator = model.config.hidden_size, torch.Generator().manual_seed(seed)
    shapes = {
        "codebook.embed": (64, 8),
        "project_in.weight": (8, width),
        "project_in.bias": (8,),
        "project_out.weight": (width, 8),
        "project_out.bias": (width,),
    }
    model.projections = {
        f"quantizer.quantizers.{level}.{name}": torch.randn(shape, generator=generator)
        / (3 if name == "project_in.weight" else 1)
        for level in range(4)
        for name, shape in shapes.items()
    }
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("quantizer")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kept | model.projections, folder / "model.safetensors", {"format": "pt"})
    sizes = {"sample_rate": 24_000, "semantic_sample_rate": 16_000, "codebook_dim": 8}
    config = {"model_type": "higgs_audio_v2_tokenizer", "downsample_factor": 320, **common, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return model


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


def cosmos(seed: int = 0, **overrides: Any) -> Any:
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


def whisper(seed: int = 0, **overrides: Any) -> Any:
    """transformers' Whisper, small, with random weights; its window is 0.8 s."""
    config = transformers.WhisperConfig(**{**WHISPER_SMALL, **overrides})
    model = transformers.WhisperForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


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


VIT_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
}


def vit(family: str = "vit", seed: int = 0, **overrides: Any) -> Any:
    """transformers' ViT or DINOv2, small, with random weights; positions for 3 x 3 patches."""
    kind = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
    config = getattr(transformers, f"{kind[family]}Config")(**{**VIT_SMALL, **overrides})
    model = getattr(transformers, f"{kind[family]}Model")(config).eval()
    randomise(model, seed)
    return model


def resnet(seed: int = 0, **overrides: Any) -> Any:
    """transformers' ResNet, small, with random weights."""
    sizes = {"embedding_size": 6, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1]}
    model = transformers.ResNetModel(transformers.ResNetConfig(**{**sizes, **overrides})).eval()
    randomise(model, seed)
    return model


LDM_SMALL: dict[str, Any] = {
    "block_out_channels": (8, 12, 16),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
}


def vae(seed: int = 0, **overrides: Any) -> Any:
    """diffusers' AutoencoderKL, small, with random weights."""
    model = diffusers.AutoencoderKL(**{**LDM_SMALL, **overrides}).eval()
    randomise(model, seed)
    return model


# Its decoder has 32 groups wherever it is modulated, and as many channels in books as in latents.
MOVQ_SMALL: dict[str, Any] = {
    "block_out_channels": (32, 32, 64),
    "norm_num_groups": 4,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "norm_type": "spatial",
}


def vqgan(seed: int = 0, **overrides: Any) -> Any:
    """diffusers' VQModel, small, with random weights and a codebook that codes spread over."""
    sizes = {"latent_channels": 5, "vq_embed_dim": 6, "num_vq_embeddings": 40}
    model = diffusers.VQModel(**{**LDM_SMALL, **sizes, **overrides}).eval()
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    book = model.quantize.embedding.weight
    with torch.no_grad():
        book.copy_(torch.randn(book.shape, generator=generator))
    return model


# Attention with and without kernels around each place, halved and doubled by shuffling pixels.
DCAE_SMALL: dict[str, Any] = {
    "latent_channels": 4,
    "attention_head_dim": 4,
    **{f"{side}_block_out_channels": (8, 8, 16) for side in ("encoder", "decoder")},
    **{f"{side}_layers_per_block": (1, 1, 1) for side in ("encoder", "decoder")},
    **{f"{side}_qkv_multiscales": ((), (), (5, 3)) for side in ("encoder", "decoder")},
    "encoder_block_types": ("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_norm_types": ("batch_norm", "rms_norm", "rms_norm"),
    "decoder_act_fns": ("relu", "silu", "silu"),
}


def dcae(seed: int = 0, **overrides: Any) -> Any:
    """diffusers' AutoencoderDC, small, with random weights."""
    model = diffusers.AutoencoderDC(**{**DCAE_SMALL, **overrides}).eval()
    randomise(model, seed)
    return model


def taesd(seed: int = 0, **overrides: Any) -> Any:
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
