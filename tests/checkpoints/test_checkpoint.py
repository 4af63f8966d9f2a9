"""Checkpoints: every layout opens, and whatever does not fit says so before anything runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, fill, open_checkpoint
from streamenc.errors import CheckpointError


def tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([7.0, 8.0])}


def layer() -> nn.Module:
    return nn.Linear(3, 2, device="meta")


ORIGINS = {"weight": "a.weight", "bias": "a.bias"}


def check(checkpoint: Checkpoint) -> None:
    assert checkpoint.names == {"a.weight", "a.bias"}
    assert "a.bias" in checkpoint and "a" not in checkpoint
    assert checkpoint.shape("a.weight") == (2, 3)
    for name, wanted in tensors().items():
        assert torch.equal(checkpoint.get(name), wanted)
        assert torch.equal(checkpoint.get(name, tuple(wanted.shape)), wanted)


def in_memory(**content: Tensor) -> Checkpoint:
    class File:
        def keys(self) -> list[str]:
            return list(content)

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(content[name].shape)

        def get(self, name: str) -> Tensor:
            return content[name]

    return Checkpoint("memory", [File()], {})


# Layouts


def test_a_single_file_has_no_config(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    checkpoint = open_checkpoint(str(tmp_path / "mine.safetensors"))
    check(checkpoint)
    assert checkpoint.config == {}


@pytest.mark.parametrize("opened", [".", "model.safetensors"])
def test_a_folder_has_its_config(tmp_path: Path, opened: str) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "mimi"}')
    checkpoint = open_checkpoint(str(tmp_path / opened))
    check(checkpoint)
    assert checkpoint.config == {"model_type": "mimi"}


def test_a_folder_with_one_file_of_any_name(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "tokenizer-e351c8d8.safetensors")
    check(open_checkpoint(str(tmp_path)))


def test_several_files_are_not_guessed_among(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file(tensors(), tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="one.safetensors, two.safetensors.*name the file"):
        open_checkpoint(str(tmp_path))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(str(tmp_path))


def shards(folder: Path) -> None:
    content = tensors()
    weight_map = {}
    for number, name in enumerate(content, start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: content[name]}, folder / file)
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_sharded_folder(tmp_path: Path) -> None:
    shards(tmp_path)
    check(open_checkpoint(str(tmp_path)))


def test_a_missing_shard(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_checkpoint(str(tmp_path))


def test_an_index_does_not_leave_its_folder(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    save_file(tensors(), tmp_path / "outside.safetensors")
    index = {"weight_map": {"a.weight": "../outside.safetensors"}}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError):
        open_checkpoint(str(inner))


@pytest.mark.parametrize("weight_map", [[], "x", {"a": 1}, {"a": None}, {}])
def test_an_index_that_is_none(tmp_path: Path, weight_map: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", "9" * 10])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(str(tmp_path))


# Pickled weights


@pytest.mark.parametrize("suffix", [".th", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "best_state", "model"])
def test_pickled_tensors_open(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    content: Any = {**tensors(), "epoch": 3}
    torch.save(content if wrapper is None else {wrapper: content}, tmp_path / f"w{suffix}")
    check(open_checkpoint(str(tmp_path / f"w{suffix}")))


class _Bomb:
    """Makes the folder BOOM in the working directory where it is unpickled as code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("BOOM",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bomb.pt"
    if writer == "torch":
        torch.save({"a.weight": _Bomb()}, file)
    else:
        file.write_bytes(pickle.dumps({"a.weight": _Bomb()}))
    with pytest.raises(CheckpointError, match="never code"):
        open_checkpoint(str(file))
    assert not (tmp_path / "BOOM").exists()
    torch.load(file, weights_only=False) if writer == "torch" else pickle.loads(file.read_bytes())
    assert (tmp_path / "BOOM").exists(), "the bomb is a dud, and this test shows nothing"


def test_a_pickle_that_holds_no_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="dict of tensors"):
        open_checkpoint(str(tmp_path / "list.pt"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(tensors(), whole) if suffix == ".safetensors" else torch.save(tensors(), whole)
    content = whole.read_bytes()
    cut.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(str(cut))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=100))
def test_any_other_bytes_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"noise{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(str(file))


def test_an_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"'\.onnx'.*\.safetensors"):
        open_checkpoint(str(tmp_path / "weights.onnx"))


# Tensors that do not fit


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_file({"b": torch.zeros(1)}, tmp_path / "w.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "w.safetensors"))
    with pytest.raises(CheckpointError, match=r"'a\.weight' is missing among 1 tensors \(b"):
        fill(layer(), ORIGINS, checkpoint)


def test_get_checks_the_shape() -> None:
    with pytest.raises(CheckpointError, match=r"\(2, 3\); wanted \(3, 2\)"):
        in_memory(**tensors()).get("a.weight", (3, 2))


def test_fill_fills_a_module_on_the_meta_device() -> None:
    module = layer()
    fill(module, ORIGINS, in_memory(**tensors()))
    assert torch.equal(module.weight, tensors()["a.weight"])  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_fill_takes_functions_and_makes_float32() -> None:
    module = layer()
    origins = {
        "weight": lambda checkpoint: checkpoint.get("a.weight").half() * 2,
        "bias": "a.bias",
    }
    fill(module, origins, in_memory(**tensors()))
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, tensors()["a.weight"] * 2)  # type: ignore[arg-type]


def test_fill_names_what_came_and_what_was_wanted() -> None:
    content = {**tensors(), "a.weight": torch.zeros(2, 4)}
    with pytest.raises(CheckpointError, match=r"a\.weight.*\(2, 4\).*wants \(2, 3\)"):
        fill(layer(), ORIGINS, in_memory(**content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fill_refuses_what_is_not_finite(value: float) -> None:
    content = tensors()
    content["a.bias"][1] = value
    with pytest.raises(CheckpointError, match=r"a\.bias.*not finite"):
        fill(layer(), ORIGINS, in_memory(**content))


# Weight normalisation


@pytest.mark.parametrize("spelling", ["old", "parametrization"])
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Conv1d(3, 5, 4), lambda: nn.ConvTranspose1d(3, 5, 4), lambda: nn.Linear(3, 5)],
)
def test_folded_is_torchs_weight_norm(spelling: str, make: Any) -> None:
    torch.manual_seed(0)
    module = nn.utils.parametrizations.weight_norm(make())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    state = {f"x.{name}": tensor.detach() for name, tensor in module.state_dict().items()}
    if spelling == "old":
        state["x.weight_g"] = state.pop("x.parametrizations.weight.original0")
        state["x.weight_v"] = state.pop("x.parametrizations.weight.original1")
    folded = in_memory(**state).folded("x")
    torch.testing.assert_close(folded, module.weight.detach(), rtol=1e-6, atol=1e-7)


def test_folded_without_weight_norm_is_the_weight() -> None:
    assert torch.equal(in_memory(**tensors()).folded("a"), tensors()["a.weight"])


def test_folded_names_what_is_missing() -> None:
    with pytest.raises(CheckpointError, match=r"'b\.weight' is missing"):
        in_memory(**tensors()).folded("b")


def test_folded_with_a_gain_for_each_tap() -> None:
    """As in wav2vec 2.0's positional convolution."""
    torch.manual_seed(0)
    module = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 4, 5, groups=2), dim=2)
    with torch.no_grad():
        module.parametrizations.weight.original0.copy_(torch.randn(1, 1, 5))
    state = {f"x.{name}": tensor.detach() for name, tensor in module.state_dict().items()}
    folded = in_memory(**state).folded("x")
    torch.testing.assert_close(folded, module.weight.detach(), rtol=1e-6, atol=1e-7)


def test_folded_refuses_a_norm_over_other_axes() -> None:
    checkpoint = in_memory(**{"x.weight_g": torch.ones(1, 3, 4), "x.weight_v": torch.ones(5, 3, 4)})
    with pytest.raises(CheckpointError, match=r"x\.weight_g"):
        checkpoint.folded("x")


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the Hub's two functions were called with; they give tmp_path, or raise `error`."""
    calls: dict[str, Any] = {"error": None}

    def snapshot_download(repo: str, **options: Any) -> str:
        calls["snapshot"] = (repo, options)
        if calls["error"]:
            raise calls["error"]
        return str(tmp_path)

    def hf_hub_download(repo: str, file: str, **options: Any) -> str:
        calls["file"] = (repo, file, options)
        if calls["error"]:
            raise calls["error"]
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return calls


def test_a_hub_name_is_fetched_without_pickles(hub: dict[str, Any], tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint("someone/model", revision="abc")
    check(checkpoint)
    assert checkpoint.name == "someone/model"
    repo, options = hub["snapshot"]
    assert (repo, options["revision"]) == ("someone/model", "abc")
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in options["allow_patterns"])


def test_one_file_of_a_repository(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    save_file(tensors(), tmp_path / "sub" / "w.safetensors")
    check(open_checkpoint("someone/model/sub/w.safetensors", revision="main"))
    assert hub["file"] == ("someone/model", "sub/w.safetensors", {"revision": "main"})


def test_one_folder_of_a_repository(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "vqvae").mkdir()
    save_file(tensors(), tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vqvae" / "config.json").write_text('{"_class_name": "VQModel"}')
    checkpoint = open_checkpoint("someone/model/vqvae", revision="main")
    check(checkpoint)
    assert checkpoint.config == {"_class_name": "VQModel"}
    repo, options = hub["snapshot"]
    assert (repo, options["revision"]) == ("someone/model", "main")
    assert {"vqvae/config.json", "vqvae/*.safetensors"} <= set(options["allow_patterns"])
    assert all(pattern.startswith("vqvae/") for pattern in options["allow_patterns"])


def test_two_state_dicts_in_a_folder_are_two_parts(tmp_path: Path) -> None:
    for side, value in (("encoder", 1.0), ("decoder", 2.0)):
        torch.save({"0.weight": torch.full((2,), value)}, tmp_path / f"tiny_{side}.pth")
    both = open_checkpoint(str(tmp_path))
    assert both.names == {"encoder.0.weight", "decoder.0.weight"}
    assert both.shape("decoder.0.weight") == (2,)
    assert both.get("decoder.0.weight").tolist() == [2.0, 2.0]
    (tmp_path / "tiny_decoder.pth").write_bytes(b"no checkpoint")
    assert open_checkpoint(str(tmp_path), part="encoder").names == {"encoder.0.weight"}
    with pytest.raises(CheckpointError, match="tiny_decoder"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["someone/model", "someone/model/w.safetensors", "someone/model/vqvae"]
)
@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("cannot find the requested files in the disk cache"),
        ConnectionError("network is unreachable"),
        OSError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unreachable_hub(hub: dict[str, Any], name: str, error: Exception) -> None:
    hub["error"] = error
    with pytest.raises(CheckpointError, match="could not be fetched.*local folder"):
        open_checkpoint(name)


def test_an_unknown_repository(hub: dict[str, Any]) -> None:
    hub["error"] = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    with pytest.raises(CheckpointError, match="someone/nothing"):
        open_checkpoint("someone/nothing")


@pytest.mark.parametrize("name", ["mimi", "./gone/model", "/gone/model", "~/gone", "a//b", ""])
def test_a_name_that_is_no_path_is_not_asked_of_the_hub(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        open_checkpoint(name)
    assert hub == {"error": None}


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        open_checkpoint(str(tmp_path / "weights.pt"))
