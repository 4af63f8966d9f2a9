"""Silero's network beside the package's own code that runs it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from streamenc.errors import SnapshotError
from streamenc.nodes.speech import silero
from streamenc.nodes.speech.silero import Silero
from tests.support.talking import SILERO_MISSING, talk

pytestmark = pytest.mark.skipif(not silero.is_installed(), reason=SILERO_MISSING)


@pytest.mark.reference
@pytest.mark.parametrize("rate", [16_000, 8000])
def test_the_probabilities_are_those_of_the_package(rate: int) -> None:
    torch = pytest.importorskip("torch")
    published = pytest.importorskip("silero_vad.utils_vad").OnnxWrapper(str(silero._file()))
    judge, sound = Silero(rate), talk(rate)
    windows = sound[: len(sound) // judge.window * judge.window].reshape(-1, judge.window)
    ours = [judge.judge(window) for window in windows]
    theirs = [published(torch.from_numpy(window), rate).item() for window in windows]
    assert ours == theirs
    assert max(ours) > 0.9 and min(ours) < 0.1


def test_neither_the_package_nor_torch_is_imported() -> None:
    program = (
        "import sys, numpy; from streamenc.nodes.speech.detector import Detector\n"
        "Detector(engine='silero').push(numpy.zeros(1024, 'float32'))\n"
        "assert not {'torch', 'silero_vad'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_its_state() -> None:
    judge = Silero(16_000)
    window = talk(16_000)[16_000:16_512]
    judge.judge(window)
    state = judge.state()
    after = judge.judge(window)
    other = Silero(16_000)
    other.restore(state)
    assert other.judge(window) == after
    judge.reset()
    assert judge.judge(window) != after
    with pytest.raises(SnapshotError, match="wanted 1280"):
        judge.restore(state[:-4])


def test_one_session_for_all() -> None:
    assert Silero(16_000)._session is Silero(8000)._session
    assert np.isfinite(Silero(8000).judge(np.zeros(256, np.float32)))
