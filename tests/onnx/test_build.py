"""What an exported step on disk depends on."""

from __future__ import annotations

import json
from pathlib import Path

import streamenc
import streamenc_kernels
from streamenc import layers, models, onnx, spec, state
from streamenc.onnx.build import _key, _sources, digest_of
from tests.support import zoo


def test_an_exported_step_depends_on_all_that_it_is_made_of():
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


def test_a_step_of_other_numbers_is_another_step(tmp_path):
    """Equal weights and another rope_theta: the step of the first model is not run for both."""
    zoo.save_mimi(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    keys = []
    for rope_theta in (10_000.0, 5_000.0, 10_000.0):
        (config.get("rope_parameters") or config)["rope_theta"] = rope_theta
        path.write_text(json.dumps(config))
        keys.append(_key(streamenc.load(tmp_path, part="decoder", backend="torch").decoder, 1))
    assert keys[0] != keys[1] and keys[0] == keys[2]
