"""ActorStore: streams are written to the memory of an actor, which outlives replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from streamenc.errors import OutputError
from streamenc.serve.cluster.shelf import Shelf
from streamenc.serve.streams.sessionstore import SessionStore

# A method's name, and its arguments.
Ask = Callable[..., Awaitable[Any]]

logger = logging.getLogger(__name__)

NAMESPACE = "streamenc"
# A claim waits in the actor, and so does each replica's question.
MAX_CALLS = 10_000
RETRY_SECONDS = 1.0


def store_actor(name: str, max_bytes: int) -> Ask:
    """The actor of that name; a new one on the head node where there is none."""
    import ray
    from ray.exceptions import RayError

    actor = (
        ray.remote(Shelf)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=MAX_CALLS,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
        )
        .remote(max_bytes)
    )

    async def ask(method: str, *arguments: Any) -> Any:
        try:
            return await getattr(actor, method).remote(*arguments)
        except RayError as error:
            raise OutputError(
                f"the store of the cluster does not answer ({type(error).__name__}); streams go "
                "on, but could not be resumed elsewhere"
            ) from error

    return ask


class ActorStore(SessionStore):
    """What one replica knows of the actor.

    Args:
        ask: Calls a method of the actor's Shelf, and raises OutputError where it is gone.
        holder: The replica's own name.
    """

    def __init__(self, ask: Ask, holder: str) -> None:
        self._ask, self._holder = ask, holder
        self._listening: asyncio.Task[None] | None = None

    async def put(self, key: str, epoch: int, blob: bytes) -> bool:
        answer = await self._ask("put", self._holder, key, epoch, blob)
        if answer == "full":
            raise OutputError(
                "the store of the cluster has no room for a stream; give it more (store_bytes), or "
                "a folder (store)"
            )
        return bool(answer == "kept")

    async def claim(self, key: str) -> tuple[int, bytes] | None:
        found: tuple[int, bytes] | None = await self._ask("claim", self._holder, key)
        return found

    async def touch(self, key: str, epoch: int) -> bool:
        return bool(await self._ask("touch", key, epoch))

    async def drop(self, key: str, epoch: int) -> None:
        await self._ask("drop", key, epoch)

    async def sweep(self, older_than_seconds: float) -> int:
        return int(await self._ask("sweep", older_than_seconds))

    def listen(self, let_go: Callable[[str], Awaitable[None]]) -> None:
        """Whenever another replica wants a stream of this one, `let_go` is called with its key: it
        writes the stream down, and has it no more."""
        self._listening = asyncio.create_task(self._listen(let_go))

    async def aclose(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
            with contextlib.suppress(OutputError):
                await self._ask("leave", self._holder)

    async def _listen(self, let_go: Callable[[str], Awaitable[None]]) -> None:
        keys: list[str] = []
        while True:
            try:
                keys = await self._ask("wanted", self._holder, keys)
            except OutputError as error:
                logger.warning("%s", error)
                keys = []
                await asyncio.sleep(RETRY_SECONDS)
            done = await asyncio.gather(*map(let_go, keys), return_exceptions=True)
            for failed in done:
                if isinstance(failed, Exception):
                    logger.warning("a stream was not handed over as it is now: %s", failed)
