"""A cluster of several nodes on this machine: streams outlive replicas, nodes and scaling."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import streamenc
from tests.support.caller import Caller
from tests.support.raycluster import RayCluster, needs_ray

__all__ = ["subprocess"]  # which RayCluster starts

pytestmark = [needs_ray, pytest.mark.slow, pytest.mark.timeout(240)]

RATE = 16_000
Array = np.ndarray[Any, Any]


def sound(number: int, seconds: float) -> Array:
    """(samples,), int16: of each number another one."""
    random = np.random.default_rng(number)
    return (random.standard_normal(round(seconds * RATE)) * 3000).astype(np.int16)


@functools.cache
def solo(number: int, seconds: float) -> Array:
    """(codebooks, frames): the same sound, encoded alone."""
    import torch

    samples = torch.from_numpy(sound(number, seconds).astype(np.float32) / 32768)
    return streamenc.load("nano").encode(samples[None]).numpy()[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(nodes=2) as cluster:
        yield cluster


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    async def go() -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    asyncio.run(go())


def running(cluster: RayCluster) -> list[dict[str, Any]]:
    return [replica for replica in cluster.replicas() if replica["state"] == "RUNNING"]


def callers(cluster: RayCluster, count: int, seconds: float, pace: float = 1.0) -> list[Caller]:
    url = f"ws://127.0.0.1:{cluster.port}"
    return [Caller(url, "nano", sound(n, seconds), RATE, pace) for n in range(count)]


def test_streams_outlive_their_replica_and_their_node(cluster: RayCluster) -> None:
    cluster.deploy(
        models="nano", replicas=2, open=True, sessions=8, checkpoint_seconds=0.5, drain_seconds=5
    )
    assert len({replica["node_id"] for replica in running(cluster)}) == 2
    seconds = 12.0
    calling = callers(cluster, 4, seconds)

    async def go() -> list[Array]:
        async with asyncio.timeout(150):
            tasks = [asyncio.create_task(caller.run()) for caller in calling]
            await asyncio.gather(*(caller.until_frames(20) for caller in calling))
            victim = (await asyncio.to_thread(running, cluster))[0]
            os.kill(victim["pid"], signal.SIGKILL)
            return await asyncio.gather(*tasks)

    found = asyncio.run(go())
    for number, codes in enumerate(found):
        assert np.array_equal(codes, solo(number, seconds))
    assert any("store" in caller.sources for caller in calling)
    print([(c.sources, dict(c.closes), dict(c.refusals)) for c in calling])
