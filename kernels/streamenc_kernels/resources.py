"""What the kernels take of a processor, compiled ahead of time for GPUs that need not be there.

    python -m streamenc_kernels.resources [--json] [CASE ...]

Registers are per thread; local memory is what did not fit into them (spills), in bytes per thread;
shared memory is in bytes per program, of which each architecture has so many at most.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from streamenc_kernels.causal_conv import triton as causal_conv_triton
from streamenc_kernels.compress_spectrum import triton as compress_spectrum_triton
from streamenc_kernels.depthwise_norm import triton as depthwise_norm_triton
from streamenc_kernels.fused_linear import triton as fused_linear_triton
from streamenc_kernels.lane_rows import triton as lane_rows_triton
from streamenc_kernels.overlap_add import triton as overlap_add_triton
from streamenc_kernels.ring_attention import triton as ring_attention_triton
from streamenc_kernels.rotary_table import triton as rotary_table_triton
from streamenc_kernels.rvq_search import triton as rvq_search_triton

# Compute capability -> shared memory that one program may have, in bytes.
SHARED_LIMITS = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel and the sizes that it is compiled for.

    types      Of the arguments that are no plain numbers, in Triton's words; of several at once for
               an argument that is a tuple.
    constants  Of the compile-time arguments.
    """

    kernel: Any
    types: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, Any]
    options: Mapping[str, int | bool]

    def source(self) -> ASTSource:
        """Pointers and sizes divisible by 16, as torch's tensors have them, but for those of which
        the kernel assumes nothing."""
        names = [parameter.name for parameter in self.kernel.params]
        anywhere = {p.name for p in self.kernel.params if p.do_not_specialize_on_alignment}
        types = {n: self.types.get(n, "i32") for n in names}
        aligned: list[tuple[int, ...]] = []
        for i, n in enumerate(names):
            kind = types[n]
            if isinstance(kind, tuple):
                aligned += [(i, j) for j, inner in enumerate(kind) if inner.startswith("*")]
            elif (kind.startswith("*") and n not in anywhere) or n in ALIGNED:
                aligned.append((i,))
        return ASTSource(
            self.kernel,
            {n: "constexpr" if n in self.constants else types[n] for n in names},
            {(names.index(n),): value for n, value in self.constants.items()},
            {place: [["tt.divisibility", 16]] for place in aligned},
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a compiled kernel takes."""

    case: str
    capability: int
    threads: int
    registers: int
    local_bytes: int
    shared_bytes: int
    shared_limit: int


ALIGNED = {
    *("entries", "depth", "inputs", "outputs"),
    *(f"{tensor}_{axis}" for tensor in "qkvy" for axis in ("lane", "head", "time")),
}


def _rvq(dim: int, entries: int, tile: rvq_search_triton.Tile, first: bool = False) -> Case:
    pointers = ("before0", "before1", "after", "books0", "books1", "half_norms0", "half_norms1")
    types = dict.fromkeys((*pointers, "near_before", "near_after", "sums"), "*fp32")
    constants = {"FIRST": first, "SUMS": False, **tile.constants(dim, entries)}
    return Case(
        rvq_search_triton.rvq_search_kernel,
        types | {"codes": "*i64"},
        constants,
        tile.options(),
    )


def _linear(
    tile: fused_linear_triton.Tile,
    *,
    norm: str = "",
    activation: str = "",
    residual: bool = False,
) -> Case:
    pointers = ("x", "weight", "bias", "norm_weight", "norm_bias", "residual", "y")
    types: dict[str, str] = dict.fromkeys(pointers, "*fp32") | {"eps": "fp32"}
    constants = tile.constants(
        fused_linear_triton.DEPTH,
        norm=norm,
        shifted=norm == "layer",
        activation=activation,
        biased=True,
        residual=residual,
    )
    return Case(fused_linear_triton.fused_linear_kernel, types, constants, tile.options())


def _ring(
    time: int,
    dim: int,
    dtype: str,
    *,
    masked: bool = False,
    indexed: bool = False,
    wide: bool = False,
) -> Case:
    types = dict.fromkeys(("q", "k", "v", "keys", "values", "y"), dtype)
    types |= {"cos": "*fp32", "sin": "*fp32", "position": "*i64", "scale": "fp32"}
    types |= {"active": "*i1" if masked else "*i64", "lanes": "*i64"}
    sizes = ring_attention_triton.tile(time, dim, wide=wide)
    options = {**ring_attention_triton.OPTIONS, "num_warps": sizes.pop("num_warps")}
    constants = {"CAPACITY": 249 + time, "MASKED": masked, "INDEXED": indexed, **sizes}
    return Case(ring_attention_triton.ring_attention_kernel, types, constants, options)


def _depthwise(channels: int, kernel: int) -> Case:
    names = ("x", "state", "weight", "bias", "gain", "offset", "rows", "after")
    types = dict.fromkeys(names, "*fp32") | {"eps": "fp32"}
    constants = depthwise_norm_triton.constants(channels, kernel)
    return Case(
        depthwise_norm_triton.depthwise_norm_kernel,
        types,
        constants,
        depthwise_norm_triton.OPTIONS,
    )


def _compress() -> Case:
    types = dict.fromkeys(("real", "imag", "y"), "*fp32") | {"silence": "fp32"}
    constants = {"HALF_EXPONENT": 0.15, "NUMBERS": compress_spectrum_triton.NUMBERS}
    return Case(
        compress_spectrum_triton.compress_spectrum_kernel,
        types,
        constants,
        compress_spectrum_triton.OPTIONS,
    )


def _conv(
    outputs: int,
    channels: int,
    kernel: int,
    times: int,
    *,
    dtype: torch.dtype = torch.float32,
    residual: bool = False,
) -> Case:
    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    pointers = ("x", "state", "weight", "bias", "residual", "y", "following")
    types = dict.fromkeys(pointers, names[dtype]) | {"partial": "*fp32"}
    sizes = causal_conv_triton.tile(outputs, times)
    constants = {
        "x_time": 1,
        "KERNEL": kernel,
        "REMEMBERS": kernel > 1,
        "ELU": True,
        "BIAS": True,
        "RESIDUAL": residual,
        "SPLIT": causal_conv_triton.split(channels * kernel, times) > 1,
        "PRECISION": causal_conv_triton.precision(dtype),
        "BLOCK": causal_conv_triton.BLOCK,
        **sizes,
    }
    options = {"num_warps": causal_conv_triton.warps(sizes), **causal_conv_triton.OPTIONS}
    return Case(causal_conv_triton.causal_conv_kernel, types, constants, options)


def _depthwise_conv(kernel: int) -> Case:
    pointers = ("x", "state", "weight", "bias", "residual", "y", "following")
    flags = dict.fromkeys(("REMEMBERS", "BIAS", "ELU", "RESIDUAL"), True)
    constants = {"x_time": 1, "KERNEL": kernel, "BLOCK": causal_conv_triton.BLOCK, **flags}
    options = {"num_warps": 8, **causal_conv_triton.OPTIONS}
    types = dict.fromkeys(pointers, "*fp32")
    return Case(causal_conv_triton.causal_depthwise_kernel, types, constants, options)


def _rotary(time: int, dim: int) -> Case:
    types = {"position": "*i64", "cos": "*fp32", "sin": "*fp32"}
    constants = rotary_table_triton.constants(time, dim, 10_000.0)
    return Case(
        rotary_table_triton.rotary_table_kernel, types, constants, rotary_table_triton.OPTIONS
    )


def _overlap(stride: int) -> Case:
    types: dict[str, str] = dict.fromkeys(("pieces", "state", "bias", "y"), "*fp32")
    constants = {"STRIDE": stride, "OVERLAPS": True, "CARRIED": True, "BIASED": True}
    constants["NUMBERS"] = overlap_add_triton.NUMBERS
    return Case(overlap_add_triton.overlap_add_kernel, types, constants, overlap_add_triton.OPTIONS)


def _rows(leaves: Sequence[tuple[str, int, int]], masked: bool) -> Case:
    """leaves  Of each its type, and the rows and columns of a lane."""
    pointers = tuple(dtype for dtype, _, _ in leaves)
    types: dict[str, str | tuple[str, ...]] = {"pools": pointers, "values": pointers}
    types |= dict.fromkeys(
        ("pool_lane", "value_lane", "value_row", "value_column"), ("i32",) * len(leaves)
    )
    types |= {"active": "*i1" if masked else "*fp32", "lanes": "*fp32" if masked else "*i64"}
    sizes = [rows * columns for _, rows, columns in leaves]
    constants = {
        "MASKED": masked,
        "INDEXED": not masked,
        **lane_rows_triton.constants(sizes, [columns for _, _, columns in leaves]),
    }
    return Case(lane_rows_triton.write_rows_kernel, types, constants, lane_rows_triton.OPTIONS)


# What Mimi's encoder carries beside its rings: a position, and tails of convolutions.
_TAILS = [("*i64", 1, 1)] + [
    ("*fp32", rows, columns)
    for rows, columns in (
        *((1, 6), (64, 2), (64, 4), (128, 2), (128, 5), (256, 2), (256, 6), (512, 2), (512, 8)),
        *((1024, 2), (512, 2)),
    )
]
CASES = {
    "rvq_search, 64-d, few rows": _rvq(64, 1024, rvq_search_triton.FEW),
    "rvq_search, 64-d, many rows": _rvq(64, 1024, rvq_search_triton.MANY),
    "rvq_search, 128-d, many rows": _rvq(128, 1024, rvq_search_triton.MANY),
    "rvq_search, 256-d, few rows": _rvq(256, 2048, rvq_search_triton.FEW),
    "rvq_search, 256-d, few rows, first": _rvq(256, 2048, rvq_search_triton.FEW, first=True),
    "rvq_search, 256-d, many rows": _rvq(256, 2048, rvq_search_triton.MANY),
    "rvq_search, 256-d, many rows, first": _rvq(256, 2048, rvq_search_triton.MANY, first=True),
    "rvq_search, 512-d, many rows": _rvq(512, 2048, rvq_search_triton.MANY),
    "fused_linear, few rows, norm": _linear(fused_linear_triton.FEW, norm="layer"),
    "fused_linear, few rows, residual": _linear(fused_linear_triton.FEW, residual=True),
    "fused_linear, few rows, SwiGLU": _linear(
        fused_linear_triton.FEW, norm="rms", activation="swiglu"
    ),
    "fused_linear, many rows, norm, GELU": _linear(
        fused_linear_triton.MANY, norm="layer", activation="gelu"
    ),
    "fused_linear, many rows, residual": _linear(fused_linear_triton.MANY, residual=True),
    "fused_linear, many rows, SwiGLU": _linear(
        fused_linear_triton.MANY_GATED, norm="rms", activation="swiglu"
    ),
    # Of Mimi's encoder: the first convolution, a residual unit, one that strides; few outputs.
    "causal_conv, 1 to 64": _conv(64, 1, 7, 1920),
    "causal_conv, 64 to 32": _conv(32, 64, 3, 1920),
    "causal_conv, 32 to 64 and residual": _conv(64, 32, 1, 1920, residual=True),
    "causal_conv, 128 to 256": _conv(256, 128, 10, 96),
    "causal_conv, 128 to 256 bfloat16": _conv(256, 128, 10, 96, dtype=torch.bfloat16),
    "causal_conv, few 256 to 512 and residual": _conv(512, 256, 1, 16, residual=True),
    "causal_conv, few 512 to 1024": _conv(1024, 512, 16, 2),
    "causal_conv, depthwise": _depthwise_conv(7),
    "causal_conv, few 512 to 1024 float16": _conv(1024, 512, 16, 2, dtype=torch.float16),
    "ring_attention, 1 float32": _ring(1, 64, "*fp32"),
    "ring_attention, 2 float32": _ring(2, 64, "*fp32"),
    "ring_attention, 2 float32 masked": _ring(2, 64, "*fp32", masked=True),
    "ring_attention, 2 float32 by index": _ring(2, 64, "*fp32", indexed=True),
    "ring_attention, 2 float32 wide": _ring(2, 64, "*fp32", indexed=True, wide=True),
    "ring_attention, 2 bfloat16": _ring(2, 64, "*bf16"),
    "ring_attention, 2 float16": _ring(2, 64, "*fp16"),
    "ring_attention, 8 float32": _ring(8, 64, "*fp32"),
    "compress_spectrum": _compress(),
    "depthwise_norm, 256 channels": _depthwise(256, 7),
    "overlap_add, 8": _overlap(8),
    "rotary_table, 2 of 64-d": _rotary(2, 64),
    "write_rows, 12 leaves masked": _rows(_TAILS, masked=True),
    "write_rows, 12 leaves by index": _rows(_TAILS, masked=False),
    "ring_attention, 2 of 256-d": _ring(2, 256, "*fp32"),
}


def usage(name: str, capability: int) -> Usage:
    """Compiles a case, a second or two the first time."""
    case = CASES[name]
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(case.source(), target=target, options=dict(case.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        said = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", said)}
    return Usage(
        name,
        capability,
        32 * compiled.metadata.num_warps,
        found["REG"],
        found["STACK"] + found["LOCAL"],
        compiled.metadata.shared,
        SHARED_LIMITS[capability],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="streamenc_kernels.resources", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all where none is named")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.cases) - CASES.keys():
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if not chosen.json:
        print(f"{'':34}{'sm':>5}{'threads':>9}{'registers':>11}{'local':>7}{'shared':>8}{'of':>9}")
    for name in chosen.cases or CASES:
        for capability in SHARED_LIMITS:
            u = usage(name, capability)
            if chosen.json:
                print(json.dumps(asdict(u)), flush=True)
                continue
            print(
                f"{u.case:34}{u.capability:5}{u.threads:9}{u.registers:11}{u.local_bytes:7}"
                f"{u.shared_bytes:8}{u.shared_limit:9}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
