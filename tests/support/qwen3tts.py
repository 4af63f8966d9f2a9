"""Qwen3-TTS-Tokenizer-12Hz as it is published, small: its encoder is transformers' Mimi, and its
decoder is put together from the parts that it shares with Qwen3-Omni in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import references

omni = pytest.importorskip("transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe")
transformers = references.transformers

# A hop of 24 samples, as the small Mimi has.
DECODER = {
    "codebook_size": 64,
    "codebook_dim": 12,
    "latent_dim": 16,
    "hidden_size": 10,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "intermediate_size": 14,
    "num_hidden_layers": 2,
    "sliding_window": 7,
    "num_quantizers": 4,
    "num_semantic_quantizers": 1,
    "decoder_dim": 20,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000,
    "hidden_act": "silu",
    "attention_bias": False,
    "layer_scale_initial_scale": 0.01,
    "max_position_embeddings": 8000,
    "upsample_rates": [3, 2],
    "upsampling_ratios": [2, 2],
}


class _Books(nn.Module):
    """A residual quantiser whose entries are sums over the vectors of a cluster, and counts."""

    def __init__(self, levels: int, entries: int, dim: int, width: int) -> None:
        super().__init__()

        def book() -> nn.Module:
            layer = nn.Module()
            layer._codebook = nn.Module()
            layer._codebook.cluster_usage = nn.Parameter(torch.ones(entries))
            layer._codebook.embedding_sum = nn.Parameter(torch.zeros(entries, dim))
            return layer

        self.input_proj = nn.Conv1d(width, dim, 1, bias=False)
        self.output_proj = nn.Conv1d(dim, width, 1, bias=False)
        self.vq = nn.Module()
        self.vq.layers = nn.ModuleList(book() for _ in range(levels))

    def forward(self, codes: Tensor) -> Tensor:
        books = [layer._codebook for layer in self.vq.layers]
        entries = [b.embedding_sum / b.cluster_usage.clamp(min=1e-5)[:, None] for b in books]
        found = [F.embedding(codes[:, level], book) for level, book in enumerate(entries)]
        projected: Tensor = self.output_proj(torch.stack(found).sum(0).transpose(1, 2))
        return projected


class Decoder(nn.Module):
    """The published decoder, all frames at once."""

    def __init__(self, **overrides: Any) -> None:
        super().__init__()
        c = SimpleNamespace(**{**DECODER, **overrides})
        config = transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe
        shared = config.Qwen3OmniMoeCode2WavConfig(**vars(c))
        shared._attn_implementation = "eager"
        whole = omni.Qwen3OmniMoeCode2Wav(shared)
        self.quantizer = nn.Module()
        self.quantizer.rvq_first = _Books(1, c.codebook_size, c.codebook_dim // 2, c.codebook_dim)
        self.quantizer.rvq_rest = _Books(
            c.num_quantizers - 1, c.codebook_size, c.codebook_dim // 2, c.codebook_dim
        )
        self.pre_conv = omni.Qwen3OmniMoeCausalConvNet(c.codebook_dim, c.latent_dim, 3)
        self.pre_transformer = whole.pre_transformer
        self.pre_transformer.input_proj = nn.Linear(c.latent_dim, c.hidden_size)
        self.pre_transformer.output_proj = nn.Linear(c.hidden_size, c.latent_dim)
        self.upsample = nn.ModuleList(
            nn.ModuleList(
                [
                    omni.Qwen3OmniMoeCausalTransConvNet(c.latent_dim, c.latent_dim, ratio, ratio),
                    omni.Qwen3OmniMoeConvNeXtBlock(c.latent_dim),
                ]
            )
            for ratio in c.upsampling_ratios
        )
        self.decoder = whole.decoder
        self.decoder[0] = omni.Qwen3OmniMoeCausalConvNet(c.latent_dim, c.decoder_dim, 7)
        for module in self.modules():
            # Qwen3-Omni cuts off the beginning too, the tokenizer the end alone.
            if isinstance(module, omni.Qwen3OmniMoeCausalTransConvNet):
                module.left_pad = 0

    def forward(self, codes: Tensor) -> Tensor:
        x = self.quantizer.rvq_first(codes[:, :1]) + self.quantizer.rvq_rest(codes[:, 1:])
        x = self.pre_transformer.input_proj(self.pre_conv(x).transpose(1, 2))
        x = self.pre_transformer(inputs_embeds=x).last_hidden_state
        x = self.pre_transformer.output_proj(x).transpose(1, 2)
        for layer in (*(block for blocks in self.upsample for block in blocks), *self.decoder):
            x = layer(x)
        return x.clamp(-1, 1)


def decoder(seed: int = 0, **overrides: Any) -> Decoder:
    """With random weights, whose sound stays within the limits."""
    model = Decoder(**overrides).eval()
    references.randomise(model, seed, book=2.0)
    with torch.no_grad():
        for name, tensor in model.decoder.named_parameters():
            if name.endswith("conv2.conv.weight"):
                tensor *= 0.3
        model.decoder[-1].conv.weight *= 0.03
    return model


def encoder(seed: int = 0) -> Any:
    """MimiModel, with more codebooks than are taken."""
    return references.mimi(seed)


def config(**overrides: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3_tts_tokenizer_12hz",
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "encoder_config": {**references.MIMI_SMALL, "model_type": "mimi"},
        "decoder_config": dict(DECODER),
        "encoder_valid_num_quantizers": DECODER["num_quantizers"],
        "encode_downsample_rate": 24,
        "decode_upsample_rate": 24,
        "input_sample_rate": 24_000,
        "output_sample_rate": 24_000,
        **overrides,
    }


def save(folder: Path, encoding: Any = None, decoding: Decoder | None = None) -> None:
    """In the published layout: the encoder as transformers saves it, less what decodes there."""
    encoding, decoding = encoding or encoder(), decoding or decoder()
    encoding.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config()))
    path = folder / "model.safetensors"
    tensors = {
        f"encoder.{name}": tensor
        for name, tensor in load_file(path).items()
        if not name.startswith(("decoder", "upsample"))
    }
    tensors |= {
        f"decoder.{name}": tensor.contiguous() for name, tensor in decoding.state_dict().items()
    }
    save_file(tensors, path)
