"""diffusers' names of a VAE's tensors as latent-diffusion and taming-transformers have them."""

from __future__ import annotations

import re

from torch import Tensor


def ldm_tensors(tensors: dict[str, Tensor], ups: int) -> dict[str, Tensor]:
    """ups: levels of the decoder, which they count from the last one on."""
    rules = [
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", lambda m: "mid.attn_1"),
        (r"down_blocks\.(\d)\.resnets", lambda m: f"down.{m[1]}.block"),
        (r"down_blocks\.(\d)\.attentions", lambda m: f"down.{m[1]}.attn"),
        (r"down_blocks\.(\d)\.downsamplers\.0", lambda m: f"down.{m[1]}.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{ups - 1 - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.attentions", lambda m: f"up.{ups - 1 - int(m[1])}.attn"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{ups - 1 - int(m[1])}.upsample"),
        (r"conv_shortcut", lambda m: "nin_shortcut"),
        (r"conv_norm_out", lambda m: "norm_out"),
        (r"(group|spatial)_norm", lambda m: "norm"),
        (r"to_([qkv])", lambda m: m[1]),
        (r"to_out\.0", lambda m: "proj_out"),
    ]
    renamed = {}
    for name, tensor in tensors.items():
        matrix = re.search(r"to_(q|k|v|out\.0)\.weight", name)
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        renamed[name] = tensor[..., None, None].clone() if matrix else tensor.clone()
    return renamed


def old_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As diffusers named attention before 2023; many published files still have these names."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = tensor
    return renamed
