"""The same job on a cluster, by Ray Data (the extra `ray`)."""

from __future__ import annotations

from streamenc.bulk.cluster.onray import tokenize_on_ray

__all__ = ["tokenize_on_ray"]
