"""Fixtures that make `pack_linear` do as on other machines: it packs only where that pays."""

from __future__ import annotations

from importlib import import_module

import pytest

module = import_module("streamenc_kernels.packed_linear")


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where packing pays."""
    if module._missing_ops():
        pytest.skip(module._missing_ops())
    monkeypatch.delenv(module.CHOICE_VARIABLE, raising=False)
    monkeypatch.setattr(module, "_no_gain", lambda rows: "")


@pytest.fixture(params=["packed", "plain"])
def either_packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where packing pays, and as on one where it does not."""
    if request.param == "packed":
        request.getfixturevalue("packs")
    else:
        monkeypatch.delenv(module.CHOICE_VARIABLE, raising=False)
        monkeypatch.setattr(module, "_no_gain", lambda rows: "plain, as the test wants it")
