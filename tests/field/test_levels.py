"""Pixels on another scale than a model's are refused, or doubted aloud."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from streamenc import stream as streams
from streamenc.errors import InputError
from tests.support import zoo

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32)).astype(np.uint8)


@pytest.mark.parametrize("name", ["taesd", "cosmos"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_of_another_scale_are_refused(name: str, dtype: type) -> None:
    codec = zoo.codec(name)
    wanted = codec.encode(PIXELS)
    assert torch.allclose(wanted, codec.encode(PIXELS.astype(np.float64) / 127.5 - 1), atol=1e-5)
    codec.encode((PIXELS / 127.5 - 1.0).astype(dtype) * 1.5)  # a filter's overshoot
    for wrong in (PIXELS.astype(dtype), (PIXELS / 255 - 0.45).astype(dtype) / 0.225):
        with pytest.raises(
            InputError, match=r"got pixels in .* wants bytes, or floats in \[-1, 1\]"
        ):
            codec.encode(wrong)
    with pytest.raises(InputError, match="pixels; wanted bytes"):
        codec.encode(PIXELS.astype(np.int16))


def test_floats_from_0_to_1_are_doubted_once(caplog: pytest.LogCaptureFixture) -> None:
    streams._doubt_levels.cache_clear()
    codec = zoo.codec("taesd")
    with caplog.at_level(logging.WARNING):
        codec.encode((PIXELS / 127.5 - 1).astype(np.float32))
        codec.encode(PIXELS)
        assert not caplog.records
        for _ in range(2):
            codec.encode((PIXELS / 255).astype(np.float32))
    (record,) = caplog.records
    assert "make 2 * x - 1" in record.getMessage()
