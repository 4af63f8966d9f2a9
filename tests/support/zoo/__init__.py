"""Every registered model, small, with random weights in its published layout, loaded as by a user.

A family of the registry that has no row here is an error, so that no model goes untested. All that
tests have to be told of a model, beside those of its own, stands in a module of this folder: what
it promises, and what tells it from others. Each module is read, and may have

    ROWS        The small models.
    PUBLISHED   What the encoders of the listed models promise of their steps.
    FIELDS      Input items that one output item depends on; of the others all the past, or one
                image.
    CONFIGURED  (row, change of its config.json): another number is another model.
    ASKED       (row, options): what is asked for otherwise when it is loaded.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import streamenc
from streamenc.models import signal as signal_of
from streamenc.models.families import FAMILIES, WITHOUT_WEIGHTS
from streamenc.models.model import Model
from streamenc.testing import signals
from tests.support.zoo.pictures import save_cosmos_codes, save_taesd, save_vit
from tests.support.zoo.row import Config, Promise, Row
from tests.support.zoo.sound import (
    CENTROIDS,
    CLIP,
    WHISPER_CHUNKS,
    rope_theta,
    save_encodec_48k,
    save_mimi,
    save_nano,
    save_speech,
    save_whisper,
)

__all__ = [
    "CENTROIDS",
    "CLIP",
    "WHISPER_CHUNKS",
    "Promise",
    "Row",
    "rope_theta",
    "save_cosmos_codes",
    "save_encodec_48k",
    "save_mimi",
    "save_nano",
    "save_speech",
    "save_taesd",
    "save_vit",
    "save_whisper",
]

ROWS: list[Row] = []
PUBLISHED: dict[str, Promise] = {}
FIELDS: dict[str, int | None] = {}
CONFIGURED: list[tuple[str, Callable[[Config], None]]] = []
ASKED: list[tuple[str, dict[str, Any]]] = []
for _found in pkgutil.iter_modules(__path__, f"{__name__}."):
    _module = importlib.import_module(_found.name)
    ROWS += getattr(_module, "ROWS", [])
    PUBLISHED |= getattr(_module, "PUBLISHED", {})
    FIELDS |= getattr(_module, "FIELDS", {})
    CONFIGURED += getattr(_module, "CONFIGURED", [])
    ASKED += getattr(_module, "ASKED", [])
if missing := FAMILIES.keys() - {row.family for row in ROWS}:
    raise AssertionError(f"no row in tests/support/zoo for {sorted(missing)}")

OF_TEXT = {name for name, module in FAMILIES.items() if ".models.text." in module}

# (row, side): what the equality test runs over.
CASES = [(row.name, side) for row in ROWS for side in row.sides]
_BY_NAME = {row.name: row for row in ROWS}


@functools.cache
def codec(name: str, dtype: torch.dtype = torch.float64) -> streamenc.Codec:
    row = _BY_NAME[name]
    part = "both" if len(row.sides) == 2 else row.sides[0]
    with tempfile.TemporaryDirectory() as folder:
        where = row.load
        if row.save is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row.save(Path(folder))
            where = folder
        assert row.save is not None or row.family in WITHOUT_WEIGHTS
        # Compiled steps have tests of their own.
        return streamenc.load(where, part=part, dtype=dtype, backend="torch", **row.options)


def row(name: str) -> Row:
    return _BY_NAME[name]


def model(name: str, side: str, dtype: torch.dtype = torch.float64) -> Model:
    loaded = codec(name, dtype)
    return loaded.encoder if side == "encoder" else loaded.decoder


signal, cut = signals.random_signal, signal_of.cut
recording, raw = signals.recording, signals.raw
