"""What an application on a cluster may be asked for, in words."""

from __future__ import annotations

import pytest

from streamenc.errors import UsageError
from streamenc.serve.cluster.plan import Plan


def test_words_become_a_plan() -> None:
    words = {"models": "nano,kyutai/mimi", "replicas": "2", "num_gpus": "0.5", "open": "true"}
    plan = Plan.of(words | {"sessions": "8", "resume_seconds": 30})
    assert plan.models == ("nano", "kyutai/mimi")
    assert (plan.replicas, plan.num_gpus, plan.open, plan.target) == (2, 0.5, True, 6.0)
    assert (plan.limits.sessions, plan.limits.resume_seconds) == (8, 30.0)
    assert Plan.of({"open": True, "target_sessions": 3}).target == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"open": True, "replicsa": 2}, "replicsa"),
        ({"open": True, "replicas": 0}, "replicas"),
        ({"open": True, "replicas": 3, "max_replicas": 2}, "max_replicas=2"),
        ({"open": True, "models": ""}, "got none"),
        ({}, "key_file=FILE"),
        ({"open": True, "key_file": "keys"}, "key_file=FILE"),
    ],
)
def test_what_does_not_fit_is_told(words: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Plan.of(words)
