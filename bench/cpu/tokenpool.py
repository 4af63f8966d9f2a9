"""What one writes for a folder of files without `streamenc tokenize`: a pool of processes."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def start(model: str, ready: Any) -> None:
    global torch, streamenc, codec
    import torch

    import streamenc

    torch.set_num_threads(1)
    codec = streamenc.load(model, part="encoder", backend="torch")
    ready.wait()


def one(path: Path, output: Path) -> None:
    target = output / f"{path.name}.npy"
    if target.exists():
        return
    if codec.spec.input.kind == "video":
        data = streamenc.read(path, kind="video").data
    else:
        data = streamenc.read(path, sample_rate=codec.sample_rate, channels=1).data
    tokens = codec.encode(torch.from_numpy(data))[0].numpy()
    with open(target.with_suffix(".part"), "wb") as file:
        np.save(file, tokens.astype(codec.spec.output.dtype))
    target.with_suffix(".part").rename(target)


def pool(model: str, files: list[Path], output: Path, workers: int) -> float:
    """Tokens of files as a Parquet; gives the seconds that it took once all models were loaded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    output.mkdir(parents=True, exist_ok=True)
    spawned = multiprocessing.get_context("spawn")
    ready = spawned.Barrier(workers + 1)
    with ProcessPoolExecutor(workers, spawned, start, (model, ready)) as executor:
        done = executor.map(partial(one, output=output), files)
        ready.wait()
        began = time.perf_counter()
        list(done)
    tokens = [np.load(output / f"{path.name}.npy") for path in files]
    rows = {"key": [path.name for path in files], "tokens": [list(each) for each in tokens]}
    if tokens[0].ndim > 2:
        rows = {"key": rows["key"], "tokens": [each.tobytes() for each in tokens]}
    pq.write_table(pa.table(rows), output / "tokens.parquet", compression="zstd")
    return time.perf_counter() - began
