"""Checkpoints: every layout opens, and whatever does not fit says so before anything runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
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


@pytest.mark.parametrize("opened", [".", "model.safetensors", "mine.safetensors"])
def test_a_config_beside_the_weights_is_theirs_or_may_be(tmp_path: Path, opened: str) -> None:
    for name in ("model", "mine"):
        save_file(tensors(), tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "mimi"}')
    checkpoint = open_checkpoint(str(tmp_path / opened))
    check(checkpoint)
    assert checkpoint.config == {"model_type": "mimi"}
    assert checkpoint.beside == (opened == "mine.safetensors")


def test_a_config_that_is_left_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = in_memory()
    checkpoint.config, checkpoint.preprocessor = {"model_type": "moshi"}, {"do_normalize": True}
    checkpoint.leave_config("mimi", "moshi")
    assert checkpoint.config == checkpoint.preprocessor == {}
    assert "is of 'moshi', not of mimi: it is not used" in caplog.text


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


def test_whole_weights_come_before_shards_that_are_not_there(tmp_path: Path) -> None:
    shards(tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    save_file(tensors(), tmp_path / "model.safetensors")
    check(open_checkpoint(str(tmp_path)))


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


def test_what_a_part_has_and_no_layer_took_is_refused() -> None:
    checkpoint = in_memory(**{f"encoder.{n}": torch.ones(2) for n in ("a", "b", "c.mask", "d")})
    for name in ("a", "b"):
        checkpoint.get(f"encoder.{name}")
    checkpoint.check_used("decoder.")
    checkpoint.check_used("encoder.", besides=("mask", "r.d"))
    with pytest.raises(CheckpointError, match=r"encoder\.c\.mask belongs to no layer.* 1 more"):
        checkpoint.check_used("decoder.", "encoder.")
    with pytest.raises(CheckpointError, match=r"encoder\.d belongs to no layer of this network;"):
        checkpoint.check_used("encoder.", besides=("mask",))


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


def test_what_is_larger_than_wanted_is_not_read() -> None:
    checkpoint = in_memory(**{**tensors(), "a.weight": torch.zeros(3, 3)})

    def get(name: str) -> Tensor:
        raise AssertionError("it was read")

    checkpoint._files["a.weight"].get = get  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=r"\(3, 3\).*wants \(2, 3\)"):
        fill(layer(), {"weight": "a.weight"}, checkpoint)
    with pytest.raises(CheckpointError, match=r"\(3, 3\); wanted \(2, 3\)"):
        checkpoint.get("a.weight", (2, 3))


def test_messages_are_short_and_printable() -> None:
    message = str(CheckpointError("weights\x1b[2J\udce4\nof " + 5000 * "much " + "and the cure"))
    assert message.startswith("weights?[2J?\nof much") and message.endswith("and the cure")
    assert len(message) < 2000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fill_refuses_what_is_not_finite(value: float) -> None:
    content = tensors()
    content["a.bias"][1] = value
    with pytest.raises(CheckpointError, match=r"a\.bias.*not finite"):
        fill(layer(), ORIGINS, in_memory(**content))


def test_fill_refuses_what_float32_cannot_hold() -> None:
    content = {**tensors(), "a.bias": torch.tensor([7.0, 1e300], dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"a\.bias.*too large"):
        fill(layer(), ORIGINS, in_memory(**content))


# Types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_get_gives_float32_or_more(dtype: torch.dtype) -> None:
    got = in_memory(a=torch.tensor([1 / 3, 2.0], dtype=dtype)).get("a")
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(got, torch.tensor([1 / 3, 2.0], dtype=dtype).to(got.dtype))


ODD = {
    "int8": torch.ones(2, dtype=torch.int8),
    "bool": torch.ones(2, dtype=torch.bool),
    "float8_e4m3fn": torch.ones(2).to(torch.float8_e4m3fn),
    "complex64": torch.ones(2, dtype=torch.complex64),
    "sparse": torch.eye(2).to_sparse(),
    "without values": torch.ones(2, device="meta"),
}


@pytest.mark.parametrize("kind", ODD)
def test_get_refuses_what_is_no_float(kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'a' is .*{kind}.*wanted floats of 16, 32 or 64"):
        in_memory(a=ODD[kind]).get("a")


def test_stored_gives_integers_as_they_are() -> None:
    assert in_memory(a=ODD["int8"]).stored("a").dtype == torch.int8


@pytest.mark.parametrize(
    "error", [OSError("no device"), ValueError("odd"), RuntimeError("\x1b[31mred\nthen more")]
)
def test_what_cannot_be_read_is_named(error: Exception) -> None:
    checkpoint = in_memory(**tensors())

    def get(name: str) -> Tensor:
        raise error

    checkpoint._files["a.bias"].get = get  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=r"^memory: tensor 'a\.bias' cannot be read: [ -~]*$"):
        checkpoint.get("a.bias")


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_does_not_round_to_the_type_that_is_stored(dtype: torch.dtype) -> None:
    gain, direction = torch.rand(5, 1, 1).to(dtype), torch.randn(5, 3, 4).to(dtype)
    half = in_memory(**{"x.weight_g": gain, "x.weight_v": direction}).folded("x")
    same = {"x.weight_g": gain.float(), "x.weight_v": direction.float()}
    assert torch.equal(half, in_memory(**same).folded("x"))
    assert not torch.equal(half, half.to(dtype).float())


# Parts


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


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        open_checkpoint(str(tmp_path / "weights.pt"))
