"""Moonshine streaming against transformers': every length, its windows, its layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import recognisers
from tests.support.compare import assert_close

FRAME = 8
WHOLE, ALONE = "whole", "alone"


@pytest.fixture(scope="module")
def reference() -> Any:
    model = recognisers.moonshine().model.encoder.double()
    model.set_attn_implementation("sdpa")  # eager attends in float32
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = recognisers.moonshine()
    found = {kind: tmp_path_factory.mktemp(kind) for kind in (WHOLE, ALONE)}
    model.save_pretrained(found[WHOLE])
    model.model.encoder.save_pretrained(found[ALONE])
    return found


def load(folder: Path, **options: Any) -> Model:
    return streamenc.load(folder, part="encoder", **options).encoder


def noise(samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    return 0.1 * torch.randn(1, 1, samples, generator=generator, dtype=torch.float64)


def published(reference: Any, x: Tensor) -> Tensor:
    """As the processor prepares it: padded to whole frames, with a mask that says so."""
    missing = -x.shape[-1] % FRAME
    mask = F.pad(torch.ones(1, x.shape[-1], dtype=torch.int64), (0, missing))
    with torch.inference_mode():
        y = reference(F.pad(x[0], (0, missing)), attention_mask=mask).last_hidden_state
    return y.transpose(1, 2)


@pytest.mark.parametrize("kind", [WHOLE, ALONE])
def test_it_is_the_published_encoder(folders, reference, kind):
    """Of all lengths around a hop, and far past all windows."""
    encoder = load(folders[kind], dtype=torch.float64)
    for samples in (*range(FRAME, 80, 7), 500, 1001, 4096, 4103):
        x = noise(samples)
        assert_close(encoder(x), published(reference, x), 1e-12)


def test_it_is_so_in_pieces(folders, reference):
    x = noise(3333)
    stream = Stream(load(folders[ALONE], dtype=torch.float64))
    ours = [stream.push(piece) for piece in x.split(57, dim=-1)]
    ours.append(stream.flush())
    assert_close(torch.cat(ours, dim=-1), published(reference, x), 1e-12)


def test_without_a_mask_the_published_code_has_no_windows(folders, reference):
    """What the page says of it; eager and SDPA alike."""
    x = noise(800)
    with torch.inference_mode():
        unmasked = reference(x[0]).last_hidden_state.transpose(1, 2)
    ours = load(folders[ALONE], dtype=torch.float64)(x)
    assert (ours - unmasked).abs().max() > 1e-2


def test_inclusive_bounds_are_windows_of_one_more(folders, tmp_path):
    windows = [[n + 1, m + 1] if m else [n + 1, 0] for n, m in [[5, 3], [4, 0], [6, 2]]]
    model = recognisers.moonshine(sliding_windows=windows).model.encoder
    encoder = load(folders[WHOLE], dtype=torch.float64, bounds="inclusive")
    x = noise(999)
    model.set_attn_implementation("sdpa")
    assert_close(encoder(x), published(model.double(), x), 1e-12)
    with pytest.raises(UsageError, match="bounds"):
        load(folders[WHOLE], bounds="half-open")


def test_a_stream_of_no_whole_frame_has_no_state(folders):
    encoder = load(folders[ALONE])
    for samples in range(FRAME):
        assert encoder(torch.zeros(1, 1, samples)).shape == (1, 20, 0)


def rewritten(folder: Path, target: Path, change: Any = None, **config: Any) -> Path:
    """A copy of the encoder with other tensors, or another config."""
    stated = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**stated, **config}))
    tensors = load_file(folder / "model.safetensors")
    if change is not None:
        change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"hidden_size": 2.5}, "hidden_size=2.5"),
        ({"hidden_size": 24}, "wants"),
        ({"frame_ms": float("nan")}, "frame_ms"),
        ({"frame_ms": 0.001}, "frame_ms"),
        ({"attention_bias": "no"}, "attention_bias"),
        ({"attention_bias": True}, "q_proj.bias"),
        ({"sliding_windows": [[5, 3]]}, "sliding_windows"),
        ({"sliding_windows": [[5, 3], [0, 0], [1, 1]]}, "sliding_windows"),
        ({"sliding_windows": [[5, 3], [4, 0], 7]}, "sliding_windows"),
        ({"num_hidden_layers": 2, "sliding_windows": [[5, 3], [4, 0]]}, "belongs to no layer"),
    ],
)
def test_configs_are_not_trusted(folders, tmp_path, config, message):
    with pytest.raises(CheckpointError, match=message):
        load(rewritten(folders[ALONE], tmp_path, **config))


def test_other_weights_are_refused(folders, tmp_path):
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors["layers.1.mlp.fc2.bias"]

    def quantise(tensors: dict[str, Tensor]) -> None:
        tensors["layers.1.mlp.fc2.weight"] = tensors["layers.1.mlp.fc2.weight"].to(torch.int8)

    for name, change, message in (
        ("dropped", drop, "fc2.bias.*missing"),
        ("quantised", quantise, "int8"),
    ):
        target = tmp_path / name
        target.mkdir()
        with pytest.raises(CheckpointError, match=message):
            load(rewritten(folders[ALONE], target, change))
    with pytest.raises(UsageError, match="writes text"):
        streamenc.load(folders[WHOLE], part="decoder")
    normalised = rewritten(folders[ALONE], tmp_path)
    (normalised / "preprocessor_config.json").write_text('{"do_normalize": true}')
    with pytest.raises(CheckpointError, match="do_normalize"):
        load(normalised)
    (normalised / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(normalised)


def test_the_decoder_is_not_read(folders, tmp_path):
    def spoil(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if not name.startswith("model.encoder.")]:
            del tensors[name]

    load(rewritten(folders[WHOLE], tmp_path, spoil))
