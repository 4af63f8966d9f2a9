"""The published DAC and SNAC, small, with random weights, of three packages."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from tests.support.references import randomise, transformers

DAC_SMALL: dict[str, Any] = {
    "encoder_hidden_size": 3,
    "downsampling_ratios": [2, 5],
    "decoder_hidden_size": 8,
    "n_codebooks": 4,
    "codebook_size": 64,
    "codebook_dim": 4,
}


def liven(module: nn.Module, seed: int = 0) -> None:
    """Random weights, with frequencies around 1 in its snakes, whose signals do not grow from one
    residual unit to the next."""
    randomise(module, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if name.endswith("alpha"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim == 3 and name.endswith((".weight", "original0")):
                tensor.mul_(0.6)


def dac(seed: int = 0, **overrides: Any) -> Any:
    """transformers' DAC, small, with random weights."""
    model = transformers.DacModel(transformers.DacConfig(**{**DAC_SMALL, **overrides})).eval()
    liven(model, seed)
    return model


def descript(seed: int = 0, **overrides: Any) -> Any:
    """descript-audio-codec's DAC of the same shape, with random weights.

    What it imports beside its network, for training and for files, need not be installed.
    """
    shape = {
        "encoder_dim": DAC_SMALL["encoder_hidden_size"],
        "encoder_rates": DAC_SMALL["downsampling_ratios"],
        "decoder_dim": DAC_SMALL["decoder_hidden_size"],
        "decoder_rates": DAC_SMALL["downsampling_ratios"][::-1],
        **{key: DAC_SMALL[key] for key in ("n_codebooks", "codebook_size", "codebook_dim")},
        "sample_rate": 16_000,
    }
    base = type("BaseModel", (nn.Module,), {"INTERN": [], "EXTERN": []})
    ml = mock.MagicMock(BaseModel=base)
    audiotools = mock.MagicMock(ml=ml)
    stubs = {"audiotools": audiotools, "audiotools.ml": ml, "audiotools.core": audiotools}
    stubs |= {name: mock.MagicMock() for name in ("argbind", "tqdm")}
    pytest.importorskip("einops")
    with warnings.catch_warnings(), mock.patch.dict(sys.modules, stubs):
        warnings.simplefilter("ignore")
        if not importlib.util.find_spec("dac"):
            pytest.skip("descript-audio-codec is not installed")
        model = importlib.import_module("dac.model.dac").DAC(**{**shape, **overrides}).eval()
    liven(model, seed)
    return model


# A hop of 6 samples, and groups of 4 frames.
SNAC_SMALL: dict[str, Any] = {
    "sampling_rate": 24_000,
    "encoder_dim": 4,
    "encoder_rates": [2, 3],
    "decoder_dim": 16,
    "decoder_rates": [3, 2],
    "attn_window_size": None,
    "codebook_size": 64,
    "codebook_dim": 4,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
# Windows of 6 frames beside groups of 4.
ATTENTION: dict[str, Any] = {
    "encoder_dim": 16,
    "encoder_rates": [2, 2],
    "decoder_dim": 64,
    "decoder_rates": [2, 2],
    "attn_window_size": 6,
}


def snac(seed: int = 0, *, plain: bool = True, **overrides: Any) -> Any:
    """The snac package's SNAC, small, with random weights.

    plain  Its weight normalisation is folded in.
    """
    package = pytest.importorskip("snac")
    model = package.SNAC(**{**SNAC_SMALL, **overrides}).eval()
    if plain:
        for module in model.modules():
            if nn.utils.parametrize.is_parametrized(module):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
    liven(model, seed)
    return model


def save_snac(folder: Path, *, plain: bool = True, **overrides: Any) -> None:
    """As its folders on the Hub are: a config without a model_type, and a pickle."""
    torch.save(snac(plain=plain, **overrides).state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**SNAC_SMALL, **overrides}))
