"""What tests mean by equal, and memory that nobody wrote; see streamenc.testing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamenc.testing import comparison
from streamenc.testing.comparison import TIE, assert_close, assert_codes_equal, relative_error

__all__ = ["TIE", "assert_close", "assert_codes_equal", "poisoned_memory", "relative_error"]


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    with comparison.poisoned_memory():
        yield
