"""Steps that tests export are kept in a folder of the tests, from one run to the next.

Their names hold a digest of all sources that made them, so others are never found.
"""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def steps_folder(request, tmp_path_factory, monkeypatch):
    kept = getattr(request.config, "cache", None)
    folder = kept.mkdir("onnx") if kept else tmp_path_factory.getbasetemp() / "onnx-of-tests"
    monkeypatch.setenv("STREAMENC_CACHE", str(folder))
    return folder
