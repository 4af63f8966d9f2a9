"""Graphs of tests are kept in a folder of the tests."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def graphs_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "graphs-of-tests"
    monkeypatch.setenv("STREAMENC_CACHE", str(folder))
    return folder
