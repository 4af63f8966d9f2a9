"""What tells that weights were quantised."""

from __future__ import annotations

import pytest

from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.checkpoints.tensortypes import quantised_by, stated_method
from streamenc.errors import CheckpointError


@pytest.mark.parametrize(
    ("beside", "by"),
    [
        ("a.SCB", "bitsandbytes"),
        ("a.weight.absmax", "bitsandbytes"),
        ("a.qweight", "GPTQ"),
        ("a.weight_packed", "compressed-tensors"),
        ("a.weight_scale_inv", "FP8"),
        ("a.W_q", "HQQ"),
        ("a.bias", ""),
        ("b.SCB", ""),
        ("a.weight_g", ""),
        ("a.layer_scale", ""),
    ],
)
def test_traces_beside_a_weight(beside: str, by: str) -> None:
    assert quantised_by({"a.weight", beside}, "a.weight").startswith(by)
    assert bool(quantised_by({"a.weight", beside}, "a.weight")) == bool(by)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, ""),
        ({"quantization_config": None}, ""),
        ({"quantization_config": {}}, ""),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ],
)
def test_what_a_config_states(config: dict[str, object], method: str) -> None:
    assert stated_method(config) == method
    words = f"not there.*quantised by {method}" if method else "is missing among 0 tensors"
    with pytest.raises(CheckpointError, match=words):
        Checkpoint("memory", [], config).get("a.weight")
