"""EnCodec 24 kHz: layouts, and checkpoints that are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.codec import Codec
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.encodec import encodec
from tests.support.encodec_references import (
    NARROW,
    SMALL,
    encodec_model,
    noise,
    random_codes,
    transformers_model,
)

pytestmark = pytest.mark.reference


class TestLoading:
    def test_encoder_alone_leaves_the_decoder_unread(self, folder: str) -> None:
        checkpoint = open_checkpoint(folder)
        encoder, decoder = encodec.load("x", checkpoint, "encoder")
        assert encoder is not None and decoder is None
        assert checkpoint.read and not [n for n in checkpoint.read if n.startswith("decoder")]
        assert not [n for n, _ in encoder.named_parameters() if "decoder" in n]

        checkpoint = open_checkpoint(folder)
        encoder, decoder = encodec.load("x", checkpoint, "decoder")
        assert encoder is None and decoder is not None
        assert not [n for n in checkpoint.read if n.startswith("encoder")]

    @pytest.mark.parametrize("part", ["encoder", "decoder"])
    def test_file_with_one_part_only(self, part: Any, tmp_path: Path) -> None:
        state = encodec_model(**NARROW).state_dict()
        kept = {k: v for k, v in state.items() if k.startswith((part, "quantizer"))}
        torch.save(kept, tmp_path / "part.th")
        alone = streamenc.load(str(tmp_path / "part.th"), part=part)
        assert alone.has_decoder == (part == "decoder")
        torch.save(state, tmp_path / "all.th")
        both = streamenc.load(str(tmp_path / "all.th"))
        if part == "encoder":
            assert torch.equal(alone.encode(noise(3_000)), both.encode(noise(3_000)))
        else:
            codes = random_codes(both, 9)
            assert torch.equal(alone.decode(codes), both.decode(codes))
        with pytest.raises(CheckpointError, match="is missing"):
            streamenc.load(str(tmp_path / "part.th"))

    def test_codebooks_are_shared(self, codec: Codec) -> None:
        assert codec.encoder.quantizer is codec.decoder.quantizer

    def test_both_forms_of_weight_norm(self, folder: str, tmp_path: Path) -> None:
        tensors = load_file(Path(folder) / "model.safetensors")
        assert any("original0" in name for name in tensors)
        older = {
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): tensor
            for name, tensor in tensors.items()
        }
        save_file(older, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
        x = noise(3_000)
        assert torch.equal(
            streamenc.load(str(tmp_path)).encode(x), streamenc.load(folder).encode(x)
        )

    def test_file_without_config_is_recognised(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / "weights.safetensors").write_bytes(
            (Path(folder) / "model.safetensors").read_bytes()
        )
        x = noise(3_000)
        ours = streamenc.load(str(tmp_path / "weights.safetensors"))
        assert torch.equal(ours.encode(x), streamenc.load(folder).encode(x))

    def test_published_specs(self) -> None:
        spec = encodec.published_spec("24khz")
        assert (spec.lead, spec.hop, spec.output.channels, spec.equality) == (
            2240,
            320,
            32,
            "offline",
        )
        spec = encodec.published_spec("48khz")
        assert (spec.lead, spec.hop, spec.output.channels) == (48_000, 47_520, 16)
        assert spec.equality == "segment" and spec.input.channels == 2

    def test_unknown_option(self, folder: str) -> None:
        with pytest.raises(UsageError, match="tail"):
            streamenc.load(folder, tail="moshi")


class TestBadCheckpoints:
    def changed(self, folder: str, tmp_path: Path, **changes: Tensor | None) -> str:
        tensors = load_file(Path(folder) / "model.safetensors")
        for name, tensor in changes.items():
            tensors.pop(name)
            if tensor is not None:
                tensors[name] = tensor
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
        return str(tmp_path)

    def configured(self, folder: str, tmp_path: Path, **changes: Any) -> str:
        import json

        config = json.loads((Path(folder) / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        weights = (Path(folder) / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(weights)
        return str(tmp_path)

    @pytest.mark.parametrize(
        "name",
        [
            "encoder.layers.0.conv.bias",
            "encoder.layers.3.conv.parametrizations.weight.original1",
            "decoder.layers.1.lstm.weight_hh_l1",
            "quantizer.layers.5.codebook.embed",
        ],
    )
    def test_missing_tensor(self, name: str, folder: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"is missing"):
            streamenc.load(self.changed(folder, tmp_path, **{name: None}))

    @pytest.mark.parametrize(
        "name", ["encoder.layers.0.conv.bias", "quantizer.layers.1.codebook.embed"]
    )
    def test_wrong_shape(self, name: str, folder: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=rf"{name}.*\(5,\)"):
            streamenc.load(self.changed(folder, tmp_path, **{name: torch.zeros(5)}))

    def test_not_finite(self, folder: str, tmp_path: Path) -> None:
        bias = torch.full((4,), float("nan"))
        with pytest.raises(CheckpointError, match="not finite"):
            streamenc.load(self.changed(folder, tmp_path, **{"encoder.layers.0.conv.bias": bias}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_filters": 8}, "do not fit|fit the config"),
            ({"num_filters": "many"}, "num_filters"),
            ({"upsampling_ratios": [8, 0]}, "upsampling_ratios"),
            ({"upsampling_ratios": None}, "cannot be used"),
            ({"target_bandwidths": [24.0]}, "is missing"),
            ({"use_causal_conv": False}, "norm_type"),
            ({"chunk_length_s": 1.0}, "chunk_length_s"),
            ({"pad_mode": "circular"}, "pad_mode"),
            ({"trim_right_ratio": 0.5}, "trim_right_ratio"),
            ({"codebook_dim": 8}, "codebook_dim"),
        ],
    )
    def test_config_that_does_not_fit(
        self, change: dict[str, Any], message: str, folder: str, tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=message):
            streamenc.load(self.configured(folder, tmp_path, **change))

    def test_foreign_weights(self, tmp_path: Path) -> None:
        save_file({"linear.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match="no known family"):
            streamenc.load(str(tmp_path / "other.safetensors"))
        with pytest.raises(CheckpointError, match="codebook"):
            streamenc.load(f"encodec:{tmp_path / 'other.safetensors'}")

    @pytest.mark.parametrize("kept", [0, 7, 1_000, -100])
    @pytest.mark.parametrize("name", ["model.safetensors", "model.th"])
    def test_truncated_file(self, name: str, kept: int, tmp_path: Path) -> None:
        model = (
            transformers_model(**SMALL) if name.endswith("safetensors") else encodec_model(**NARROW)
        )
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        path = tmp_path / name
        if name.endswith("safetensors"):
            save_file(state, path)
        else:
            torch.save(state, path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match="truncated"):
            streamenc.load(f"encodec:{path}")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_pickle_with_code_is_refused(self, zipped: bool, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        path = tmp_path / "evil.th"
        if zipped:
            torch.save({"weight": Payload(victim)}, path)
        else:
            path.write_bytes(pickle.dumps({"weight": Payload(victim)}, protocol=2))
        with pytest.raises(CheckpointError, match="never code"):
            streamenc.load(f"encodec:{path}")
        assert not victim.exists()


class Payload:
    """Creates a file where it is unpickled with code allowed."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)
