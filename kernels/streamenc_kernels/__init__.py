"""Kernels: one public op per file or folder, each with the plain torch definition of it."""

from streamenc_kernels.causal_conv import cannot_convolve, causal_conv, fuses_conv
from streamenc_kernels.causal_conv.definition import causal_conv_torch
from streamenc_kernels.compress_spectrum import compress_spectrum
from streamenc_kernels.depthwise_norm import depthwise_norm, fuses_depthwise
from streamenc_kernels.full_float32 import FullFloat32, reduced_products
from streamenc_kernels.fused_linear import cannot_fuse, fused_linear, fuses_linear
from streamenc_kernels.fused_linear.definition import Activation, RowNorm
from streamenc_kernels.lane_rows import write_rows
from streamenc_kernels.lane_rows.definition import write_rows_torch
from streamenc_kernels.overlap_add import adds_fused, overlap_add
from streamenc_kernels.overlap_add.definition import overlap_add_torch
from streamenc_kernels.packed_linear import (
    cannot_pack,
    pack_linear,
    packed_linear,
    packing_choice,
)
from streamenc_kernels.ring_attention import (
    cannot_attend,
    plan_ring,
    ring_attention,
)
from streamenc_kernels.ring_attention.definition import (
    RingPlan,
    attend_rotated,
    causal_bias,
    ring_attention_torch,
    rotary,
    rotate,
)
from streamenc_kernels.rotary_table import rotary_table
from streamenc_kernels.rvq_search import cannot_search, rvq_search
from streamenc_kernels.rvq_search.definition import Quantiser, rvq_search_torch

__all__ = [
    "Activation",
    "FullFloat32",
    "Quantiser",
    "RingPlan",
    "RowNorm",
    "adds_fused",
    "attend_rotated",
    "cannot_attend",
    "cannot_fuse",
    "cannot_convolve",
    "cannot_pack",
    "cannot_search",
    "causal_bias",
    "causal_conv",
    "causal_conv_torch",
    "fuses_conv",
    "compress_spectrum",
    "depthwise_norm",
    "fuses_depthwise",
    "overlap_add",
    "overlap_add_torch",
    "fused_linear",
    "fuses_linear",
    "pack_linear",
    "packed_linear",
    "packing_choice",
    "plan_ring",
    "reduced_products",
    "ring_attention",
    "ring_attention_torch",
    "rotary",
    "rotary_table",
    "rotate",
    "rvq_search",
    "rvq_search_torch",
    "write_rows",
    "write_rows_torch",
]
