"""A cluster of several nodes on this machine: streams outlive replicas, nodes and scaling."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from websockets.asyncio.client import connect

import streamenc
from tests.support.caller import Caller, packet
from tests.support.raycluster import RayCluster, needs_ray

__all__ = ["subprocess"]  # which RayCluster starts

pytestmark = [needs_ray, pytest.mark.slow, pytest.mark.timeout(240)]

RATE = 16_000
Array = np.ndarray[Any, Any]


def sound(number: int, seconds: float) -> Array:
    """(samples,), int16: of each number another one; no two entries of a book are equally near."""
    random = np.random.default_rng(number + 1)
    return (random.standard_normal(round(seconds * RATE)) * 3000).astype(np.int16)


@functools.cache
def solo(number: int, seconds: float) -> Array:
    """(codebooks, frames): the same sound, encoded alone."""
    import torch

    samples = torch.from_numpy(sound(number, seconds).astype(np.float32) / 32768)
    return streamenc.load("nano").encode(samples[None]).numpy()[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    often = "RAY_SERVE_{}_AUTOSCALING_METRIC_PUSH_INTERVAL_S"
    with RayCluster(2, {often.format(who): "1" for who in ("REPLICA", "HANDLE")}) as cluster:
        yield cluster


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def running(cluster: RayCluster) -> list[dict[str, Any]]:
    return [replica for replica in cluster.replicas() if replica["state"] == "RUNNING"]


def callers(cluster: RayCluster, count: int, seconds: float, pace: float = 1.0) -> list[Caller]:
    url = f"ws://127.0.0.1:{cluster.port}"
    return [Caller(url, "nano", sound(n, seconds), RATE, pace) for n in range(count)]


PLAN = {"models": "nano", "open": True, "sessions": 8, "checkpoint_seconds": 0.5}


def called(
    calling: list[Caller], seconds: float, meanwhile: Callable[[], Any], frames: int = 20
) -> None:
    """All of them call, `meanwhile` something happens, and each has the codes of its sound."""

    async def go() -> list[Array]:
        async with asyncio.timeout(150):
            tasks = [asyncio.create_task(caller.run()) for caller in calling]
            await asyncio.gather(*(caller.until_frames(frames) for caller in calling))
            happening = meanwhile()
            if asyncio.iscoroutine(happening):
                await happening
            return await asyncio.gather(*tasks)

    for number, codes in enumerate(asyncio.run(go())):
        assert np.array_equal(codes, solo(number, seconds)), number


def test_streams_outlive_a_replica_that_is_killed(cluster: RayCluster) -> None:
    cluster.deploy(**PLAN, replicas=2)
    both = running(cluster)
    assert len({replica["node_id"] for replica in both}) == 2
    calling = callers(cluster, 4, 8.0)

    def kill() -> None:
        holder = max(cluster.streams(), key=lambda status: status["streams"])
        assert holder["attached"] and holder["ready"]
        os.kill(holder["pid"], signal.SIGKILL)

    called(calling, 8.0, kill)
    wait_for(lambda: "ray_streamenc_sessions_ended" in cluster.metrics())
    sources = [source for caller in calling for source in caller.sources]
    assert sources and set(sources) == {"store"}
    wait_for(lambda: len(running(cluster)) == 2)


def test_a_stream_goes_on_at_whichever_replica_its_client_comes_to(cluster: RayCluster) -> None:
    """Connections break, and Ray Serve sends them anywhere."""
    cluster.deploy(**PLAN, replicas=2)
    calling = callers(cluster, 3, 8.0)

    async def sever() -> None:
        for _ in range(5):
            await asyncio.sleep(0.8)
            for caller in calling:
                if caller.socket is not None:
                    caller.socket.transport.abort()

    called(calling, 8.0, sever)
    sources = [source for caller in calling for source in caller.sources]
    assert {"memory", "store"} >= set(sources) > {"memory"}
    assert len(sources) >= 9


def test_replicas_that_end_drain_and_a_node_that_is_gone_is_replaced(cluster: RayCluster) -> None:
    cluster.deploy(**PLAN, replicas=2, drain_seconds=2)
    before = {replica["replica_id"] for replica in running(cluster)}
    calling = callers(cluster, 3, 8.0)
    called(calling, 8.0, lambda: cluster.deploy(**PLAN, replicas=1, drain_seconds=2))
    for caller in calling:
        assert caller.goaways and caller.closes[1012] and set(caller.sources) == {"store"}
    wait_for(lambda: len(cluster.replicas()) == 1)
    (left,) = running(cluster)
    assert left["replica_id"] not in before

    calling = callers(cluster, 2, 8.0)
    called(calling, 8.0, lambda: cluster.remove_node(left["node_id"]))
    assert all(caller.sources == ["store"] for caller in calling)
    assert running(cluster)[0]["node_id"] != left["node_id"]
    cluster.add_node()


def test_there_are_as_many_replicas_as_sessions_want(cluster: RayCluster) -> None:
    scaling = {"max_replicas": 2, "target_sessions": 2, "upscale_seconds": 1}
    cluster.deploy(**PLAN, **scaling, replicas=1, downscale_seconds=2, drain_seconds=2)
    assert len(running(cluster)) == 1
    calling = callers(cluster, 4, 16.0)
    called(calling, 16.0, lambda: asyncio.to_thread(wait_for, lambda: len(running(cluster)) == 2))
    wait_for(lambda: len(cluster.replicas()) == 1, 90)


def test_who_sends_more_than_fits_is_closed_and_keys_are_in_no_log(
    cluster: RayCluster, tmp_path: Path
) -> None:
    key = "a-key-that-nobody-may-read"
    keys = tmp_path / "keys"
    keys.write_text(f"someone {key}\n")
    keys.chmod(0o600)
    plan = {name: value for name, value in PLAN.items() if name != "open"}
    cluster.deploy(**plan, key_file=str(keys), max_queued_bytes=100_000, max_message_bytes=20_000)
    stranger, caller = callers(cluster, 2, 1.0)
    caller.headers["Authorization"] = f"Bearer {key}"

    async def go() -> None:
        codes = await caller.run()
        assert np.array_equal(codes, solo(1, 1.0))
        with pytest.raises(websockets.InvalidStatus, match="401"):
            await stranger._connection()
        url = f"{caller.url}/v1/stream?token={key}"
        async with connect(url, subprotocols=[websockets.Subprotocol("streamenc.v1")]) as socket:
            asked = {"type": "open", "model": "nano", "format": "s16", "rate": RATE}
            await socket.send(json.dumps(asked))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                for n in range(400):
                    start = [0, 0, n, n * 1500, 1500, 0, 0, 1.0, "i2", (1, 1500)]
                    await socket.send(packet(b"D", [*start, bytes(3000)]))
                while True:
                    await socket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008

    asyncio.run(go())
    logs = [path.read_bytes() for path in cluster.logs()]
    assert len(logs) > 10 and any(b"/v1/stream" in log or b"WS /" in log for log in logs)
    assert not [log for log in logs if key.encode() in log or caller.token.encode() in log]
