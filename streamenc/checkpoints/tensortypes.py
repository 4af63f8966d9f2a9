"""What tensors of a checkpoint may be: floats. And by which traces one knows what else they are.

Weights of 4 or 8 bits are numbers only together with their scales, which each method of
quantisation keeps under names, in layouts and with meanings of its own.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WANTED = "floats of 16, 32 or 64 bits"
DENSE = "Save the weights anew as dense tensors that have values"
CURE = (
    "Take the unquantised model, or turn this one back where it was made (in transformers: "
    "model.dequantize(), then model.to(torch.bfloat16).save_pretrained(FOLDER))"
)

# What stands beside a layer's weight, or in its place, and which methods keep it so.
_TRACES = (
    ("SCB", "bitsandbytes, 8 bits"),
    ("weight.SCB", "bitsandbytes, 8 bits"),
    ("weight.absmax", "bitsandbytes, 4 bits"),
    ("weight.quant_map", "bitsandbytes, 4 bits"),
    ("qweight", "GPTQ or AWQ"),
    ("qzeros", "GPTQ or AWQ"),
    ("weight_packed", "compressed-tensors"),
    ("weight_scale", "FP8 or INT8 with scales"),
    ("weight_scale_inv", "FP8 with scales"),
    ("scale_weight", "FP8 with scales"),
    ("weight._data", "quanto"),
    ("weight_qdata", "torchao"),
    ("_weight_qdata", "torchao"),
    ("W_q", "HQQ"),
)


class UnusableTensor(ValueError):
    """A tensor that cannot be read as numbers; it says what it is: "a sparse tensor"."""


def odd_type(tensor: Tensor) -> str:
    """What a tensor is that holds no plain numbers; "" where it does."""
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    return ""


def quantised_by(names: Container[str], tensor: str) -> str:
    """By which method the layer of a tensor was quantised; "" where nothing beside it tells."""
    layer = tensor.rpartition(".")[0]
    return next((by for trace, by in _TRACES if f"{layer}.{trace}" in names), "")


def stated_method(config: Mapping[str, Any]) -> str:
    """The method that a config says; "" where it says none."""
    said = config.get("quantization_config")
    return str(said.get("quant_method") or "") if isinstance(said, Mapping) else ""
