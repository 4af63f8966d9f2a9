"""Video-LLaVA, small, with random weights: in transformers' layout, and in the original one, whose
towers are restated here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.references import randomise, transformers
from tests.support.visiontowers import TOWER

CHANNELS, FRAMES = 12, 4


def video_llava(seed: int = 0, **overrides: Any) -> Any:
    """transformers' VideoLlavaForConditionalGeneration."""
    config = transformers.VideoLlavaConfig(
        vision_config={**TOWER, "model_type": "clip_vision_model"},
        text_config={
            "model_type": "llama",
            "hidden_size": CHANNELS,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "vocab_size": 16,
        },
        **overrides,
    )
    model = transformers.VideoLlavaForConditionalGeneration(config).eval()
    randomise(model, seed)
    return model


class _Layer(nn.Module):
    """A block of LanguageBind's video tower, as its authors' CLIPEncoderLayer computes it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        width = TOWER["hidden_size"]
        self.block = block
        self.temporal_embedding = nn.Parameter(torch.empty(1, FRAMES, width))
        self.temporal_layer_norm1 = nn.LayerNorm(width, eps=1e-5)
        self.temporal_attn = nn.ModuleDict(
            {f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")}
        )

    def forward(self, x: Tensor, *given: Any, **named: Any) -> Any:
        tokens, width = x.shape[1:]
        heads = TOWER["num_attention_heads"]
        x = x.unflatten(0, (-1, FRAMES)).permute(0, 2, 1, 3).flatten(0, 1)
        x = x + self.temporal_embedding
        normed = self.temporal_layer_norm1(x)
        q, k, v = (
            self.temporal_attn[f"{name}_proj"](normed).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("q", "k", "v")
        )
        weights = (q @ k.transpose(2, 3) * (width // heads) ** -0.5).softmax(dim=-1)
        seen = (weights @ v).transpose(1, 2).flatten(2)
        x = x + self.temporal_attn["out_proj"](seen)
        x = x.unflatten(0, (-1, tokens)).permute(0, 2, 1, 3).flatten(0, 1)
        return self.block(x, *given, **named)


class Original(nn.Module):
    """Both towers and the projector, by the names of the original layout."""

    def __init__(self, seed: int = 0, act: str = "gelu") -> None:
        super().__init__()
        config = transformers.CLIPVisionConfig(**TOWER, hidden_act=act)
        self.video, self.image = (transformers.CLIPVisionModel(config) for _ in range(2))
        layers = self.video.encoder.layers
        for i, layer in enumerate(layers):
            layers[i] = _Layer(layer)
        width = TOWER["hidden_size"]
        self.mm_projector = nn.Sequential(
            nn.Linear(width, CHANNELS), nn.GELU(), nn.Linear(CHANNELS, CHANNELS)
        )
        randomise(self, seed)
        self.eval()

    def hidden(self, tower: str, x: Tensor, layer: int) -> Tensor:
        """A hidden state behind a layer: (images, tokens, width)."""
        model = getattr(self, tower)
        states = model.pre_layrnorm(model.embeddings(x))
        for block in model.encoder.layers[:layer]:
            states = block(states, attention_mask=None)
            states = states[0] if isinstance(states, tuple) else states
        return states

    def save(self, folder: Path, **config: Any) -> None:
        tensors = {}
        for name, tensor in self.state_dict().items():
            first, _, rest = name.partition(".")
            if first != "mm_projector":
                first = f"{first}_tower.{first}_tower"
            tensors[f"model.{first}.{rest.replace('.block.', '.')}"] = tensor.clone()
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(2, 2)
        save_file(tensors, folder / "model.safetensors")
        said = {
            "model_type": "llava",
            "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
            "mm_image_tower": "LanguageBind/LanguageBind_Image",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "vision_config": {**TOWER, "hidden_act": "gelu"},
        }
        (folder / "config.json").write_text(json.dumps({**said, **config}))
