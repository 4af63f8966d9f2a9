"""The server on a cluster (the extra `ray`): replicas, any of which goes on with any stream.

serve run streamenc.serve.cluster:app models=nano,kyutai/mimi open=true
"""

from __future__ import annotations

from streamenc.serve.cluster.deployment import app, application
from streamenc.serve.cluster.plan import Plan

__all__ = ["Plan", "app", "application"]
