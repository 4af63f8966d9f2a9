"""Sound to codes at a server (`streamenc serve -m nano`): what comes, as it comes."""

import asyncio
import sys

import numpy as np

import streamenc.client


async def main(address: str) -> None:
    async with streamenc.client.connect(address, model="nano", rate=16_000) as stream:
        for _ in range(50):  # 20 ms each, as from a microphone; reconnects and resumes by itself
            await stream.send(np.random.default_rng().normal(0, 0.1, 320).astype(np.float32))
        await stream.close()
        async for piece in stream:
            print(f"{piece.seconds:.3f} s: {piece.data[:, 0]}")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765"))
