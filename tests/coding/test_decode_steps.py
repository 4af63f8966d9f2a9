"""A decoder that the stream names takes the steps of one that the user names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import streamenc
from streamenc.models.nano import NanoDecoder
from streamenc.pipeline.builder import Pipeline
from tests.support.profile import FULL

SECONDS = 15


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.arrows"
    noise = tmp_path_factory.mktemp("noise") / "noise.raw"
    x = np.random.default_rng(0).normal(0, 3000, SECONDS * 16_000)
    noise.write_bytes(x.astype("<i2").tobytes())
    with Pipeline() as pipeline:
        source = pipeline.source("in", str(noise), rate=16_000)
        encoded = pipeline.encode("encode", streamenc.load("nano"), source)
        pipeline.sink("out", str(path), encoded)
        pipeline.graph.run_blocking(handle_signals=False)
    return path


@pytest.mark.parametrize("hops", [None, 1] if FULL else [None])
def test_decoding_takes_as_many_steps_without_a_named_model(
    tokens: Path, hops: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    step = NanoDecoder.step

    def counting(*args, **named):  # type: ignore[no-untyped-def]
        counts[-1] += 1
        return step(*args, **named)

    monkeypatch.setenv("STREAMENC_BACKEND", "torch")  # whose steps are counted
    monkeypatch.setattr(NanoDecoder, "step", counting)
    for name in ("nano", None):
        codec = name and streamenc.load(name, part="decoder")
        counts.append(0)
        with Pipeline() as pipeline:
            source = pipeline.source("in", str(tokens))
            decoded = pipeline.decode("decode", codec, source, hops=hops)
            pipeline.sink("out", str(tmp_path / f"{len(counts)}.wav"), decoded)
            pipeline.graph.run_blocking(handle_signals=False)
    named, unnamed = counts
    # The first frame, whole seconds, and the rest with the end.
    assert named == unnamed == (SECONDS + 1 if hops is None else 50 * SECONDS + 1)
    assert (tmp_path / "1.wav").read_bytes() == (tmp_path / "2.wav").read_bytes()
