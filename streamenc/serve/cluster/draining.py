"""Whether a replica is about to end.

Ray Serve tells a deployment's code only after its last connection is gone, which would be never.
"""

from __future__ import annotations

from ray._private.worker import global_worker

from streamenc.errors import UsageError


class Ending:
    """Whether the replica of this process is told to end.

    It looks at what Ray Serve 2.60 keeps of it, for which there is no public question.

    Raises:
        UsageError: Outside of a replica, or where another version of Ray keeps it otherwise.
    """

    def __init__(self) -> None:
        actors = list(global_worker.actors.values())
        replicas = [actor._replica_impl for actor in actors if hasattr(actor, "_replica_impl")]
        if len(replicas) != 1 or not hasattr(replicas[0], "_shutting_down"):
            raise UsageError(
                "this Ray does not tell a replica that it is about to end; install ray[serve]==2.60"
            )
        self._replica = replicas[0]

    def __bool__(self) -> bool:
        return bool(self._replica._shutting_down)
