"""Team: the thread that runs programs, and those that help it."""

from __future__ import annotations

import numpy as np

from streamenc.compiled.weights import Array, aligned
from streamenc_kernels.compiled.entry import entry
from streamenc_kernels.compiled.instruction import SCRATCH_BYTES
from streamenc_kernels.compiled.interpreter import BOARD_BYTES


class Team:
    """Runs programs, in the calling thread and, where that pays, in others."""

    def __init__(self) -> None:
        self._enter = entry()
        self._board = aligned((BOARD_BYTES,), np.uint8)
        self._scratch = aligned((SCRATCH_BYTES,), np.uint8)

    def run(self, ops: Array, lanes: int, threads: int) -> None:
        self._enter(
            ops.ctypes.data, len(ops), lanes, 1, self._board.ctypes.data, self._scratch.ctypes.data
        )
