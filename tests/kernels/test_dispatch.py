"""Which implementation runs, and what is said where it is not the kernel."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from streamenc_kernels import Quantiser, dispatch, plan_ring, rvq_search
from streamenc_kernels.dispatch import cannot_triton, takes_triton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def never() -> str:
    raise AssertionError("asked for a reason that nobody needs")


def test_the_cpu_takes_torch_without_asking():
    assert not takes_triton("op", CPU, None, never)
    assert not takes_triton("op", CUDA, "torch", never)


def test_a_gpu_takes_the_kernel_where_it_can():
    assert takes_triton("op", CUDA, None, lambda: "")
    assert takes_triton("op", CUDA, "triton", lambda: "")


def test_each_reason_is_logged_once(caplog):
    dispatch._note_once.cache_clear()
    with caplog.at_level(logging.WARNING, "streamenc_kernels"):
        for reason in ("a reason", "a reason", "another"):
            assert not takes_triton("op", CUDA, None, lambda reason=reason: reason)
    assert [record.getMessage() for record in caplog.records] == [
        "op runs as torch operators, not as a Triton kernel: a reason",
        "op runs as torch operators, not as a Triton kernel: another",
    ]


def test_a_choice_that_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    quantiser = Quantiser(torch.zeros(3, 4), torch.zeros(2, 5, 4), torch.zeros(2, 5))
    with pytest.raises(RuntimeError, match="rvq_search cannot run .* TRITON_INTERPRET=1 is not"):
        rvq_search([quantiser], implementation="triton")
    ring, position = torch.zeros(1, 2, 8, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="ring_attention cannot run as a Triton kernel: the ten"):
        plan_ring(position, 2, ring, 7, 1e4, implementation="triton")
    with pytest.raises(ValueError, match="implementation 'cuda'; wanted 'torch', 'triton' or None"):
        rvq_search([quantiser], implementation="cuda")


def test_what_a_gpu_lacks(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    for make in (dispatch._cannot_launch, dispatch._missing):
        make.cache_clear()
    assert cannot_triton(CUDA) == "this torch is not built for CUDA"
    dispatch._cannot_launch.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(dispatch, "_missing", lambda package: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert cannot_triton(CUDA) == "compute capability 7.5; wanted 8.0 or more"
    dispatch._cannot_launch.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (12, 0))
    monkeypatch.setattr(dispatch.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "C compiler" in cannot_triton(CUDA)
    dispatch._cannot_launch.cache_clear()
    monkeypatch.setenv("CC", "cc")
    assert cannot_triton(CUDA) == ""
    dispatch._cannot_launch.cache_clear()
    assert cannot_triton(torch.device("meta")) == "the tensors are on meta"


def test_a_traced_step_takes_torch_in_silence(monkeypatch, caplog):
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    assert cannot_triton(CUDA) == "the step is being traced"
    assert not takes_triton("op", CUDA, None, lambda: cannot_triton(CUDA))
    assert not caplog.records


def test_the_cpu_never_imports_triton():
    program = """
import sys, torch
from streamenc_kernels import Quantiser, plan_ring, ring_attention, rvq_search
rvq_search([Quantiser(torch.zeros(3, 4), torch.zeros(2, 5, 4), torch.zeros(2, 5))], sums=True)
x, ring, values = torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 8, 4)
plan = plan_ring(torch.zeros(1, dtype=torch.int64), 2, ring, 7, 1e4)
ring_attention(x, x, x, ring, values, plan)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
