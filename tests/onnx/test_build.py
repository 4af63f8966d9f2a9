"""What an exported step on disk depends on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from onnx import TensorProto, helper

import streamenc
import streamenc_kernels
from streamenc import layers, models, onnx, spec, state
from streamenc.onnx import build
from streamenc.onnx.build import _key, _sources, digest_of
from streamenc.onnx.export import ExportedStep
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


@pytest.fixture
def step() -> ExportedStep:
    tensor = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "nothing", [tensor], [tensor])
    return ExportedStep(helper.make_model(graph), (), (1,), (1,))


def test_steps_on_disk_are_for_this_user_alone(tmp_path, step, caplog):
    folder = tmp_path / "made" / ("a-" + "0" * 24)
    build._write(folder, step)
    files = [folder / "step.onnx", folder / "step.json"]
    rights = [each.stat().st_mode & 0o777 for each in (folder.parent, folder, *files)]
    assert rights == [0o700, 0o700, 0o600, 0o600] and not caplog.text
    content = files[0].read_bytes()

    folder.parent.chmod(0o777)  # whoever may write there may have planted what is there
    assert build._read(folder, 1) is None and "can be written by any user" in caplog.text
    caplog.clear()
    build._write(folder, step)
    assert "not kept on disk" in caplog.text and "STREAMENC_CACHE" in caplog.text
    folder.parent.chmod(0o700)
    assert files[0].read_bytes() == content

    elsewhere = tmp_path / "elsewhere"
    for link in (folder, files[0]):
        caplog.clear()
        link.rename(elsewhere)
        link.symlink_to(elsewhere)
        build._write(folder, step)  # never through a link
        target = elsewhere / "step.onnx" if elsewhere.is_dir() else elsewhere
        assert target.read_bytes() == content
        link.is_symlink() and link.unlink()
        shutil.rmtree(elsewhere) if elsewhere.is_dir() else elsewhere.unlink()
        build._write(folder, step)


def test_room_is_made_among_steps_alone(tmp_path, step, monkeypatch):
    monkeypatch.setattr(build, "MOST_CACHED_BYTES", 0)
    old, digest = tmp_path / ("a-" + "1" * 24), "0" * 32
    build._write(old, step)
    killed = tmp_path / f"a-{'2' * 24}.{digest}.partial"
    killed.mkdir()
    (killed / "step.onnx").write_bytes(b"half")
    others = ["photos", f"b-{'3' * 24}", "x.partial", f"c-{'4' * 24}.{digest}.partial"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / ("d-" + "5" * 24)).symlink_to(tmp_path / "photos")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    new = tmp_path / ("a-" + "6" * 24)
    build._write(new, step)
    assert not old.exists() and not killed.exists() and new.exists()
    assert all((tmp_path / name / "mine.txt").read_text() == "mine" for name in others)
    assert (tmp_path / ("d-" + "5" * 24)).is_symlink()
