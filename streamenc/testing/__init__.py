"""For authors of models and nodes: `check_model` proves a model, `drive` runs a node.

Neither needs a framework for tests. In a test of one's own model:

    from streamenc.testing import check_model

    def test_my_model():
        check_model(MyEncoder().eval(), dtype=torch.float64)
"""

from __future__ import annotations

from streamenc.errors import ContractError
from streamenc.testing.batchsize import BatchDifference, batch_differences
from streamenc.testing.comparison import relative_error
from streamenc.testing.contract import CHECKS, Report, check_model
from streamenc.testing.driver import drive, drive_async
from streamenc.testing.signals import random_signal

__all__ = [
    "CHECKS",
    "BatchDifference",
    "ContractError",
    "Report",
    "batch_differences",
    "check_model",
    "drive",
    "drive_async",
    "random_signal",
    "relative_error",
]
