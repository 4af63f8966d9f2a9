"""Replica: one server of a cluster: an engine, its streams, and the application in front."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.errors import TransportError
from streamenc.registry import load
from streamenc.serve.application import application
from streamenc.serve.cluster.actorstore import ActorStore, store_actor
from streamenc.serve.cluster.draining import Ending
from streamenc.serve.cluster.inflow import bounded
from streamenc.serve.cluster.plan import Plan
from streamenc.serve.cluster.publisher import Publisher
from streamenc.serve.guard import Guard
from streamenc.serve.keyring import Key, Keyring
from streamenc.serve.service import Service
from streamenc.serve.site import Site
from streamenc.serve.streams.sessionstore import FolderStore, SessionStore

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

LOOK_SECONDS, READY_SECONDS, PUBLISH_SECONDS = 0.1, 30.0, 5.0
# How long a hop waits for those of others, as `streamenc serve` has it.
MAX_WAIT_MS = 2.0


class ReplicaEngine:
    """An engine, and its door for the same process: a thread computes, the event loop waits.

    In a process of its own it would not share Python's lock with the sockets; here it dies with
    its replica, whatever kills that, and leaves no GPU occupied.
    """

    def __init__(self, plan: Plan) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="streamenc-"))
        self._engine = Engine(max_sessions=plan.limits.sessions, max_wait_ms=MAX_WAIT_MS)
        try:
            codecs = {}
            for name in plan.models:
                codec = load(name, device=plan.device)
                codecs[codec.public_name] = codec
                for has, side in ((codec.has_encoder, "encoder"), (codec.has_decoder, "decoder")):
                    if has:
                        self._engine.warm_blocking(getattr(codec, side))
            self._server = EngineServer(self._engine, codecs, f"ipc://{self._folder}/engine")
        except BaseException:  # Ctrl-C among them: closed, and passed on
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
        keys: Of which a client needs one; none where nobody does.
    """

    def __init__(self, plan: Plan, keys: Sequence[Key] = ()) -> None:
        self._plan, self._keys = plan, keys
        self._ending = Ending()
        self._stack = AsyncExitStack()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, with all that stands behind it: Ray Serve's way to make it here."""
        plan = self._plan
        engine = await asyncio.to_thread(ReplicaEngine, plan)
        self._stack.push_async_callback(asyncio.to_thread, engine.close)
        replica = serve.get_replica_context()
        self._name = replica.replica_tag
        store: SessionStore
        if plan.store:
            store = FolderStore(plan.store)
        else:
            ask = store_actor(f"store of {replica.app_name}", plan.store_bytes)
            store = ActorStore(ask, self._name)
        service = self._service = Service([engine.address], plan.limits, store=store)
        if isinstance(store, ActorStore):
            store.listen(service.let_go)
        await self._stack.enter_async_context(service)
        await self._until_ready()
        for background in (self._drain_in_time(), self._publish(Publisher(service.meter))):
            self._stack.callback(asyncio.create_task(background).cancel)
        guard = Guard(
            Keyring(self._keys),
            origins=plan.origins,
            sessions_per_key=plan.limits.sessions_per_key,
            streams=service.streams_of,
        )
        logger.info("replica %s serves %s", self._name, ", ".join(plan.models))
        message = plan.limits.max_message_bytes
        most = 2 * plan.limits.max_queued_bytes + message
        return bounded(application(Site(service, guard, service.meter)), most, message)

    async def check_health(self) -> None:
        """Ray Serve asks now and then, and starts another replica where this raises.

        Raises:
            TransportError: Where the engine does not answer.
        """
        if not self._service.engines:
            raise TransportError("the engine of this replica does not answer")

    async def status(self) -> dict[str, Any]:
        """What one replica, whichever is asked, tells whoever has the deployment's handle."""
        return {
            "replica": self._name,
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "streams": len(self._service.streams),
            "attached": sum(stream.attached for stream in self._service.streams.values()),
            "ready": self._service.ready,
        }

    async def __del__(self) -> None:
        await self._stack.aclose()

    async def _until_ready(self) -> None:
        """Before that, Ray Serve would send clients here."""
        for _ in range(round(READY_SECONDS / LOOK_SECONDS)):
            if self._service.ready:
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise TransportError(f"the engine did not answer in {READY_SECONDS:g} s")

    async def _drain_in_time(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._ending:
                break
        await self._service.drain(self._plan.drain_seconds, "this replica ends")

    async def _publish(self, publisher: Publisher) -> None:
        while True:
            publisher.publish()
            await asyncio.sleep(PUBLISH_SECONDS)
