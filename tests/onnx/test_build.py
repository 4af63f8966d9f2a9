"""What a graph on disk depends on."""

from __future__ import annotations

from pathlib import Path

import streamenc_kernels
from streamenc import layers, models, onnx, spec, state
from streamenc.onnx.build import _sources, digest_of


def test_a_graph_depends_on_all_that_its_step_is_made_of():
    roots = _sources()
    for module in (layers, models, onnx, state, spec, streamenc_kernels):
        path = Path(module.__file__)
        assert (path.parent if path.name == "__init__.py" else path) in roots


def test_a_changed_source_is_another_digest(tmp_path):
    package, state_file = tmp_path / "layers", tmp_path / "state.py"
    (package / "deep" / "deeper").mkdir(parents=True)
    files = [package / "a.py", package / "deep" / "deeper" / "b.py", state_file]
    for file in files:
        file.write_text("x = 1\n")
    roots = [package, state_file]
    seen = {digest_of(roots)}
    assert digest_of(roots) in seen
    for file in files:
        file.write_text("x = 2\n")
        assert digest_of(roots) not in seen
        seen.add(digest_of(roots))
    files[1].rename(package / "deep" / "b.py")  # the same content, at another place
    assert digest_of(roots) not in seen


def test_what_is_no_source_does_not_count(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = digest_of([tmp_path])
    (tmp_path / "notes.txt").write_text("x")
    assert digest_of([tmp_path]) == before
