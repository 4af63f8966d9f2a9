"""Silero's detector: its published ONNX file in ONNX Runtime, a window after the other.

The package `silero-vad` is found, and never imported: its Python side wants torch.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from streamenc.errors import SnapshotError, UsageError

Samples = np.ndarray[Any, Any]

STATE_SHAPE = (2, 1, 128)  # of its two LSTM layers' worth of h and c
_STATE_BYTES = 4 * 2 * 128


def is_installed() -> bool:
    """Whether the file and ONNX Runtime are there."""
    return _file() is not None and find_spec("onnxruntime") is not None


class Silero:
    """The probability of speech in each window of 32 ms, by Silero VAD 5 and later.

    A window is heard together with the last 4 ms of the one before it, and with what the network
    remembers. See https://github.com/snakers4/silero-vad.

    rate  16,000 or 8,000.

    Raises UsageError where the extra `vad` is not installed.
    """

    name = "silero"
    least_windows = 1  # so many in a row make speech

    def __init__(self, rate: int) -> None:
        path = _file()
        if path is None or find_spec("onnxruntime") is None:
            raise UsageError(
                "Silero's detector is not installed: pip install 'streamenc[vad]', or take "
                "engine=energy, which needs nothing"
            )
        self.window = rate * 32 // 1000
        self._session = _session(str(path))
        self._rate = np.array(rate, np.int64)
        self._context_samples = rate * 4 // 1000
        self.reset()

    def reset(self) -> None:
        """A new stream begins."""
        self._memory = np.zeros(STATE_SHAPE, np.float32)
        self._context = np.zeros(self._context_samples, np.float32)

    def judge(self, window: Samples) -> float:
        """window  (samples,) float32, exactly `window` of them."""
        heard = np.concatenate((self._context, window))
        given = {"input": heard[None], "state": self._memory, "sr": self._rate}
        probability, memory = self._session.run(None, given)
        self._memory = memory
        self._context = heard[-self._context_samples :]
        return float(probability[0, 0])

    def state(self) -> bytes:
        return self._memory.astype("<f4").tobytes() + self._context.astype("<f4").tobytes()

    def restore(self, state: bytes) -> None:
        """Raises SnapshotError where `state` is not one of this rate."""
        wanted = _STATE_BYTES + 4 * self._context_samples
        if len(state) != wanted:
            raise SnapshotError(f"got {len(state)} bytes of Silero's state; wanted {wanted}")
        numbers = np.frombuffer(state, "<f4").astype(np.float32)
        self._memory = numbers[: _STATE_BYTES // 4].reshape(STATE_SHAPE)
        self._context = numbers[_STATE_BYTES // 4 :]


def _file() -> Path | None:
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "data" / "silero_vad.onnx"
    return path if path.is_file() else None


@cache
def _session(path: str) -> Any:
    """One for all streams of a process: it keeps nothing of any, and runs where it is called."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
