"""The application for Ray Serve: how many replicas, where, and when there are more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamenc.errors import UsageError
from streamenc.serve.cluster.plan import Plan
from streamenc.serve.keyring import read_keys

# Connections beyond a replica's streams that reach it: files, questions, and those that resume.
SPARE_REQUESTS = 32
# Beyond `drain_seconds`, for what ends last; behind HAProxy, Ray keeps a replica for 30 s.
SPARE_SECONDS = 40.0
MAX_WAITING = 256
# Over which the number of streams is averaged; replicas tell it every ten seconds.
LOOK_BACK_SECONDS = 15.0
NAME = "streamenc"


def app(arguments: dict[str, Any]) -> Any:
    """`serve run streamenc.serve.cluster:app models=nano replicas=2 open=true`: any fields of a
    Plan, and of its Limits."""
    return application(Plan.of(arguments))


def application(plan: Plan | None = None, **fields: Any) -> Any:
    """What `ray.serve.run` takes.

    Args:
        plan: What is deployed; or its fields, as `app` takes them.

    Raises:
        UsageError: For a plan that does not fit together, or where Ray is missing.
    """
    if plan is None:
        plan = Plan.of(fields)
    elif fields:
        raise UsageError(f"got a plan, and {', '.join(fields)} beside it; put them into the plan")
    plan.check()
    try:
        from ray import serve
    except ImportError as error:
        raise UsageError(
            "a cluster needs Ray Serve: pip install 'streamenc[ray]', on all of its nodes"
        ) from error
    from streamenc.serve.cluster.replica import Replica

    keys = read_keys(Path(plan.key_file)) if plan.key_file else []
    few = plan.replicas
    scaling: dict[str, Any] = {"num_replicas": few}
    if plan.max_replicas > few:
        scaling = {
            "autoscaling_config": {
                "min_replicas": few,
                "max_replicas": plan.max_replicas,
                "target_ongoing_requests": plan.target,
                "upscale_delay_s": plan.upscale_seconds,
                "downscale_delay_s": plan.downscale_seconds,
                "look_back_period_s": LOOK_BACK_SECONDS,
            }
        }
    return (
        serve.deployment(serve.ingress()(Replica))
        .options(
            name=NAME,
            ray_actor_options={"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus},
            max_ongoing_requests=plan.limits.sessions + SPARE_REQUESTS,
            max_queued_requests=MAX_WAITING,
            graceful_shutdown_timeout_s=plan.drain_seconds + SPARE_SECONDS,
            graceful_shutdown_wait_loop_s=0.5,
            health_check_period_s=5,
            **scaling,
        )
        .bind(plan, keys)
    )
