"""What there is to prove, with streamenc.testing and no framework: `pytest examples/own_model`."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from own_model.encoder import load, published_spec
from own_model.gain import Gain

from streamenc import Frame, StreamInfo
from streamenc.testing import check_model, drive

SOUND = StreamInfo("audio", Fraction(1, 16_000), Fraction(16_000), (1, None), "float32")


def test_the_encoder_keeps_what_every_model_promises() -> None:
    encoder, _ = load("own", None, "encoder")
    assert encoder.spec == published_spec("")
    check_model(encoder.eval(), dtype=torch.float64)


def test_the_gain_makes_louder_and_keeps_times() -> None:
    frames = [Frame(np.full((1, 160), level, np.float32), 160 * n, 160, n)
              for n, level in enumerate((0.25, 0.75))]  # fmt: skip
    quiet, loud = drive(Gain(20 * np.log10(2)), SOUND, frames)
    np.testing.assert_allclose(quiet.data, 0.5, rtol=1e-6)
    assert (loud.data == 1).all() and (loud.pts, loud.duration) == (160, 160)
