"""How Mimi's weights are read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.errors import CheckpointError, InputError, UsageError
from tests.support import zoo
from tests.support.compare import relative_error

HOP = 24


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    zoo.save_mimi(folder)
    return folder


def noise(samples: int) -> Tensor:
    return 0.3 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(0))


def rewrite(folder: Path, target: Path, change: Any) -> Path:
    """A copy of the folder with other tensors."""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def only(prefixes: tuple[str, ...]) -> Any:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefixes)]:
            del tensors[name]

    return change


DECODER = ("decoder.", "decoder_transformer.", "upsample.")
ENCODER = ("encoder.", "encoder_transformer.", "downsample.")


@pytest.mark.parametrize(("part", "others"), [("encoder", DECODER), ("decoder", ENCODER)])
def test_one_side_does_not_read_the_other(hub_folder, tmp_path, part, others, monkeypatch):
    folder = rewrite(hub_folder, tmp_path / "half", only(others))
    read = []
    get = Checkpoint.get

    def counted(checkpoint, name, *shape):
        read.append(name)
        return get(checkpoint, name, *shape)

    monkeypatch.setattr(Checkpoint, "get", counted)
    from_whole = streamenc.load(str(hub_folder), part=part)
    monkeypatch.undo()
    assert read and not [name for name in read if name.startswith(others)]
    projection = "output_proj" if part == "encoder" else "input_proj"
    assert not [name for name in read if projection in name]
    from_half = streamenc.load(str(folder), part=part)
    ours = getattr(from_half, part)
    assert ours.fingerprint() == getattr(from_whole, part).fingerprint()
    # What is allocated is what was read, the pairs of books and counts apart.
    with safe_open(hub_folder / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}
    allocated = sum(t.numel() for t in ours.state_dict().values())
    assert allocated == sum(sizes[n] for n in set(read) if "cluster_usage" not in n)
    with pytest.raises(CheckpointError, match="is missing"):
        streamenc.load(str(folder), part="both")
    missing = from_half.decode_stream if part == "encoder" else from_half.stream
    with pytest.raises(UsageError, match="part="):
        missing()


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(hub_folder, tmp_path):
    transformer = "encoder_transformer.layers.1"
    cases = {
        f"{transformer}.self_attn.q_proj.weight": (torch.zeros(32, 31), r"\(32, 31\).*\(96, 32\)"),
        f"{transformer}.mlp.fc1.weight": (torch.zeros(64, 33), r"\(64, 33\).*\(64, 32\)"),
        "encoder.layers.0.conv.weight": (torch.zeros(4, 1, 5), r"\(4, 1, 5\).*\(4, 1, 7\)"),
        "quantizer.acoustic_residual_vector_quantizer.layers.2.codebook.embed_sum": (
            torch.zeros(63, 16),
            r"\(63, 16\).*\(64, 16\)",
        ),
        "downsample.conv.weight": (torch.full((32, 32, 4), float("nan")), "not finite"),
    }
    for number, (name, (tensor, shapes)) in enumerate(cases.items()):
        folder = rewrite(
            hub_folder, tmp_path / str(number), lambda t, n=name, v=tensor: t.update({n: v})
        )
        with pytest.raises(CheckpointError, match=shapes) as caught:
            streamenc.load(str(folder))
        assert name in str(caught.value)
        folder = rewrite(hub_folder, tmp_path / str(number), lambda t, n=name: t.pop(n))
        with pytest.raises(CheckpointError, match="is missing") as caught:
            streamenc.load(str(folder), part="encoder")
        assert name in str(caught.value)


def test_truncated_and_foreign_files_are_refused(hub_folder, tmp_path):
    whole = (hub_folder / "model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"bert.embeddings.weight": torch.zeros(3, 3)}, foreign)
    for path, what in (
        (cut, "truncated"),
        (foreign, "no known family"),
        (tmp_path / "none.safetensors", "none.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=what):
            streamenc.load(str(path))
    with pytest.raises(CheckpointError, match="named as in Mimi"):
        streamenc.load(f"mimi:{foreign}")


@pytest.mark.parametrize(
    "setting", [{"use_causal_conv": False}, {"hidden_act": "relu"}, {"attention_bias": True}]
)
def test_variants_that_are_not_known_are_refused(hub_folder, tmp_path, setting):
    folder = rewrite(hub_folder, tmp_path / "variant", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **setting}))
    with pytest.raises(CheckpointError, match=next(iter(setting))):
        streamenc.load(str(folder))


def test_options(hub_folder):
    with pytest.raises(UsageError, match="tail"):
        streamenc.load(str(hub_folder), tail="zeros")
    with pytest.raises(UsageError, match="option"):
        streamenc.load(str(hub_folder), tails="moshi")


def test_bfloat16_keeps_its_codebooks(hub_folder):
    exact, half = (
        streamenc.load(str(hub_folder), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.encoder.like.dtype == half.decoder.like.dtype == torch.bfloat16
    for side in ("encoder", "decoder"):
        for kind in ("semantic", "acoustic"):
            ours, theirs = (getattr(getattr(c, side), kind).codebooks for c in (half, exact))
            assert torch.equal(ours, theirs)
    x = noise(40 * HOP)
    codes = half.encode(x)
    assert (codes == exact.encode(x)).double().mean() > 0.5
    audio = half.decode(exact.encode(x))
    assert audio.dtype == torch.bfloat16
    assert relative_error(audio, exact.decode(exact.encode(x))) < 0.1
    assert half.encoder.fingerprint() != exact.encoder.fingerprint()


def test_codes_of_another_model_are_refused(hub_folder):
    codec = streamenc.load(str(hub_folder))
    for codes in (
        torch.full((1, 6, 2), 64),
        torch.full((1, 6, 2), -1),
        torch.zeros(1, 7, 2, dtype=torch.int64),
        torch.zeros(1, 6, 2),
    ):
        with pytest.raises(InputError):
            codec.decode(codes)
