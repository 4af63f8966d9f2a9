"""The published DAC, small, with random weights: transformers' and descript-audio-codec's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
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
            elif tensor.ndim == 3 and not name.endswith(("weight_g", "weight_v")):
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
