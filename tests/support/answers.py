"""What sessions give, as the tensors that a stream by itself gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streamenc.engine.exchange.outputs import Array, Output
from streamenc.models.signal import Scaled, Signal
from streamenc.spec import ScaledCodes


def as_signal(output: Output) -> Signal:
    if isinstance(output, ScaledCodes):
        return Scaled(_tensor(output.codes), _tensor(output.scale))
    return _tensor(output)


def joined(outputs: Sequence[Output], axis: int = -1) -> Tensor:
    """One after the other."""
    arrays = [output for output in outputs if isinstance(output, np.ndarray)]
    assert len(arrays) == len(outputs)
    return _tensor(np.concatenate(arrays, axis=axis))


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" else array)
