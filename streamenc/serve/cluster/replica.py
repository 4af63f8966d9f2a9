"""Replica: one server of a cluster: an engine, its streams, and the application in front."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.errors import TransportError
from streamenc.registry import load
from streamenc.serve.application import application
from streamenc.serve.cluster.draining import Ending
from streamenc.serve.cluster.inflow import bounded
from streamenc.serve.cluster.plan import Plan
from streamenc.serve.service import Service
from streamenc.serve.site import Site

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25


class ReplicaEngine:
    """An engine, and its door for the same process: a thread computes, the event loop waits.

    In a process of its own it would not share Python's lock with the sockets; here it dies with
    its replica, whatever kills that, and leaves no GPU occupied.
    """

    def __init__(self, plan: Plan) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="streamenc-"))
        self._engine = Engine(max_sessions=plan.limits.sessions)
        try:
            codecs = {}
            for name in plan.models:
                codec = load(name, device=plan.device)
                codecs[codec.public_name] = codec
                for has, side in ((codec.has_encoder, "encoder"), (codec.has_decoder, "decoder")):
                    if has:
                        self._engine.warm_blocking(getattr(codec, side))
            self._server = EngineServer(self._engine, codecs, f"ipc://{self._folder}/engine")
        except BaseException:
            self._engine.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.address = self._server.address

    def close(self) -> None:
        self._server.close()
        self._engine.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Replica:
    """What Ray Serve runs: once on each replica, with an event loop of its own.

    Args:
        plan: What is deployed.
    """

    async def __init__(self, plan: Plan) -> None:
        import ray
        from ray import serve

        self._plan = plan
        self._ending = Ending()
        self._engine = await asyncio.to_thread(ReplicaEngine, plan)
        context = serve.get_replica_context()
        self._service = Service([self._engine.address], plan.limits, store=plan.store or None)
        await self._service.start()
        self._watch = asyncio.create_task(self._drain_in_time())
        node = ray.get_runtime_context().get_node_id()
        logger.info("replica %s serves on node %s", context.replica_tag, node)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        limits = self._plan.limits
        return bounded(
            application(Site(self._service)), 2 * limits.max_queued_bytes + limits.max_message_bytes
        )

    async def check_health(self) -> None:
        """Ray Serve asks now and then, and starts another replica where this raises.

        Raises:
            TransportError: Where the engine does not answer.
        """
        if not self._service.ready:
            raise TransportError("the engine of this replica does not answer")

    async def __del__(self) -> None:
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        await self._service.aclose()
        await asyncio.to_thread(self._engine.close)

    async def _drain_in_time(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._ending:
                break
        await self._service.drain(self._plan.drain_seconds)
