"""A server on a cluster, here of one machine: a stream goes on while its replica is killed.

    pip install 'streamenc[ray]'
    python examples/serve_ray.py

Two replicas of a server run on Ray Serve. A clip is streamed to them as fast as it was spoken. In
its midst the process of the replica that has the stream is killed: the client comes back, another
replica goes on from the last snapshot, and the codes are those of the whole clip.
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import ray
import torch
from ray import serve

import streamenc
import streamenc.client
from streamenc.io.network.websocket.livemessages import Resumed
from streamenc.serve.cluster import application

CLIP = Path(__file__).parent / "data" / "speech.flac"
SECONDS = 8
PIECE_SECONDS = 0.04
KILL_SECONDS = 3


def main() -> int:
    codec = streamenc.load("nano", part="encoder")
    rate = codec.sample_rate
    clip = streamenc.read(CLIP, sample_rate=rate, channels=1).data[0]
    samples = np.resize(clip, SECONDS * rate)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        replicas = serve.run(
            application(models="nano", replicas=2, checkpoint_seconds=1, open=True)
        )
        address = f"ws://127.0.0.1:{port}"
        print(f"two replicas serve nano at {address}")
        codes = asyncio.run(stream(address, samples, rate, replicas))
    finally:
        serve.shutdown()
        ray.shutdown()

    whole = codec.encode(torch.from_numpy(samples)[None]).numpy()[0]
    same = codes.shape == whole.shape and bool((codes == whole).all())
    print(
        f"{codes.shape[1]} frames, {'equal to' if same else 'OTHER THAN'} those of the whole clip"
    )
    return 0 if same else 1


async def stream(
    address: str, samples: np.ndarray, rate: int, replicas: serve.handle.DeploymentHandle
) -> np.ndarray:
    """The codes of `samples`, spoken in real time."""
    pieces: list[np.ndarray] = []
    size = round(PIECE_SECONDS * rate)
    async with streamenc.client.connect(
        address, model="nano", rate=rate, format="f32", on_event=tell
    ) as live:

        async def receive() -> None:
            async for piece in live:
                pieces.append(piece.data)

        receiving = asyncio.create_task(receive())
        for number, at in enumerate(range(0, len(samples), size)):
            await live.send(samples[at : at + size])
            await asyncio.sleep(PIECE_SECONDS)
            if number == round(KILL_SECONDS / PIECE_SECONDS):
                await kill_its_replica(replicas)
        await live.close()
        await receiving
    return np.concatenate(pieces, axis=1)


def tell(event: object) -> None:
    if isinstance(event, Resumed):
        print(f"the client came back, and its stream goes on from the {event.source}")


async def kill_its_replica(replicas: serve.handle.DeploymentHandle) -> None:
    while not (status := await replicas.status.remote())["streams"]:
        pass
    print(f"replica {status['replica']} has the stream: kill -9 {status['pid']}")
    os.kill(status["pid"], signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
