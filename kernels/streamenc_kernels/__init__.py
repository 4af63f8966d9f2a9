"""Kernels: one public op per file, each with the plain torch definition that says what it means."""

from streamenc_kernels.rvq_search import rvq_search

__all__ = ["rvq_search"]
