"""`tokenize_on_ray`: a data set to a set of tokens, by the machines of a cluster of Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from streamenc.bulk.runfigures import RunFigures
from streamenc.bulk.tokenizejob import TokenizeJob
from streamenc.bulk.tokenizing import tokenize_by
from streamenc.bulk.workers.stop import Stop
from streamenc.errors import UsageError


def tokenize_on_ray(
    job: TokenizeJob,
    output: str | os.PathLike[str],
    *,
    address: str | None = None,
    share: tuple[int, int] = (0, 1),
    concurrency: int | tuple[int, int] | None = None,
    gpus: float = 0.0,
    max_error_rate: float | None = None,
    tell: Callable[[RunFigures], None] | None = None,
    stop: Stop | None = None,
) -> RunFigures:
    """Does what is left of a job, as `tokenize` does: the same shards, bytes and manifest.

    A worker whose machine is lost is replaced, and its part done again by another.

    Args:
        output: The folder of the set, which all machines see under that name.
        address: Of the cluster, as `ray.init` takes it; None for the one that this process is
            connected to, that RAY_ADDRESS names, or that runs on this machine, or else one that is
            started for the run.
        share: (i, n): every n-th part, from the i-th on.
        concurrency: Workers, or (least, most), between which Ray Data chooses; None for as many as
            the cluster has room for.
        gpus: Of each worker, or a share of one; 0 for a core. Of a machine with GPUs, its cores are
            shared out to its workers, for decoding.
        max_error_rate: The share of items that may be errors; see `tokenize`.
        tell: Told how far it is, at most 4 times a second.
        stop: By which it is asked to end before all is done.

    Raises:
        UsageError: As `tokenize`; where Ray is missing, a machine does not see what it has to, or
            none has room for a worker.
        TransportError: Where there is no such cluster, or it does not go on.
        OutputError: Where the set cannot be written.
        InputError: Where more items are errors than may be. What is finished stays.
    """
    try:
        from streamenc.bulk.cluster.raycrew import RayCrew
    except ImportError as error:
        raise UsageError(
            f"a cluster needs Ray Data ({error}): pip install 'streamenc[ray]', on all of its "
            "machines"
        ) from error

    stop = stop or Stop()
    folder = Path(output)

    def hire(job: TokenizeJob, scratch: Path, left: int) -> RayCrew:
        return RayCrew(
            job,
            folder,
            scratch,
            left,
            stop,
            address=address,
            concurrency=concurrency,
            gpus=gpus,
        )

    return tokenize_by(hire, job, folder, share=share, max_error_rate=max_error_rate, tell=tell)
