"""A cluster of Ray on this machine for data sets, whose nodes and workers can be lost."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.support.raycluster import FEW, RayCluster, answer_all, own_answers, started


class BulkCluster(RayCluster):
    """A head, which does no parts, and nodes of one core each."""

    script = __file__

    def tokenize(self, job: dict[str, Any], output: Path, **how: Any) -> dict[str, Any]:
        """What `tokenize_on_ray` returns, or {"raised": ...}.

        Args:
            job: Fields of a TokenizeJob.
            how: lose="node" or "worker", once a part is finished and others are in hand;
                stop=times, likewise; hide=True for an input that workers do not see.
        """
        made: dict[str, Any] = self.call("tokenize", job=job, output=str(output), **how)
        return made

    def encode(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Has rows encoded by `ray_encoder`, and writes them to a folder as Parquet."""
        self.call("encode", rows=rows, folder=str(folder))


def workers_below(folder: str) -> list[int]:
    """Processes that do parts now, of nodes whose files are in `folder`."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if b"ray::MapWorker(MapBatches(PartActor)).submit" not in _line(process):
                continue
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if folder.encode() in _line(Path("/proc") / parent):
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _line(process: Path) -> bytes:
    return (process / "cmdline").read_bytes()


def _serve(folder: str, nodes: int, answers: Any) -> None:
    import msgspec
    import ray

    import streamenc.bulk
    from streamenc.bulk.cluster import raycrew, tokenize_on_ray
    from streamenc.bulk.runfigures import RunFigures
    from streamenc.bulk.tokenizejob import TokenizeJob
    from streamenc.bulk.workers.stop import Stop
    from streamenc.errors import StreamencError

    cluster = started(folder)
    workers = [cluster.add_node(num_cpus=1, **FEW) for _ in range(nodes)]
    ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
    needed = raycrew._needed

    def ready() -> None:
        return None

    def tokenize(
        job: dict[str, Any], output: str, lose: str = "", stop: int = 0, hide: bool = False
    ) -> dict[str, Any]:
        stopping, lost = Stop(), []
        raycrew._needed = (lambda address: ("/nowhere",)) if hide else needed

        def tell(figures: RunFigures) -> None:
            if not figures.parts_done or lost:
                return
            if lose == "worker" and (pids := workers_below(folder)):
                lost.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)
            elif lose == "node":
                lost.append(workers.pop())
                cluster.remove_node(lost[0], allow_graceful=False)
            elif stop:
                lost.append(stop)
                for _ in range(stop):
                    stopping.ask()

        try:
            figures = tokenize_on_ray(
                msgspec.convert(job, TokenizeJob), output, tell=tell, stop=stopping
            )
        except StreamencError as error:
            return {"raised": f"{type(error).__name__}: {error}"}
        finally:
            while len(workers) < nodes:
                workers.append(cluster.add_node(num_cpus=1, **FEW))
        assert bool(lost) == bool(lose or stop)
        return figures.as_json()

    def encode(rows: list[dict[str, Any]], folder: str) -> None:
        encoder = streamenc.bulk.ray_encoder("nano", device="cpu")
        pool = ray.data.ActorPoolStrategy(size=2)
        encoded = ray.data.from_items(rows).map_batches(encoder, batch_size=2, compute=pool)
        encoded.write_parquet(folder)

    answer_all({each.__name__: each for each in (ready, tokenize, encode)}, answers)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), own_answers())
