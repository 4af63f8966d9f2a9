"""--device: which devices a run encodes on."""

from __future__ import annotations

import pytest

from streamenc import registry
from streamenc.bulk.encoding.devices import devices_of
from streamenc.errors import UsageError
from streamenc.registry import ComputeDevice

CPU = ComputeDevice("cpu", "x86_64", "")
OLD = ComputeDevice("cuda:0", "an old one", "this torch was not built for it")
TWO = [ComputeDevice(f"cuda:{index}", "a GPU", "") for index in (1, 2)]


def found(monkeypatch, devices):
    monkeypatch.setattr(registry, "compute_devices", lambda: devices)


def test_all_gpus_that_torch_can_compute_on(monkeypatch):
    found(monkeypatch, [OLD, *TWO, CPU])
    assert devices_of("auto") == devices_of("all") == ["cuda:1", "cuda:2"]


def test_auto_falls_to_the_cpu_and_all_does_not(monkeypatch):
    found(monkeypatch, [OLD, CPU])
    assert devices_of("auto") == ["cpu"]
    with pytest.raises(UsageError, match=r"no GPU.*cuda:0: this torch was not built for it"):
        devices_of("all")


def test_one_by_its_name():
    assert devices_of("cpu") == ["cpu"]
    with pytest.raises(UsageError, match="torch sees 0 GPUs here"):
        devices_of("cuda:7")
    with pytest.raises(UsageError, match="wanted cpu, cuda"):
        devices_of("abacus")
