"""Standard input and output with options, on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import streamenc
from tests.support.drive import noise
from tests.support.media import write_wav
from tests.support.program import streamenc as program


def test_values_of_features_on_standard_output(tmp_path: Path) -> None:
    clip = write_wav(tmp_path / "clip.wav", noise(12_000), 24_000)
    done = program("encode", clip, "-?values=yes", "-m", "mel", "--quiet")
    assert done.code == 0, done.error
    lines = [json.loads(line) for line in done.out.splitlines()]
    printed = np.concatenate([np.float32(line["values"]) for line in lines[1:]], axis=1)
    np.testing.assert_array_equal(printed, streamenc.load("mel").encode_file(clip).data)


def test_samples_with_options_on_standard_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streamenc", "encode", "-m", "mel", "-?rate=24000"]
    samples = np.round(noise(12_000)[0] * 32767).astype("<i2")
    done = subprocess.run(
        [*command, tmp_path / "mel.arrows", "--quiet"], input=samples.tobytes(), timeout=100
    )
    assert done.returncode == 0
    sound = samples.astype(np.float32) / 32768
    wanted = streamenc.load("mel").encode(sound)[0].numpy()
    np.testing.assert_allclose(streamenc.read(tmp_path / "mel.arrows").data, wanted, atol=1e-5)


def test_an_unknown_option_is_still_one() -> None:
    done = program("encode", "a.wav", "-?!x", "--thread", "3")
    assert done.code == 2 and "--thread" in done.error
