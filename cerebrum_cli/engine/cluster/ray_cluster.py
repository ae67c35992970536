"""The adapter to Ray: one actor on each node, placed and restarted by Ray, which retries no request.

Run as a program, it is a cluster on this machine that lasts as long as its standard input is open: Ray takes over the
handler of SIGTERM where it starts a node, and does so on a main thread only.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from cerebrum_cli.core.environment import set_environment_default
from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.engine.cluster.cluster_engine import AHEAD, NodeInfo, OpenEngine, Worker
from cerebrum_cli.engine.remote.client import LostServerError, server_text
from cerebrum_cli.engine.remote.kind import ReplyChunk
from cerebrum_cli.engine.sequence import Request

CONNECT_S = 5.0
PLACEMENT_S = 30.0  # for Ray to place workers on all nodes
CONTROL = "control"  # calls that must not wait for answers
OBJECT_STORE_BYTES = 150 * 2**20  # of shared memory, which requests and replies hardly use


def require_ray() -> None:
    """Raise EndpointError if Ray is not installed; it is not imported."""
    if find_spec("ray") is None:
        raise EndpointError("--ray needs the package ray, which is not installed", pip_install("'cerebrum-cli[ray]'"))


class RayCluster:
    """A Ray cluster at an address, or one of `local_nodes` nodes on this machine that is started for it.

    A node runs up to `slots` samples at a time, on up to `threads` processors.
    """

    def __init__(self, address: str | None, local_nodes: int, slots: int, threads: int | None) -> None:
        self._address = address
        self._local_nodes = local_nodes
        self._local: subprocess.Popen[str] | None = None
        self._slots = slots
        self._threads = threads
        self._lock = threading.Lock()  # `close` waits for `start`
        self._actors: list[Any] = []
        self._group: Any = None

    def start(self, open_engine: OpenEngine) -> Sequence[RayActor]:
        with self._lock:
            self._connect(self._address or self._start_local())
            return self._start_actors(open_engine)

    def close(self) -> None:
        with self._lock:
            import ray

            if ray.is_initialized():
                with contextlib.suppress(Exception):  # of a cluster that is gone
                    for actor in self._actors:
                        ray.kill(actor)
                    if self._group:
                        ray.util.remove_placement_group(self._group)
                ray.shutdown()
            if self._local:
                self._local.communicate()

    def _start_local(self) -> str:
        """Start a cluster on this machine; return its address. Raises EndpointError."""
        self._local = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(self._local_nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command alone
        )
        assert self._local.stdout
        address = self._local.stdout.readline().strip()
        if not address:
            raise EndpointError("Ray cannot be started on this machine", "to see why, run ray start --head")
        return address

    def _connect(self, address: str) -> None:
        import ray
        import ray._private.worker as driver

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        driver._worker_logs_enabled = False  # Ray prints messages of the nodes to standard output otherwise
        try:
            host, colon, port = address.rpartition("://")[2].rpartition(":")
            if colon:  # Ray would try for minutes where nothing listens
                socket.create_connection((host, int(port)), CONNECT_S).close()
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise connection_error(address, error) from error

    def _start_actors(self, open_engine: OpenEngine) -> list[RayActor]:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundles = [bundle for node in ray.nodes() if (bundle := self._bundle(node))]
        if not bundles:
            raise EndpointError("the Ray cluster has no node with a CPU", "start nodes with ray start --address")
        self._group = ray.util.placement_group(bundles, strategy="STRICT_SPREAD")
        if not self._group.wait(PLACEMENT_S):
            problem = f"the Ray cluster cannot run a worker on each of its {len(bundles)} nodes"
            raise EndpointError(problem, "stop other work there (see ray status), or use fewer CPUs: --threads N")
        actor_class = ray.remote(concurrency_groups={CONTROL: 2})(Worker)
        for index, bundle in enumerate(bundles):
            options = actor_class.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=self._slots + AHEAD,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
            )
            self._actors.append(options.remote(open_engine, int(bundle["CPU"])))
        return [RayActor(actor) for actor in self._actors]

    def _bundle(self, node: Mapping[str, Any]) -> dict[str, float] | None:
        """What a worker takes of a node: its processors, unless fewer are asked for, and its GPUs."""
        resources = node["Resources"]
        processors = int(resources.get("CPU", 0))
        if not node["Alive"] or not processors:
            return None
        gpus = {"GPU": resources["GPU"]} if resources.get("GPU") else {}
        return {"CPU": float(min(processors, self._threads or processors)), **gpus}


class RayActor:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def describe(self) -> NodeInfo | CerebrumError | None:
        described = self._actor.describe.options(concurrency_group=CONTROL).remote()
        found: NodeInfo | CerebrumError | None = await answered(described)
        return found

    async def answer(self, key: int, request: Request) -> tuple[ReplyChunk, ...] | CerebrumError:
        found: tuple[ReplyChunk, ...] | CerebrumError = await answered(self._actor.answer.remote(key, request))
        return found

    def cancel(self, key: int) -> None:
        self._actor.cancel.options(concurrency_group=CONTROL).remote(key)


async def answered(reference: Any) -> Any:
    """Wait for the result of a call. Raises LostServerError if the actor is gone, EndpointError if it cannot start."""
    import ray

    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        raise LostServerError(server_text(str(error).strip().splitlines()[-1])) from error
    except ray.exceptions.RayActorError as error:
        text = str(error)
        if "ModuleNotFoundError" in text or "ImportError" in text:
            problem = f"cerebrum cannot be imported on a node: {server_text(text.strip().splitlines()[-1])}"
            raise EndpointError(problem, "install the same version of cerebrum there, for the same Python") from error
        raise LostServerError("its process has ended") from error
    except ray.exceptions.RayError as error:
        raise LostServerError(server_text(str(error))) from error


def connection_error(address: str, error: Exception) -> CerebrumError:
    """The error of a cluster that cannot be connected to."""
    text = str(error)
    problem = f"Ray at {address}: {server_text(text)}"
    if "ersion mismatch" in text:
        return EndpointError(problem, "use the same versions of Ray and Python everywhere")
    if "uthenticat" in text or "AUTH" in text:
        return EndpointError(problem, "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH")
    hint = "start one with ray start --head, or use --ray local"
    if address == "auto":
        return EndpointError("no Ray cluster runs on this machine", hint)
    reason = (isinstance(error, OSError) and error.strerror) or server_text(text)
    return EndpointError(f"no Ray cluster at {address}: {reason}", hint)


def main() -> None:
    """Start nodes, which share this machine's processors, print their address, and stop them at the end of input."""
    set_environment_default("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    from cerebrum_cli.engine.machine import thread_count

    nodes = int(sys.argv[1])
    processors = max(1, thread_count() // nodes)
    cluster = Cluster()
    with contextlib.redirect_stdout(sys.stderr):
        for _ in range(nodes):
            cluster.add_node(num_cpus=processors, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
