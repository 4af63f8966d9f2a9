"""A small EnCodec of 24 kHz, for all tests of a file."""

from __future__ import annotations

import pytest
import torch

import streamenc
from streamenc.codec import Codec
from tests.support.encodec_references import SMALL, save_folder, transformers_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(transformers_model(**SMALL), tmp_path_factory.mktemp("encodec"))


@pytest.fixture(scope="module")
def codec(folder: str) -> Codec:
    return streamenc.load(folder, dtype=torch.float64)
