"""BEATs on windows of a stream equals the published model on clips that begin and end with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import streamenc
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import hearing
from tests.support.compare import assert_close

COLUMN, ROWS = 5120, 4  # samples and patches of a column of the small model's
LEAD = COLUMN + 240  # samples that the first column needs


def load(path: Path, **options) -> Model:
    return streamenc.load(str(path), part="encoder", dtype=torch.float64, **options).encoder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("beats") / "BEATs.pt"
    hearing.save_beats(path)
    return path


def streamed(model: Model, x: torch.Tensor, size: int = 3777) -> torch.Tensor:
    stream = Stream(model)
    return torch.cat([*(stream.push(part) for part in x.split(size)), stream.flush()], -1)[0].t()


@pytest.mark.reference
@pytest.mark.parametrize("samples", [LEAD - 1, LEAD, 3 * COLUMN + 239, 3 * COLUMN + 240])
def test_a_clip_of_one_window_is_as_published(published, samples):
    x = hearing.noise(samples)
    ours = streamed(load(published, window_ms=960), x)
    if samples < LEAD:
        assert ours.shape == (0, 12)
        return
    assert_close(ours, hearing.plain_beats(hearing.beats_tensors(), x), 1e-10)


@pytest.mark.reference
@pytest.mark.parametrize(("window", "hop", "ahead"), [(2, 2, 0), (3, 1, 1), (3, 2, 0)])
def test_windows_are_published_clips(published, window, hop, ahead):
    """The first windows are as long as there is sound; the end is a shorter one."""
    model = load(published, window_ms=320 * window, hop_ms=320 * hop, ahead_ms=320 * ahead)
    x, columns = hearing.noise(7 * COLUMN + 700), 7
    tensors, expected, given = hearing.beats_tensors(), [], 0
    for stop in range(hop + ahead, columns + 1, hop):
        start = max(0, stop - window)
        clip = x[start * COLUMN : stop * COLUMN + 240]
        y = hearing.plain_beats(tensors, clip)
        expected.append(y[(given - start) * ROWS : (given - start + hop) * ROWS])
        given += hop
    if given < columns:
        start = max(0, given + hop + ahead - window)
        y = hearing.plain_beats(tensors, x[start * COLUMN :])
        expected.append(y[(given - start) * ROWS :])
    assert_close(streamed(model, x), torch.cat(expected), 1e-10)


@pytest.mark.reference
def test_hidden_states(published):
    x, tensors = hearing.noise(2 * COLUMN + 240), hearing.beats_tensors()
    ours = streamed(load(published, window_ms=640, layers="0,1"), x)
    for index, y in enumerate(ours.chunk(2, dim=-1)):
        assert_close(y, hearing.plain_beats(tensors, x, layer=index), 1e-10)


def test_a_folder_with_its_cfg_as_a_config_is_the_same(published, tmp_path):
    import json

    tensors = hearing.beats_tensors()
    save_file({name: t.clone() for name, t in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beats", **hearing.CFG}))
    there, here = load(tmp_path), load(published)
    assert there.fingerprint() == here.fingerprint()


def test_without_a_projection(tmp_path):
    same = {"embed_dim": 12}
    hearing.save_beats(tmp_path / "b.pt", **same)
    x = hearing.noise(2 * COLUMN + 240)
    theirs = hearing.plain_beats(hearing.beats_tensors(**same), x, **same)
    assert_close(streamed(load(tmp_path / "b.pt", window_ms=640), x), theirs, 1e-10)


def spoilt(tmp_path: Path, cfg: dict | None = None, **tensors: torch.Tensor | None) -> Path:
    """The published file with other entries in its cfg, other tensors, or without some."""
    model = {**hearing.beats_tensors(), **tensors}
    content = {"cfg": hearing.CFG | (cfg or {}), "model": model}
    content["model"] = {name: t for name, t in model.items() if t is not None}
    torch.save(content, tmp_path / "spoilt.pt")
    return tmp_path / "spoilt.pt"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"deep_norm": False}, "deep_norm=False"),
        ({"activation_fn": "glu"}, "activation_fn='glu'"),
        ({"gru_rel_pos": False}, "gru_rel_pos=False"),
        ({"layer_norm_first": True}, "layer_norm_first=True"),
        ({"encoder_layers": 0}, "encoder_layers=0"),
        ({"encoder_layers": 1}, "tensors that BEATs of its cfg has not"),
        ({"encoder_layers": 3}, "missing"),
        ({"encoder_layers": 2.0}, "encoder_layers=2.0"),
        ({"encoder_attention_heads": 5}, "heads and groups divide"),
        ({"encoder_attention_heads": 2}, "do not fit the config"),
        ({"conv_pos_groups": 3}, "do not fit the config"),
        ({"max_distance": 2}, "largest distance"),
        ({"input_patch_size": 16}, "wanted (10, 1, 16, 16)"),
        ({"num_buckets": None}, "num_buckets=None"),
    ],
)
def test_other_numbers_are_refused(tmp_path, change, said):
    with pytest.raises(CheckpointError) as error:
        load(spoilt(tmp_path, change))
    assert said in str(error.value)


def test_other_tensors_are_refused(tmp_path):
    name = "encoder.layers.1.self_attn.grep_a"
    with pytest.raises(CheckpointError, match="grep_a' is missing"):
        load(spoilt(tmp_path, **{name: None}))
    with pytest.raises(CheckpointError, match="1 tensors that BEATs of its cfg has not"):
        load(spoilt(tmp_path, **{"encoder.adapter.weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="is a tokenizer of BEATs"):
        load(spoilt(tmp_path, **{"quantize.embedding.weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="is of type int8"):
        load(spoilt(tmp_path, **{name: torch.zeros(1, 3, 1, 1, dtype=torch.int8)}))
    # The classifier, and layers that are not asked for, may be anything.
    odd = {"predictor.weight": None, "encoder.layers.1.fc1.weight": torch.zeros(1)}
    load(spoilt(tmp_path, **odd), layer=1)
    torch.save(hearing.beats_tensors(), tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="as published, or a config.json"):
        load(tmp_path / "bare.pt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window_ms": 330}, "a multiple of 320"),
        ({"hop_ms": 0}, "hop_ms"),
        ({"window_ms": 320, "hop_ms": 640}, "as long as hop_ms and ahead_ms"),
        ({"window_ms": 640, "hop_ms": 320, "ahead_ms": 640}, "as long as"),
        ({"layer": 3}, "layer"),
        ({"part": "decoder"}, "no decoder"),
    ],
)
def test_options_that_do_not_fit(published, options, said):
    with pytest.raises(UsageError, match=said):
        streamenc.load(str(published), **options)


def test_options_as_text(published):
    told = load(published, window_ms="960", hop_ms="320", ahead_ms="320", layers="0,2")
    assert told.spec == load(published, window_ms=960, hop_ms=320, ahead_ms=320, layers=[0, 2]).spec
    assert told.spec.receptive_field == 2 * COLUMN + LEAD
