"""Kernels: one public op per file, each with the plain torch definition that says what it means."""

from streamenc_kernels.exporting import exporting, while_exporting
from streamenc_kernels.packed_linear import (
    cannot_pack,
    pack_linear,
    packed_linear,
    packing_choice,
)
from streamenc_kernels.ring_attention import (
    RingPlan,
    cannot_attend,
    causal_bias,
    plan_ring,
    ring_attention,
    ring_attention_torch,
    rotary,
    rotate,
)
from streamenc_kernels.rvq_search import Quantiser, cannot_search, rvq_search, rvq_search_torch

__all__ = [
    "Quantiser",
    "RingPlan",
    "cannot_attend",
    "cannot_pack",
    "cannot_search",
    "causal_bias",
    "exporting",
    "pack_linear",
    "packed_linear",
    "packing_choice",
    "plan_ring",
    "ring_attention",
    "ring_attention_torch",
    "rotary",
    "rotate",
    "rvq_search",
    "rvq_search_torch",
    "while_exporting",
]
