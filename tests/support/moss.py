"""MOSS-Audio-Tokenizer as it is published, small: its transformers are moshi's, to which their
authors gave other ends and other patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.encoders import moss
from bench.encoders.moss import patch, transformer

# Patches of 4 samples of two interleaved channels, 2 positions, and 3: a frame has 12 samples.
FORM = {"num_heads": 2, "num_layers": 2, "dim_feedforward": 14}


def config(**overrides: Any) -> dict[str, Any]:
    return {
        "model_type": "moss-audio-tokenizer",
        "sampling_rate": 1200,
        "downsample_rate": 12,
        "number_channels": 2,
        "enable_channel_interleave": True,
        "causal_transformer_context_duration": 0.05,
        "encoder_kwargs": [
            patch(4),
            transformer(4, 8, 6, **FORM, context_duration=0.02),
            patch(2),
            transformer(12, 12, 4, **FORM, context_duration=0.05),
            patch(3),
        ],
        "decoder_kwargs": [
            patch(3),
            transformer(4, 12, 12, **FORM),
            patch(2),
            transformer(6, 8, 4, **FORM, context_duration=0.02),
            patch(4),
        ],
        "quantizer_kwargs": {
            "quantizer_type": "rlfq",
            "input_dim": 12,
            "rvq_dim": 10,
            "output_dim": 12,
            "num_quantizers": 4,
            "codebook_size": 64,
            "codebook_dim": 3,
        },
        **overrides,
    }


def save(folder: Path) -> None:
    moss.save(folder, config())


class Published:
    """The published modules over a whole signal, one pass, in the dtype of the weights given."""

    def __init__(self, folder: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
        self.config = config
        self.tensors = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (batch, books, frames), and what the books divide up."""
        c, q = self.config, self.config["quantizer_kwargs"]
        x = F.pad(x, (0, -x.shape[-1] % c["downsample_rate"]))
        x = x.transpose(1, 2).reshape(len(x), 1, -1)
        left = latents = self._normed("quantizer.input_proj", self._side(x, "encoder"))
        codes = []
        for level in range(q["num_quantizers"]):
            there = f"quantizer.quantizers.{level}"
            book = self.tensors[f"{there}.codebook.weight"]
            inside = F.normalize(self._normed(f"{there}.in_proj", left), dim=1)
            codes.append((F.normalize(book) @ inside).argmax(dim=1))
            left = left - self._normed(f"{there}.out_proj", book[codes[-1]].transpose(1, 2))
        return torch.stack(codes, dim=1), latents

    def decode(self, codes: Tensor) -> Tensor:
        parts = []
        for level in range(codes.shape[1]):
            there = f"quantizer.quantizers.{level}"
            entries = self.tensors[f"{there}.codebook.weight"][codes[:, level]].transpose(1, 2)
            parts.append(self._normed(f"{there}.out_proj", entries))
        x = self._normed("quantizer.output_proj", torch.stack(parts).sum(0))
        x = self._side(x, "decoder")
        return x.reshape(len(x), -1, self.config["number_channels"]).transpose(1, 2)

    def _normed(self, there: str, x: Tensor) -> Tensor:
        v, g = self.tensors[f"{there}.weight_v"], self.tensors[f"{there}.weight_g"]
        weight = g * v / v.norm(dim=1, keepdim=True)
        return F.conv1d(x, weight, self.tensors[f"{there}.bias"])

    def _side(self, x: Tensor, side: str) -> Tensor:
        c = self.config
        rate = float(c["sampling_rate"] * c["number_channels"])
        default = c["causal_transformer_context_duration"]
        least = min(
            module.get("context_duration", default)
            for module in c["encoder_kwargs"]
            if module["module_type"] == "Transformer"
        )
        if side == "decoder":
            rate = c["sampling_rate"] / c["downsample_rate"]
        for index, module in enumerate(c[f"{side}_kwargs"]):
            if module["module_type"] == "Transformer":
                seconds = module.get("context_duration", least)
                x = self._transformer(x, f"{side}.{index}", module, round(rate * seconds))
                continue
            size, (batch, channels, time) = module["patch_size"], x.shape
            if side == "encoder":
                x = x.reshape(batch, channels, -1, size).permute(0, 1, 3, 2)
                x, rate = x.reshape(batch, channels * size, -1), rate / size
            else:
                x = x.reshape(batch, channels // size, size, time).permute(0, 1, 3, 2)
                x, rate = x.reshape(batch, channels // size, time * size), rate * size
        return x

    def _transformer(self, x: Tensor, there: str, module: dict[str, Any], context: int) -> Tensor:
        from moshi.modules.transformer import StreamingTransformer

        own = StreamingTransformer(
            d_model=module["d_model"],
            num_heads=module["num_heads"],
            num_layers=module["num_layers"],
            dim_feedforward=module["dim_feedforward"],
            causal=True,
            context=context,
            positional_embedding="rope",
            max_period=module["max_period"],
            norm="layer_norm",
            layer_scale=0.01,
            gating="none",
        )
        prefix = f"{there}.transformer."
        own.load_state_dict(
            {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        )
        x = x.transpose(1, 2)
        for name, layer in (("input_proj", None), ("", own), ("output_proj", None)):
            weight = self.tensors.get(f"{there}.{name}.weight")
            if isinstance(layer, nn.Module):
                x = layer.to(x.dtype).eval()(x)
            elif weight is not None:
                x = F.linear(x, weight)
        return x.transpose(1, 2)
