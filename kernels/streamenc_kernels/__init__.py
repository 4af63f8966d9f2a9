"""Kernels: one public op per file, each with the plain torch definition that says what it means."""

from streamenc_kernels.packed_linear import cannot_pack, pack_linear, packed_linear
from streamenc_kernels.rvq_search import rvq_search

__all__ = ["cannot_pack", "pack_linear", "packed_linear", "rvq_search"]
