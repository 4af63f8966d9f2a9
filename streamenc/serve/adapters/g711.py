"""G.711, the 8-bit samples of telephones: each byte is one sample of 16 bits (ITU-T G.711)."""

from __future__ import annotations

from typing import Any

import numpy as np

_BYTES = np.arange(256, dtype=np.int32)


def _mu_law() -> np.ndarray[Any, Any]:
    bits = ~_BYTES & 0xFF
    exponent, mantissa = bits >> 4 & 7, bits & 15
    # 33 is the law's bias, in its own 14 bits.
    size = ((2 * mantissa + 33) << exponent) - 33
    return (4 * np.where(bits & 0x80, -size, size)).astype(np.int16)


def _a_law() -> np.ndarray[Any, Any]:
    bits = _BYTES ^ 0x55  # every other bit is sent inverted
    exponent, mantissa = bits >> 4 & 7, bits & 15
    size = (2 * mantissa + 1 + 32 * (exponent > 0)) << np.maximum(exponent - 1, 0)
    # The law's 13 bits, and a sign where the bit is missing.
    signed: np.ndarray[Any, Any] = np.where(bits & 0x80, size, -size)
    return (8 * signed).astype(np.int16)


MU_LAW, A_LAW = _mu_law(), _a_law()


def decode(encoded: bytes, law: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """int16 (samples,), by one of the tables MU_LAW and A_LAW."""
    decoded: np.ndarray[Any, Any] = law[np.frombuffer(encoded, np.uint8)]
    return decoded
