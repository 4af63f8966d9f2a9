"""A cluster of Ray on this machine: several nodes, each with its processes, in a process apart.

Ray changes signals, warnings and the log of the process that it is imported in; so it is imported
in a child only, which is told what to do in lines of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TextIO

import pytest

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'streamenc[ray]'",
)
FEW = {"object_store_memory": 80 * 2**20}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class RayCluster:
    """A head, which runs no replicas, and worker nodes of one CPU each.

    Attributes:
        script: What its process runs.
        port: Of the proxy, on the head.
    """

    script = __file__

    def __init__(self, nodes: int, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self._process = subprocess.Popen(
            [sys.executable, self.script, self._folder, str(nodes), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_DEDUP_LOGS": "0",
                **(environment or {}),
            },
            start_new_session=True,
        )
        try:
            self.call("ready")
        except BaseException:
            self.close()
            raise

    def call(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the cluster's process has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def deploy(self, **plan: Any) -> None:
        self.call("deploy", plan=plan)

    def replicas(self) -> list[dict[str, Any]]:
        """Those that run or begin: `replica_id`, `state`, `pid`, `node_id`, `actor_id`."""
        found: list[dict[str, Any]] = self.call("replicas")
        return found

    def streams(self) -> list[dict[str, Any]]:
        """What replicas say of themselves."""
        found: list[dict[str, Any]] = self.call("streams")
        return found

    def remove_node(self, node_id: str) -> None:
        """As if its machine lost its power."""
        self.call("remove_node", node_id=node_id)

    def metrics(self) -> str:
        """What Prometheus would read of all nodes."""
        return str(self.call("metrics"))

    def add_node(self) -> str:
        return str(self.call("add_node"))

    def logs(self) -> list[Path]:
        """All files that Ray and its processes have written."""
        return [path for path in Path(self._folder).rglob("*.*") if path.is_file()]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _serve(folder: str, nodes: int, port: int, answers: Any) -> None:
    import ray
    from ray import serve

    from streamenc.serve.cluster import application

    cluster = started(folder)
    workers = [cluster.add_node(num_cpus=1, **FEW) for _ in range(nodes)]
    ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")

    def ready() -> None:
        return None

    def deploy(plan: dict[str, Any]) -> None:
        serve.run(application(**plan), name="streamenc")

    def replicas() -> list[dict[str, Any]]:
        details = ray.get(controller.get_serve_instance_details.remote())
        found = details["applications"]["streamenc"]["deployments"].values()
        names = ("replica_id", "state", "pid", "node_id", "actor_id")
        return [{name: one.get(name) for name in names} for all in found for one in all["replicas"]]

    def remove_node(node_id: str) -> None:
        gone = next(node for node in workers if node.node_id == node_id)
        workers.remove(gone)
        cluster.remove_node(gone, allow_graceful=False)

    def add_node() -> str:
        workers.append(cluster.add_node(num_cpus=1, **FEW))
        return str(workers[-1].node_id)

    def streams() -> list[dict[str, Any]]:
        handle = serve.get_app_handle("streamenc")  # which asks any of them
        found = [handle.status.remote().result() for _ in range(20)]
        return list({status["replica"]: status for status in found}.values())

    def metrics() -> str:
        ports = [node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]
        addresses = [f"http://127.0.0.1:{port}/metrics" for port in ports]
        return "".join(urllib.request.urlopen(url, timeout=10).read().decode() for url in addresses)

    calls = {f.__name__: f for f in (ready, deploy, replicas, remove_node, add_node)}
    calls |= {f.__name__: f for f in (streams, metrics)}
    answer_all(calls, answers)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def started(folder: str) -> Any:
    """A cluster of its head alone."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, **FEW}
    return Cluster(initialize_head=True, head_node_args=head)


def answer_all(calls: dict[str, Callable[..., Any]], answers: TextIO) -> None:
    """Does what lines of standard input ask for, until they end."""
    for line in sys.stdin:
        what, arguments = json.loads(line)
        try:
            answer = {"value": calls[what](**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def own_answers() -> TextIO:
    """Standard output, which is then nobody else's: what Ray prints is not an answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), own_answers())
