"""The adapter to Ray: workers on the nodes of a cluster answer blocks of rows, which Ray Data passes on.

Ray runs in a child process, since it handles signals, prints, and does not stop at once; this module is its program.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle, islice
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

from cerebrum_cli.core.environment import set_environment_default
from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.text import one_line, pip_install, well_formed
from cerebrum_cli.core.version import __version__

CONNECT_S = 5.0
CLOSE_S = 5.0  # that the command waits for Ray to stop
STOP_S = 60  # after which Ray is killed
POLL_S = 0.2  # that a message is waited for
RESTART_S = 30.0  # before a worker that failed is started again
ALIVE_S = 30.0  # from one sign of life of a worker to the next
OBJECT_STORE_BYTES = 200 * 2**20  # of shared memory, for blocks that wait
MAX_WAITING = 8  # messages for the command
MAX_CALLS = 100_000  # of workers that wait to send one: with Ray's 1,000 the command could not receive any
MAX_REASON = 300  # characters
NEXT, END = "next", "end"  # messages to the command: send the next block; all are answered or lost
PROGRAM = f"from {__name__} import main; main()"

Records = Sequence[Mapping[str, str]]  # of what generates
# Opens a model with a number of threads, and sends notices as answers without rows; returns what answers blocks.
Job = Callable[[int, Callable[[bytes], None]], tuple[Callable[[bytes], bytes], Records]]
# The blocks for a number of workers, the job of each, and how many blocks it has at a time.
Plan = Callable[[int], tuple[Iterator[bytes], Job, int]]


class WorkerReport(NamedTuple):
    """A worker on a host is ready, or has a problem; `worker` is its id, and `workers` the number of all."""

    worker: str
    host: str
    problem: str
    hint: str
    records: Records
    workers: int


Message = bytes | WorkerReport | None


def answer_blocks(
    address: str | int, workers: int | None, uses_gpus: bool, plan: Plan
) -> Generator[Message, None, None]:
    """Yield answers to blocks as they are finished, reports of workers, b"" as their sign of life, and None otherwise.

    `address` is that of a cluster, or a number of nodes to start on this machine. Without a number of `workers`, there
    is one on each GPU, or on each node. Blocks whose worker or node is lost are left out. Raises EndpointError.
    """
    if find_spec("ray") is None:
        raise EndpointError("ray is not installed", pip_install("'cerebrum-cli[ray]'"))
    pipe, child = Pipe()
    with child:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(child.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[child.fileno()],
            start_new_session=True,  # Ctrl-C is for the command alone
        )
    try:
        pipe.send((address, workers, uses_gpus))
        while (message := receive_message(pipe)) != END:
            if isinstance(message, CerebrumError):
                raise message
            if isinstance(message, int):
                count = message
                blocks, job, concurrency = plan(count)
                pipe.send((pickle.dumps(job), concurrency))
            elif isinstance(message, tuple):
                yield WorkerReport._make((*message, count))
            elif message == NEXT:
                pipe.send(next(blocks, b""))
            else:
                yield message
    except (EOFError, ConnectionError) as error:
        raise EndpointError("Ray ended unexpectedly", "see its logs in /tmp/ray") from error
    finally:
        pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLOSE_S)


def receive_message(pipe: Connection) -> Any:
    """The next message, or None if there is none for a while. Raises EOFError."""
    try:
        return pipe.recv() if pipe.poll(POLL_S) else None
    except OSError as error:  # the end is within a message
        raise EOFError from error


# In the child process.


def main() -> None:
    set_environment_default("RAY_USAGE_STATS_ENABLED", "0")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background ignore
    pipe = Connection(int(sys.argv[1]))
    try:
        address, workers, uses_gpus = pipe.recv()
        with start_nodes(address) if isinstance(address, int) else contextlib.nullcontext(address) as address:
            connect(address)
            places = find_places(workers, uses_gpus)
            pipe.send(len(places.nodes))
            answer_in_places(pipe, places, *pipe.recv())
    except CerebrumError as error:
        pipe.send(error)
    except (EOFError, OSError, KeyboardInterrupt):  # the command has ended
        pass


@contextlib.contextmanager
def start_nodes(count: int) -> Iterator[str]:
    """Start nodes, which share this machine's processors; yield their address. They leave no files."""
    import ray
    from ray.cluster_utils import Cluster

    from cerebrum_cli.engine.machine import thread_count

    cluster, processors = Cluster(), max(1, thread_count() // count)
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=processors, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
        yield cluster.address
    finally:
        session = cluster.head_node.get_session_dir_path() if cluster.head_node else ""
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(session, ignore_errors=True)


def connect(address: str) -> None:
    """Connect to a cluster. Raises EndpointError."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        resolved = canonicalize_bootstrap_address_or_die(address)
        host, _, port = resolved.rpartition(":")
        socket.create_connection((host, int(port)), CONNECT_S).close()  # where nothing listens, Ray tries for minutes
        ray.init(resolved, log_to_driver=False)
    except Exception as error:
        reason = well_formed(one_line(str((isinstance(error, OSError) and error.strerror) or error)))[:MAX_REASON]
        problem = f"no Ray cluster at {address}: {reason}"
        raise EndpointError(problem, "run ray start --head, or use --ray local") from error


class Places(NamedTuple):
    """The node of each worker, the threads of workers by node, and the resource of which a worker takes one."""

    nodes: Sequence[str]
    threads: Mapping[str, int]
    resource: str


def find_places(workers: int | None, uses_gpus: bool) -> Places:
    """Places for a number of workers; without one, for one on each GPU, or on each node if there are no GPUs.

    Nodes without GPUs, such as a head, are left out where others have some. Raises EndpointError if none is left.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    resources_of = {node["NodeID"]: node["Resources"] for node in alive}
    nodes = {node: resources for node, resources in resources_of.items() if resources.get("GPU")} or resources_of
    counts = {node: int(resources.get("GPU", 0)) if uses_gpus else 0 for node, resources in nodes.items()}
    on_gpus = [node for turn in range(max(counts.values(), default=0)) for node in nodes if turn < counts[node]]
    places = on_gpus[:workers] or list(islice(cycle(nodes), workers or len(nodes)))
    if not places:
        raise EndpointError("no node of the Ray cluster has CPUs", "check the nodes with ray status")
    threads = {node: max(1, int(nodes[node]["CPU"]) // places.count(node)) for node in places}
    return Places(places, threads, "num_gpus" if on_gpus else "num_cpus")


def answer_in_places(pipe: Connection, places: Places, job: bytes, concurrency: int) -> None:
    """Send the answers to all blocks that the command sends, and reports of workers, until it closes its end."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(sys.modules[Worker.__module__])  # nodes may lack this package
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    here = {"num_cpus": 0, "scheduling_strategy": this_node}
    blocks, messages = Queue(0, here), Queue(MAX_WAITING, {**here, "max_concurrency": MAX_CALLS})
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # one block of rows in each of Ray's
    context.max_errored_blocks = context.max_consecutive_actor_init_deaths = -1
    start = ray.data.from_items([0], override_num_blocks=1)
    source = start.map_batches(read_blocks, fn_args=(blocks, messages), batch_format="pyarrow", **here)
    answered = source.map_batches(Worker, **worker_options(places, job, concurrency, messages))

    def receive() -> None:
        with contextlib.suppress(Exception):  # of the pipe, or of Ray
            while True:
                blocks.put(pipe.recv())
        signal.alarm(STOP_S)  # if Ray does not stop
        os.kill(os.getpid(), signal.SIGINT)

    def send() -> None:
        while (message := messages.get()) is not None:
            with contextlib.suppress(OSError):
                pipe.send(message)

    sender = threading.Thread(target=send, daemon=True)
    try:
        for thread in (sender, threading.Thread(target=receive, daemon=True)):
            thread.start()
        for _ in answered.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            pass
        messages.put(END)
        signal.pause()  # until `receive` interrupts
    finally:
        messages.put(None)
        sender.join()  # Ray aborts if a thread uses it once it is shut down


def worker_options(places: Places, job: bytes, concurrency: int, messages: Any) -> dict[str, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

    count, turns = len(places.nodes), cycle(places.nodes)
    return {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "fn_constructor_args": (__version__, job, places.threads, messages),
        "compute": ray.data.ActorPoolStrategy(
            min_size=1, max_size=count, initial_size=count, max_tasks_in_flight_per_actor=concurrency
        ),
        "ray_remote_args_fn": lambda: {"scheduling_strategy": Affinity(next(turns), soft=True)},
        places.resource: 1,
        "max_concurrency": concurrency,
        "max_restarts": -1,
        "max_task_retries": 0,  # Ray would wait for the same worker, also where its node has no successor
    }


# In processes of the cluster. They get what follows by value: a node may lack this package.


def read_blocks(_: Any, blocks: Any, messages: Any) -> Iterator[Any]:
    """Yield the blocks that the command sends, as tables of one, until an empty one."""
    import pyarrow

    while messages.put(NEXT) or (block := blocks.get()):
        yield pyarrow.table({"block": pyarrow.array([block], pyarrow.large_binary())})


class Worker:
    """Answers blocks with a model; one that cannot be opened is reported, and gets no blocks."""

    def __init__(self, version: str, job: bytes, threads: Mapping[str, int], messages: Any) -> None:
        import ray

        context = ray.get_runtime_context()
        self._id, self._host, self._messages = context.get_actor_id(), socket.gethostname(), messages
        try:
            import cerebrum_cli

            if cerebrum_cli.__version__ != version:
                raise RuntimeError(f"it has version {cerebrum_cli.__version__} of cerebrum, not {version}")
            self._answer, records = pickle.loads(job)(threads.get(context.get_node_id(), 1), messages.put)
        except Exception as error:
            self._report(error)
            threading.Event().wait()
        messages.put((self._id, self._host, "", "", records))
        threading.Thread(target=self._show_life, daemon=True).start()

    def __call__(self, batch: Any) -> Any:
        try:
            for block in batch["block"].to_pylist():
                self._messages.put(self._answer(block))
        except Exception as error:  # of the whole model: Ray starts another worker, and the blocks are answered later
            self._report(error)
            time.sleep(RESTART_S)
            os._exit(1)
        return batch.slice(0, 0)

    def _show_life(self) -> None:
        while True:
            time.sleep(ALIVE_S)
            self._messages.put(b"")

    def _report(self, error: Exception) -> None:
        problem, hint = str(error) or type(error).__name__, getattr(error, "hint", "see its Ray logs in /tmp/ray")
        self._messages.put((self._id, self._host, problem, hint, ()))
